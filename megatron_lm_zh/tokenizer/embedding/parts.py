"""Which tokens of the base each new token is made of."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.embedding.vocabulary import Vocabulary
from megatron_lm_zh.tokenizer.spm_export import SPACE

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Parts:
    """The base's tokens that spell each new id, one id after another.

    Attributes:
        first: the first new id; the others follow it.
        ids: [p] ids of the base.
        token_bytes: [p] UTF-8 bytes of each one's text; 0 for special tokens.
        starts: [n + 1] where each new id's parts begin in `ids`, and where the last one's end. An id that the base
            cannot spell has none.
    """

    first: int
    ids: NDArray[np.int64]
    token_bytes: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many new ids there are."""
        return len(self.starts) - 1

    @property
    def unspelled(self) -> int:
        """How many of them the base cannot spell."""
        return int((np.diff(self.starts) == 0).sum())

    def of(self, id_: int) -> list[int]:
        """Parts of one new id."""
        return self.ids[self.starts[id_ - self.first] : self.starts[id_ - self.first + 1]].tolist()


def find_parts(new: Vocabulary, base: Vocabulary) -> Parts:
    """Spells every new token in the base's.

    The base's model alone does it, on the token as the vocabulary spells it: no normaliser puts a space before a token
    that has none, no pre-tokenizer cuts it, and tokens that begin or end inside a character are bytes like all others.

    Raises:
        UserError: the base is neither a BPE nor a unigram model.
    """
    model = _model(base)
    unknown = model.token_to_id(base.content["model"].get("unk_token") or "")
    if (number := base.content["model"].get("unk_id")) is not None:
        unknown = number
    found = []
    for id_ in range(base.size, new.size):
        text = _spelled(new, id_, base)
        ids = [token.id for token in model.tokenize(text)] if text else []
        found.append([one for one in ids if one != unknown])
    starts = np.cumsum([0, *map(len, found)], dtype=np.int64)
    ids_ = np.array([one for ids in found for one in ids], dtype=np.int64)
    return Parts(base.size, ids_, base.tokenizer.token_sizes()[ids_, 0], starts)


def _model(base: Vocabulary) -> tokenizers.models.Model:
    settings = base.content["model"]
    if settings["type"] not in ("BPE", "Unigram"):
        expected = "a byte-level BPE or a SentencePiece model as the base"
        raise UserError(f"a {settings['type']} model", where=str(base.path), expected=expected)
    marks = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if settings.get(name)]
    if marks:
        raise UserError(f"tokens with a {marks[0]}", where=str(base.path), expected="a base that has none")
    # Without added tokens: the model alone is asked, and it knows them by its own vocabulary or not at all.
    bare = {**base.content, "model": {**settings, **({"dropout": None} if settings["type"] == "BPE" else {})}}
    return tokenizers.Tokenizer.from_str(json.dumps(bare)).model


def _spelled(new: Vocabulary, id_: int, base: Vocabulary) -> str:
    """A new token in the base's way of writing; empty where there is no such token or the base has no such byte."""
    token = new.tokens.get(id_, "")
    if id_ in new.added:
        if not base.byte_level:
            return token.replace(" ", SPACE)
        alphabet = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return "".join(text for text, _ in alphabet.pre_tokenize_str(token))
    return "" if not base.byte_level and _BYTE.fullmatch(token) else token
