"""Hugging Face tokenizers: a directory with tokenizer.json, or with the older files that can be converted."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
from numpy.typing import NDArray

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import read_json_if_any, write_bytes
from megatron_lm_zh.tokenizer.base import JsonForm, sizes_of_bytes
from megatron_lm_zh.tokenizer.byte_level import byte_alphabet
from megatron_lm_zh.tokenizer.spm_export import RECORD, SPACE, settings_of, tokenizer_config
from megatron_lm_zh.tokenizer.tiktoken import from_tiktoken, tiktoken_file

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
"""What belongs to a tokenizer in a Hugging Face directory."""
TEMPLATES = "additional_chat_templates"
"""A directory that may stand beside them."""
GPT2_END = "<|endoftext|>"


class HuggingFaceTokenizer:
    """A tokenizer of a Hugging Face directory, run by the `tokenizers` library itself where there is a tokenizer.json.

    Without one, ``vocab.json`` and ``merges.txt`` alone are GPT-2's byte-level BPE, and a file in tiktoken's format is
    the tokenizer of its preset; anything else is converted by transformers' AutoTokenizer, which imports torch.

    Args:
        path: the directory, or a file in tiktoken's format.
        preset: how a file in tiktoken's format is read, see `from_tiktoken`.
        special: its special tokens.

    Raises:
        UserError: there is no such directory, no tokenizer in it, or it has no end-of-sequence token.
    """

    library = "tokenizers"

    def __init__(self, path: str | Path, *, preset: str = "", special: Sequence[str] = ()) -> None:
        self.path = Path(path)
        ranks = tiktoken_file(self.path)
        if not self.path.is_dir() and ranks is None:
            raise UserError(
                "no such directory", where=str(path), expected="a Hugging Face directory with tokenizer.json"
            )
        if ranks is None and (preset or special):
            raise UserError("no file in tiktoken's format", where=str(path), mend="leave out --pattern and --special")
        self._config = read_json_if_any(self.path / "tokenizer_config.json")
        self.named: dict[str, str] = {}
        """eos_token and so on, where the tokenizer is put together here and its tokenizer.json written by us."""
        end: str | None
        try:
            if ranks is not None:
                self._tokenizer, first = from_tiktoken(ranks, preset, special)
                end = self._named_end() or first
                self.named = {"eos_token": end}
            elif (self.path / "tokenizer.json").is_file():
                self._tokenizer = tokenizers.Tokenizer.from_file(str(self.path / "tokenizer.json"))
                end = self._named_end()
            elif self._is_bare_gpt2():
                self._tokenizer, end = self._gpt2(), GPT2_END
                self.named = {"eos_token": GPT2_END, "bos_token": GPT2_END, "unk_token": GPT2_END}
            else:
                self._tokenizer, end = self._converted()
        except UserError:
            raise
        except Exception as error:  # `tokenizers` raises plain Exception; its message names the fault
            raise UserError(
                f"no tokenizer can be loaded from it: {str(error).strip().splitlines()[0]}",
                where=str(path),
                expected="tokenizer.json, or tokenizer_config.json with vocabulary files",
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # they are plain text
        eod = self._tokenizer.token_to_id(end) if end else None
        if eod is None:
            raise UserError(
                f"the end-of-sequence token {end!r} is not in the vocabulary" if end else "no end-of-sequence token",
                where=str(path),
                expected="an eos_token in tokenizer_config.json that the vocabulary has",
            )
        self.eod: int = eod
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.fingerprint = self._recorded_fingerprint() or self._own_fingerprint()

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; see `Tokenizer`."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_special(self, text: str) -> list[int]:
        """Ids of ``text``, special tokens in it being tokens; see `Tokenizer`."""
        return self._matching.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _matching(self) -> tokenizers.Tokenizer:
        """A copy that matches special tokens, as tokenizers do unless told otherwise."""
        return tokenizers.Tokenizer.from_str(self._tokenizer.to_str())

    def json_form(self) -> JsonForm | None:
        """Its tokenizer.json, without truncation and padding; see `Tokenizer`."""
        return JsonForm.of(self._tokenizer.to_str(), prepare=None, asks_unicode=True)

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; see `Tokenizer`."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def token_sizes(self) -> NDArray[np.int64]:
        """[vocab_size, 2]: bytes and characters of each token; see `Tokenizer`.

        Exact for byte-level and SentencePiece-like tokenizers. WordPiece keeps no spaces, so none are counted; any
        other kind counts what a token alone decodes to.
        """
        return self._sizes

    @functools.cached_property
    def _sizes(self) -> NDArray[np.int64]:
        added = self._tokenizer.get_added_tokens_decoder()
        how = json.loads(self._tokenizer.to_str())["decoder"] or {}
        decoder = json.dumps(how, ensure_ascii=False)
        alphabet = byte_alphabet() if '"ByteLevel"' in decoder else None
        pieces = [b""] * self.vocab_size
        for text, id_ in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if id_ in added:
                pieces[id_] = b"" if added[id_].special else added[id_].content.encode()
            elif alphabet is not None and all(character in alphabet for character in text):
                pieces[id_] = bytes(alphabet[character] for character in text)
            elif SPACE in decoder:  # SentencePiece's way of writing
                is_byte = '"ByteFallback"' in decoder and len(text) == 6 and text.startswith("<0x")
                pieces[id_] = bytes([int(text[3:5], 16)]) if is_byte else text.replace(SPACE, " ").encode()
            elif how.get("type") == "WordPiece":
                pieces[id_] = text.removeprefix(how["prefix"]).encode()
            else:
                pieces[id_] = self._tokenizer.decode([id_]).encode()
        return sizes_of_bytes(pieces)

    def save_huggingface(self, directory: Path) -> None:
        """Copies the tokenizer's files as they are; vocabulary files without a config become a tokenizer.json."""
        if self.named:
            special = self.named
            content = self._tokenizer.to_str(pretty=True).encode()
            config = settings_of(self._config) | tokenizer_config(
                special, hashlib.sha256(content).hexdigest(), self.fingerprint
            )
            write_bytes(directory / "tokenizer.json", content)
            write_bytes(directory / "special_tokens_map.json", json.dumps(special, indent=2).encode())
            write_bytes(directory / "tokenizer_config.json", json.dumps(config, indent=2).encode())
            return
        for name in FILES:
            if (self.path / name).is_file() and (self.path / name).resolve() != (directory / name).resolve():
                write_bytes(directory / name, (self.path / name).read_bytes())
        templates = self.path / TEMPLATES
        if templates.is_dir() and templates.resolve() != (directory / templates.name).resolve():
            shutil.copytree(templates, directory / templates.name, dirs_exist_ok=True)

    def _named_end(self) -> str | None:
        token = self._config.get("eos_token") or read_json_if_any(self.path / "special_tokens_map.json").get(
            "eos_token"
        )
        return token.get("content") if isinstance(token, dict) else token

    def _is_bare_gpt2(self) -> bool:
        names = {path.name for path in self.path.iterdir()}
        return {"vocab.json", "merges.txt"} <= names and not names & {
            "tokenizer.json",
            "tokenizer_config.json",
            "config.json",
        }

    def _gpt2(self) -> tokenizers.Tokenizer:
        model = tokenizers.models.BPE.from_file(str(self.path / "vocab.json"), str(self.path / "merges.txt"))
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        if tokenizer.token_to_id(GPT2_END) is not None:
            tokenizer.add_special_tokens([GPT2_END])
        return tokenizer

    def _converted(self) -> tuple[tokenizers.Tokenizer, str | None]:
        transformers = importlib.import_module("transformers")  # it imports torch, which tokenizer.json does not need
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(str(self.path), use_fast=True)
        except (OSError, ValueError) as error:  # with pages of text
            held = ", ".join(sorted(path.name for path in self.path.iterdir())[:8])
            raise UserError(
                f"transformers finds no tokenizer in it ({held or 'it is empty'})",
                where=str(self.path),
                expected="tokenizer.json, or tokenizer_config.json with vocabulary files",
            ) from error
        if not loaded.is_fast:
            raise UserError(
                f"{type(loaded).__name__} has no fast form", where=str(self.path), expected="one with tokenizer.json"
            )
        return tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str()), loaded.eos_token

    def _recorded_fingerprint(self) -> str | None:
        """The fingerprint of the .model that our export was made from, while tokenizer.json is what we wrote."""
        record = self._config.get(RECORD)
        file = self.path / "tokenizer.json"
        if not isinstance(record, dict) or not file.is_file():
            return None
        unchanged = hashlib.sha256(file.read_bytes()).hexdigest() == record.get("tokenizer_json_sha256")
        return record.get("fingerprint") if unchanged else None

    def _own_fingerprint(self) -> str:
        """Hash of the tokenizer and the id that ends documents, whatever the layout of the JSON file."""
        content = orjson.loads(self._tokenizer.to_str())
        merges = content["model"].get("merges") or []
        content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
        return hashlib.sha256(orjson.dumps([content, self.eod], option=orjson.OPT_SORT_KEYS)).hexdigest()
