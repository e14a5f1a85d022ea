#!/usr/bin/env python3
"""`mlzh preprocess` under the name that Megatron-LM gives it."""

from megatron_lm_zh.cli.main import main_for

if __name__ == "__main__":
    raise SystemExit(main_for("preprocess"))
