"""A SentencePiece model as the tokenizer.json of Hugging Face's `tokenizers` library.

The generic class ``PreTrainedTokenizerFast`` is named in tokenizer_config.json: transformers 4.45 to 5 load
tokenizer.json as it is for that class, while model-specific classes rebuild parts of it, each version in its own way.

A BPE gives the same ids for every text. A unigram model may break ties otherwise (SentencePiece adds scores in 32 bits,
`tokenizers` in 64): seen in runs of one character and in lines of thousands of characters.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from megatron_lm_zh.tokenizer.spm_file import ModelType, PieceType, SentencePieceFile

SPACE = "\u2581"
NEVER_CHOSEN = -1e5
"""Score of special and byte pieces in a unigram vocabulary: text that spells one is cut into other pieces."""
RECORD = "megatron_lm_zh"
"""Key of tokenizer_config.json under which the .model's fingerprint is kept with the hash of its tokenizer.json."""

NAMED_TOKENS = (
    *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens"),
)
"""Keys of tokenizer_config.json and special_tokens_map.json."""
_OF_A_CLASS = (
    "tokenizer_class",
    "auto_map",
    "backend",
    "is_local",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "legacy",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "use_default_system_prompt",
    "add_prefix_space",
    "errors",
    RECORD,
)
"""Keys of tokenizer_config.json that a class other than PreTrainedTokenizerFast reads, or that say where files lay."""


def tokenizer_json(model: SentencePieceFile) -> dict[str, Any]:
    """The content of tokenizer.json (format: tokenizers >= 0.20).

    No post-processor: the beginning-of-sequence token is not added, as it is not in the training data either.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model),
        "normalizer": _normalizer(model),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(model),
        "model": _bpe(model) if model.model_type == ModelType.BPE else _unigram(model),
    }


def tokenizer_config(special: dict[str, Any], json_sha256: str, fingerprint: str) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    Args:
        special: ``bos_token`` and so on, as `NAMED_TOKENS` has them.
        json_sha256: SHA-256 of the tokenizer.json beside it; while it holds, the fingerprint does.
        fingerprint: of the SentencePiece model.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        RECORD: {"tokenizer_json_sha256": json_sha256, "fingerprint": fingerprint},
    }


def user_defined(model: SentencePieceFile) -> list[str]:
    """Texts of user-defined pieces, which are cut out of text before any merge."""
    return [piece.text for piece in model.pieces if piece.type == PieceType.USER_DEFINED]


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What another tokenizer_config.json says, without what names its class, its files or that class's own options."""
    return {key: value for key, value in config.items() if key not in _OF_A_CLASS}


def _added_tokens(model: SentencePieceFile) -> list[dict[str, Any]]:
    added = []
    for id_, piece in enumerate(model.pieces):
        if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED):
            added.append(
                {
                    "id": id_,
                    "content": piece.text,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    # A user-defined piece is met after normalisation, as in SentencePiece.
                    "normalized": piece.type == PieceType.USER_DEFINED,
                    "special": piece.type != PieceType.USER_DEFINED,
                }
            )
    return added


def _normalizer(model: SentencePieceFile) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if model.precompiled_charsmap:
        charsmap = base64.b64encode(model.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.add_dummy_prefix:
        steps.append(_dummy_prefix(user_defined(model)))
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _dummy_prefix(opaque: list[str]) -> dict[str, Any]:
    """A space before each text.

    `tokenizers` normalises an added token's own text as any other, and finds it in texts so: there must be no space
    before it. So none is put before a text that is a user-defined piece and nothing else.
    """
    if not opaque:
        return {"type": "Prepend", "prepend": SPACE}
    alone = "|".join(map(re.escape, opaque))
    return {"type": "Replace", "pattern": {"Regex": rf"\A(?!(?:{alone})\z)"}, "content": SPACE}


def _decoder(model: SentencePieceFile) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bpe(model: SentencePieceFile) -> dict[str, Any]:
    unknown = next((piece.text for piece in model.pieces if piece.type == PieceType.UNKNOWN), None)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: id_ for id_, piece in enumerate(model.pieces)},
        "merges": [f"{left} {right}" for left, right in _merges(model)],
    }


def _merges(model: SentencePieceFile) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best piece first.

    SentencePiece joins the neighbours that make the piece with the best score, the leftmost first. A piece may arise
    from several pairs; where two of them overlap (a run of one character) the leftmost has the longer left part.
    """
    scores = {piece.text: piece.score for piece in model.pieces if piece.type == PieceType.NORMAL}
    return [
        (text[:cut], text[cut:])
        for text in sorted(scores, key=lambda text: -scores[text])  # of the same score, the first id first
        for cut in range(len(text) - 1, 0, -1)
        if text[:cut] in scores and text[cut:] in scores
    ]


def _unigram(model: SentencePieceFile) -> dict[str, Any]:
    unknown = next((id_ for id_, piece in enumerate(model.pieces) if piece.type == PieceType.UNKNOWN), None)
    chosen = (PieceType.NORMAL, PieceType.USER_DEFINED)
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [[piece.text, piece.score if piece.type in chosen else NEVER_CHOSEN] for piece in model.pieces],
        "byte_fallback": model.byte_fallback,
    }
