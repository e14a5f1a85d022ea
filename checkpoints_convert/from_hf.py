"""Thin twin of `mlzh convert from-hf HF_DIR CHECKPOINT`."""

from megatron_lm_zh.cli.main import main_for

if __name__ == "__main__":
    raise SystemExit(main_for("convert", "from-hf"))
