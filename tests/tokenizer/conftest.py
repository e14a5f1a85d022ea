"""The small bases of the merge tests."""

from tokenizer.merge.conftest import byte_level_base, sentencepiece_base, unigram_donor

__all__ = ["byte_level_base", "sentencepiece_base", "unigram_donor"]
