"""Thin twin of `mlzh convert to-hf CHECKPOINT HF_DIR`."""

from megatron_lm_zh.cli.main import main_for

if __name__ == "__main__":
    raise SystemExit(main_for("convert", "to-hf"))
