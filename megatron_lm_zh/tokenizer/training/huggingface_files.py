"""What the kinds that the `tokenizers` library trains have in common: normalizers, and the files of a directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import normalizers

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.tokenizer.huggingface import HuggingFaceTokenizer
from megatron_lm_zh.tokenizer.training.options import Options

NORMALIZATIONS = ("identity", "nfc", "nfkc")


def unicode_normalizer(name: str) -> normalizers.Normalizer | None:
    """The normalizer of a name of `NORMALIZATIONS`; None where text stays as it is."""
    return {"identity": None, "nfc": normalizers.NFC(), "nfkc": normalizers.NFKC()}[name]


def length_bound(options: Options) -> int | None:
    """BpeTrainer's max_token_length, which pieces of three and more symbols must stay below."""
    return None if options.longest_piece is None else options.longest_piece + 1


def check_size(tokenizer: tokenizers.Tokenizer, options: Options) -> None:
    """Raises UserError where the text gave fewer ids than asked for."""
    found = tokenizer.get_vocab_size()
    if found < options.vocab_size:
        raise UserError(
            f"a vocabulary of {options.vocab_size} is too large: the text gives {found} ids",
            where="--vocab-size",
            mend="give more text, or ask for fewer",
        )


def write_tokenizer(tokenizer: tokenizers.Tokenizer, roles: Mapping[str, str], directory: Path) -> HuggingFaceTokenizer:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json, and loads them.

    The generic class is named, for which all versions of transformers load tokenizer.json as it is.

    Args:
        tokenizer: whole, with its special tokens.
        roles: ``eos_token`` and so on, with their texts.
        directory: where the files go.
    """
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles, "clean_up_tokenization_spaces": False}
    write_bytes(directory / "tokenizer.json", (tokenizer.to_str(pretty=True) + "\n").encode())
    write_bytes(directory / "tokenizer_config.json", _json(config))
    write_bytes(directory / "special_tokens_map.json", _json(roles))
    return HuggingFaceTokenizer(directory)


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
