"""Any network that this system builds: every key of the architecture may vary, and no Hugging Face class holds it."""

from __future__ import annotations

from megatron_lm_zh.families.base import ARCHITECTURE, Family

GPT = Family(name="gpt", about="any other decoder, e.g. one with squared ReLU", varies=ARCHITECTURE)
