"""Tokenizers by the name of their type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.huggingface import HuggingFaceTokenizer
from megatron_lm_zh.tokenizer.sentencepiece import SentencePieceTokenizer

TYPES: MappingProxyType[str, Callable[[str | Path], Tokenizer]] = MappingProxyType(
    {
        "SentencePiece": SentencePieceTokenizer,
        "HuggingFace": HuggingFaceTokenizer,
        # Megatron-LM's names
        "SentencePieceTokenizer": SentencePieceTokenizer,
        "Llama2Tokenizer": SentencePieceTokenizer,
        "HuggingFaceTokenizer": HuggingFaceTokenizer,
    }
)


def load_tokenizer(type_: str, path: str | Path) -> Tokenizer:
    """The tokenizer of the given type at ``path``.

    Args:
        type_: a key of `TYPES`.
        path: SentencePiece: a .model file or a directory that holds tokenizer.model; HuggingFace: a directory.

    Raises:
        UserError: no such type, or nothing loads from ``path``.
    """
    if type_ not in TYPES:
        close = nearest(type_, TYPES)
        raise UserError(
            f"unknown tokenizer type {type_!r}",
            expected=f"one of {', '.join(TYPES)}",
            mend=f"did you mean {close}?" if close else "",
        )
    return TYPES[type_](path)
