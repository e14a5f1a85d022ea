"""The kinds of tokenizers that can be trained, by name, and the options that each takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.tokenizer.training import byte_level, huggingface_files, sentencepiece_models, wordpiece
from megatron_lm_zh.tokenizer.training.options import Kind, Options

_SENTENCEPIECE: Mapping[str, Any] = MappingProxyType(
    {
        "library": "sentencepiece",
        "own_tokens": sentencepiece_models.OWN_TOKENS,
        "normalizations": sentencepiece_models.NORMALIZATIONS,
        "takes": ("pad_token", "split_digits", "byte_fallback", "character_coverage", "longest_piece"),
        "longest_piece": sentencepiece_models.LONGEST_PIECE,
    }
)
KINDS: MappingProxyType[str, Kind] = MappingProxyType(
    {
        "bpe": Kind(train=sentencepiece_models.train_bpe, **_SENTENCEPIECE),
        "unigram": Kind(train=sentencepiece_models.train_unigram, **_SENTENCEPIECE),
        "byte-level-bpe": Kind(
            train=byte_level.train_byte_level_bpe,
            library="tokenizers",
            own_tokens=byte_level.OWN_TOKENS,
            normalizations=huggingface_files.NORMALIZATIONS,
            takes=("pad_token", "split_digits", "longest_piece"),
        ),
        "wordpiece": Kind(
            train=wordpiece.train_wordpiece,
            library="tokenizers",
            own_tokens=wordpiece.OWN_TOKENS,
            normalizations=huggingface_files.NORMALIZATIONS,
            takes=("split_digits", "character_coverage", "longest_piece", "lowercase"),
            cleaning=wordpiece.CLEANING,
        ),
    }
)


def kind_named(name: str) -> Kind:
    """The kind of a name.

    Raises:
        UserError: there is none.
    """
    if name not in KINDS:
        close = nearest(name, KINDS)
        raise UserError(
            f"unknown kind of model {name!r}",
            where="--model-type",
            expected=f"one of {', '.join(KINDS)}",
            mend=f"did you mean {close}?" if close else "",
        )
    return KINDS[name]


def options_for(name: str, vocab_size: int, given: Mapping[str, Any]) -> Options:
    """Options of a kind, of which only those are given that are not its defaults.

    Raises:
        UserError: the kind does not take one of them, or its value is none.
    """
    kind = kind_named(name)
    takes = (*kind.takes, "special_tokens", "normalization")
    for option in given:
        if option not in takes:
            raise UserError(
                f"{name} does not take it", where=flag(option), expected=", ".join(map(flag, sorted(takes)))
            )
    options = Options(vocab_size=vocab_size, **{"longest_piece": kind.longest_piece, **given})
    if options.normalization not in kind.normalizations:
        raise UserError(
            f"{name} has no {options.normalization!r}",
            where="--normalization",
            expected=f"one of {', '.join(kind.normalizations)}",
        )
    pad = () if options.pad_token is None else (options.pad_token,)
    _check_tokens(kind.own_tokens, (*pad, *options.special_tokens))
    return options


def flag(option: str) -> str:
    """The flag of the command line that sets an option."""
    return "--" + option.replace("_", "-")


def _check_tokens(own: Sequence[str], added: Sequence[str]) -> None:
    seen = set(own)
    for token in added:
        if not token or any(character.isspace() for character in token):
            raise UserError(f"{token!r} is no special token", where="--special-tokens", expected="text without spaces")
        if token in seen:
            raise UserError(f"the special token {token!r} is there twice", where="--special-tokens")
        seen.add(token)
