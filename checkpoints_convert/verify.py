"""Thin twin of `mlzh convert verify A B`."""

from megatron_lm_zh.cli.main import main_for

if __name__ == "__main__":
    raise SystemExit(main_for("convert", "verify"))
