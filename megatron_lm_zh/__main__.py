"""`python -m megatron_lm_zh` is `mlzh`."""

from megatron_lm_zh.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
