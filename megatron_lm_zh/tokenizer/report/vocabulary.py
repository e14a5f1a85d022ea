"""A tokenizer's vocabulary as the audit needs it: kind, the text of each piece, the pieces that no text becomes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.byte_level import byte_alphabet
from megatron_lm_zh.tokenizer.merge.bases import Base, load_base
from megatron_lm_zh.tokenizer.merge.ranking import unreachable
from megatron_lm_zh.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer
from megatron_lm_zh.tokenizer.spm_export import tokenizer_json
from megatron_lm_zh.tokenizer.spm_file import PieceType

CONTEXTS = ("", "x", "中", "1", "。", " ", "\n", "x ", "x\n")
"""What may stand before a piece: a pre-tokenizer that cuts it behind each of these is taken to cut it always."""


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a tokenizer.

    Attributes:
        kind: e.g. ``SentencePiece BPE``.
        names: what the tokenizer's file calls each id, special tokens and bytes included.
        pieces: UTF-8 text of each id that stands for text; special tokens and SentencePiece's bytes are not here. A
            piece of WordPiece that continues a word has its ``##``.
        unreachable: ids of the pieces that no text becomes; None where that cannot be told (WordPiece).
    """

    kind: str
    names: dict[int, str]
    pieces: dict[int, bytes]
    unreachable: frozenset[int] | None


def vocabulary_of(tokenizer: Tokenizer, path: Path) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        tokenizer: loaded from ``path``.
        path: where it was read from.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _of_model(tokenizer)
    form = tokenizer.json_form()
    assert form is not None, "every Hugging Face tokenizer has a JSON form"
    text = form.text(form.added_tokens)
    content: dict[str, Any] = json.loads(text)
    model = content["model"]
    listed = model["vocab"]
    by_name = listed if isinstance(listed, dict) else {name: id_ for id_, (name, _) in enumerate(listed)}
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    own = {id_: name for name, id_ in by_name.items() if id_ not in added}
    decoder = json.dumps([content.get("pre_tokenizer"), content.get("decoder")], ensure_ascii=False)
    pieces = dict(_texts(own.items(), decoder))
    kind = f"byte-level {model['type']}" if "ByteLevel" in decoder else str(model["type"])
    whole = tokenizers.Tokenizer.from_str(text)
    dead = _made_otherwise(path, whole, {id_: own[id_] for id_ in pieces}, model["type"])
    if dead is not None:
        left = {id_: piece for id_, piece in pieces.items() if id_ not in dead}
        dead |= frozenset(id_ for id_, piece in left.items() if _never_seen(whole, piece, kind))
    return Vocabulary(kind, own | added, pieces, dead)


def _of_model(tokenizer: SentencePieceTokenizer) -> Vocabulary:
    model = tokenizer.model
    names = {id_: piece.text for id_, piece in enumerate(model.pieces)}
    stands_for_text = (PieceType.NORMAL, PieceType.USER_DEFINED)
    texts = {id_: piece.text for id_, piece in enumerate(model.pieces) if piece.type in stands_for_text}
    pieces = {id_: text.replace(SPACE, " ").encode() for id_, text in texts.items()}
    type_ = model.model_type.name
    form = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(model))) if type_ == "UNIGRAM" else None
    dead = _made_otherwise(tokenizer.path, form, texts, type_)
    return Vocabulary(f"SentencePiece {type_ if type_ == 'BPE' else type_.lower()}", names, pieces, dead)


def _texts(names: Iterable[tuple[int, str]], decoder: str) -> Iterator[tuple[int, bytes]]:
    alphabet = byte_alphabet()
    for id_, name in names:
        if "ByteLevel" in decoder:
            if all(character in alphabet for character in name):
                yield id_, bytes(alphabet[character] for character in name)
        elif not ("ByteFallback" in decoder and len(name) == 6 and name.startswith("<0x")):
            yield id_, name.replace(SPACE, " ").encode() if SPACE in decoder else name.encode()


def _made_otherwise(
    path: Path, form: tokenizers.Tokenizer | None, names: dict[int, str], type_: str
) -> frozenset[int] | None:
    """Pieces whose own text, uncut, the model makes into other pieces; in a longer text it does the same."""
    try:
        base: Base = load_base(path)
    except UserError:  # not a BPE that can be extended: the library is asked, where it can say
        if form is None or type_.upper() not in ("BPE", "UNIGRAM"):
            return None
        return frozenset(id_ for id_, name in names.items() if [t.id for t in form.model.tokenize(name)] != [id_])
    ids = dict(zip(base.texts, base.ids.tolist(), strict=True))
    return frozenset(ids[text] for text in unreachable(base))


def _never_seen(whole: tokenizers.Tokenizer, piece: bytes, kind: str) -> bool:
    """Whether the normaliser changes a piece, or the pre-tokenizer cuts it whatever stands before it."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:  # a part of a character is not judged
        return False
    by_bytes = kind.startswith("byte-level")  # other normalisers write spaces in another way
    if by_bytes and whole.normalizer is not None and whole.normalizer.normalize_str(text) != text:
        return True
    if whole.pre_tokenizer is None or len(text) < 2:
        return False
    return all(_is_cut(whole, before, text) for before in CONTEXTS)


def _is_cut(whole: tokenizers.Tokenizer, before: str, text: str) -> bool:
    """Whether no chunk of the text and what stands before it holds all of the text."""
    chunks = whole.pre_tokenizer.pre_tokenize_str(before + text)
    return all(begin > len(before) or end < len(before) + len(text) for _, (begin, end) in chunks)
