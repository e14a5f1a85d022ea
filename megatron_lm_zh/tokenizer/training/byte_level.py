"""Training of a byte-level BPE, as Qwen, Llama 3 and GPT-2 have it: every text comes back exactly."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_lm_zh.tokenizer.huggingface import HuggingFaceTokenizer
from megatron_lm_zh.tokenizer.training.huggingface_files import (
    check_size,
    length_bound,
    unicode_normalizer,
    write_tokenizer,
)
from megatron_lm_zh.tokenizer.training.options import Options, Texts

END = "<|endoftext|>"
OWN_TOKENS = (END,)
BYTES = 256
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What no piece reaches across: Qwen2's, and Llama 3's but for DIGITS, which there are up to three."""
ONE_DIGIT, ALL_DIGITS = r"\p{N}", r"\p{N}+"


def train_byte_level_bpe(texts: Texts, options: Options, directory: Path) -> HuggingFaceTokenizer:
    """Writes tokenizer.json and what goes with it.

    Ids: 0 ends documents, the padding token where there is one, other special tokens, then 256 bytes.

    Raises:
        UserError: the vocabulary size does not suit the text.
    """
    pad = [] if options.pad_token is None else [options.pad_token]
    special = [END, *pad, *options.special_tokens]
    options.check_room(BYTES + len(special), f"{BYTES} bytes and {len(special)} special tokens")
    pattern = PATTERN.replace("DIGITS", ONE_DIGIT if options.split_digits else ALL_DIGITS)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    normalizer = unicode_normalizer(options.normalization)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=length_bound(options),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    check_size(tokenizer, options)
    roles = {"bos_token": END, "eos_token": END}
    if options.pad_token is not None:
        roles["pad_token"] = options.pad_token
    return write_tokenizer(tokenizer, roles, directory)
