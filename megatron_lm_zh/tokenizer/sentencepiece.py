"""SentencePiece models (.model files)."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import sentencepiece
from numpy.typing import NDArray

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.tokenizer.base import JsonForm, sizes_of_bytes
from megatron_lm_zh.tokenizer.spm_export import NAMED_TOKENS, tokenizer_config, tokenizer_json, user_defined
from megatron_lm_zh.tokenizer.spm_file import ModelType, Piece, PieceType, SentencePieceFile, parse_model

MODEL_FILE = "tokenizer.model"
SPACE = "\u2581"  # SentencePiece writes a space as this


class SentencePieceTokenizer:
    """A SentencePiece BPE or unigram model.

    Args:
        path: a .model file, or a directory that holds ``tokenizer.model``.

    Raises:
        UserError: there is no such file, it is no SentencePiece model, or it has no end-of-sequence token.
    """

    library = "sentencepiece"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
        expected = f"a SentencePiece .model file, or a directory that holds {MODEL_FILE}"
        if not self.path.is_file():
            raise UserError("no such tokenizer file", where=str(self.path), expected=expected)
        self._content = self.path.read_bytes()
        try:
            self.model: SentencePieceFile = parse_model(self._content)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._content)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"not a SentencePiece model: {error}", where=str(self.path), expected=expected) from error
        if self.model.model_type not in (ModelType.BPE, ModelType.UNIGRAM):
            kind = self.model.model_type.name.lower()
            raise UserError(f"a SentencePiece model of type {kind}", where=str(self.path), expected="bpe or unigram")
        if self._processor.eos_id() < 0:
            raise UserError(
                "the model has no end-of-sequence token", where=str(self.path), expected="one trained with eos_id >= 0"
            )
        self.vocab_size = len(self.model.pieces)
        self.eod: int = self._processor.eos_id()
        self.fingerprint = _fingerprint(self.model, self.eod)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; see `Tokenizer`."""
        return self._processor.encode(text)

    def encode_special(self, text: str) -> list[int]:
        """Ids of ``text``, special tokens in it being tokens (control pieces and the unknown one); see `Tokenizer`."""
        ids: list[int] = []
        for part in self._special_text.split(text):
            special = self._special_ids.get(part)
            ids += self.encode(part) if special is None else [special]
        return ids

    @functools.cached_property
    def _special_ids(self) -> dict[str, int]:
        special = (PieceType.CONTROL, PieceType.UNKNOWN)
        return {piece.text: id_ for id_, piece in enumerate(self.model.pieces) if piece.type in special}

    @functools.cached_property
    def _special_text(self) -> re.Pattern[str]:
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def json_form(self) -> JsonForm | None:
        """A tokenizer.json for a BPE; see `Tokenizer`. A unigram's may break ties otherwise.

        Where it changes more than spaces into U+2581, SentencePiece's own normalizer is to go before: others' differ.
        So it is where user-defined pieces meet a space put before the text, see `spm_export`.
        """
        if self.model.model_type != ModelType.BPE or not self._has_huggingface_form:
            return None
        content = tokenizer_json(self.model)
        prepare = None
        cuts = self.model.add_dummy_prefix and user_defined(self.model)
        if self.model.precompiled_charsmap or self.model.remove_extra_whitespaces or cuts:
            content["normalizer"], prepare = None, self._processor.normalize
        return JsonForm.of(json.dumps(content, ensure_ascii=False), prepare=prepare, asks_unicode=False)

    @property
    def _has_huggingface_form(self) -> bool:
        return self.model.escape_whitespaces and not self.model.treat_whitespace_as_suffix

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; see `Tokenizer`."""
        return self._processor.decode(ids)

    def token_sizes(self) -> NDArray[np.int64]:
        """[vocab_size, 2]: bytes and characters of each token; see `Tokenizer`."""
        return self._sizes

    @functools.cached_property
    def _sizes(self) -> NDArray[np.int64]:
        return sizes_of_bytes([_bytes_of(piece) for piece in self.model.pieces])

    def save_huggingface(
        self, directory: Path, *, settings: dict[str, Any] | None = None, post_processor: dict[str, Any] | None = None
    ) -> None:
        """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and the .model itself.

        Args:
            directory: where to.
            settings: entries of tokenizer_config.json beside those that are known here; they come first.
            post_processor: what tokenizer.json puts around a text's ids; nothing by default.
        """
        if not self._has_huggingface_form:
            raise UserError("spaces at the end of words have no Hugging Face form", where=str(self.path))
        content = tokenizer_json(self.model) | {"post_processor": post_processor}
        settings = settings or {}
        special = {
            f"{name}_token": self.model.pieces[id_].text
            for name, id_ in (
                ("bos", self._processor.bos_id()),
                ("eos", self.eod),
                ("unk", self._processor.unk_id()),
                ("pad", self._processor.pad_id()),
            )
            if id_ >= 0
        }
        special |= {name: settings[name] for name in NAMED_TOKENS if settings.get(name)}
        json_bytes = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        config = settings | tokenizer_config(special, hashlib.sha256(json_bytes).hexdigest(), self.fingerprint)
        write_bytes(directory / MODEL_FILE, self._content)
        write_bytes(directory / "tokenizer.json", json_bytes)
        write_bytes(directory / "special_tokens_map.json", _json(special))
        write_bytes(directory / "tokenizer_config.json", _json(config))


def _json(content: dict) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


def _bytes_of(piece: Piece) -> bytes:
    """The text that a piece stands for; none for special pieces."""
    if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN):
        return b""
    if piece.type == PieceType.BYTE:
        return bytes([int(piece.text[3:5], 16)])  # "<0xE4>"
    return piece.text.replace(SPACE, " ").encode()


def _fingerprint(model: SentencePieceFile, eod: int) -> str:
    """Hash of what decides ids: not of the training options and file names that a .model file also holds."""
    digest = hashlib.sha256()
    rules = [
        model.model_type.name,
        model.byte_fallback,
        model.treat_whitespace_as_suffix,
        model.precompiled_charsmap.hex(),
        model.add_dummy_prefix,
        model.remove_extra_whitespaces,
        model.escape_whitespaces,
        eod,
    ]
    digest.update(json.dumps(rules).encode())
    names = {type_: type_.name for type_ in PieceType}
    told = (f'[{json.dumps(piece.text)}, {piece.score}, "{names[piece.type]}"]' for piece in model.pieces)
    digest.update("".join(told).encode())
    return digest.hexdigest()
