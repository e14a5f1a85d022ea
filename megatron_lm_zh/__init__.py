"""Megatron-style pretraining of bilingual language models, from raw text to a Hugging Face checkpoint."""

__version__ = "0.1.0"
