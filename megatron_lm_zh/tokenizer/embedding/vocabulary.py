"""The vocabulary of a tokenizer, id by id, and whether another one extends it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.huggingface import FILES, HuggingFaceTokenizer
from megatron_lm_zh.tokenizer.sentencepiece import SentencePieceTokenizer
from megatron_lm_zh.tokenizer.spm_export import tokenizer_json


@dataclass(frozen=True)
class Vocabulary:
    """What is known of a tokenizer's ids.

    Attributes:
        path: where it was read from.
        tokenizer: itself.
        tokens: each id's token as the files spell it: `▁` for a space, byte-level characters for bytes.
        added: ids of added tokens, which are plain text, and whether they are special.
        content: the parsed tokenizer.json.
    """

    path: Path
    tokenizer: Tokenizer
    tokens: Mapping[int, str]
    added: Mapping[int, bool]
    content: Mapping[str, Any]

    @property
    def size(self) -> int:
        """The largest id + 1."""
        return self.tokenizer.vocab_size

    @property
    def byte_level(self) -> bool:
        """Whether tokens are spelled in GPT-2's characters for bytes."""
        return '"ByteLevel"' in json.dumps([self.content["pre_tokenizer"], self.content["decoder"]])


def holds_tokenizer(directory: Path) -> bool:
    """Whether a directory has vocabulary files (a tokenizer_config.json alone is none)."""
    settings = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
    return any((directory / name).is_file() for name in FILES if name not in settings)


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a tokenizer.

    Args:
        path: a Hugging Face directory, or a .model file, or a directory that holds ``tokenizer.model`` and no
            ``tokenizer.json``.

    Raises:
        UserError: there is no tokenizer.
    """
    tokenizer: Tokenizer
    if path.is_file() or ((path / "tokenizer.model").is_file() and not (path / "tokenizer.json").is_file()):
        model = SentencePieceTokenizer(path)
        tokenizer, content = model, tokenizer_json(model.model)
    else:
        tokenizer = HuggingFaceTokenizer(path)
        form = tokenizer.json_form()
        assert form is not None
        content = json.loads(form.text(form.added_tokens))
    vocab = tokenizers.Tokenizer.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)
    return Vocabulary(
        path=path,
        tokenizer=tokenizer,
        tokens={id_: token for token, id_ in sorted(vocab.items(), key=lambda item: item[1])},
        added={token["id"]: token["special"] for token in content["added_tokens"]},
        content=content,
    )


def check_extends(new: Vocabulary, base: Vocabulary) -> None:
    """Checks that every id of the base is the same token in `new`, and that new ids follow the base's largest one.

    Raises:
        UserError: naming the first id that differs.
    """
    where, expected = str(new.path), f"a tokenizer that extends {base.path} and moves none of its ids"
    differ = [id_ for id_ in base.tokens if new.tokens.get(id_) != base.tokens[id_]]
    if differ:
        id_, was = differ[0], base.tokens[differ[0]]
        now = f"is {new.tokens[id_]!r} and was {was!r}" if id_ in new.tokens else f"is missing and was {was!r}"
        more = f" ({len(differ):,} ids of {len(base.tokens):,} differ)" if len(differ) > 1 else ""
        raise UserError(f"id {id_} {now}{more}", where=where, expected=expected)
    for id_ in new.tokens:
        if id_ < base.size and id_ not in base.tokens:
            what = f"id {id_} is {new.tokens[id_]!r}, where the base has no token"
            raise UserError(what, where=where, expected=f"new ids from {base.size} on")
    for id_ in sorted(base.added.keys() | {id_ for id_ in new.added if id_ < base.size}):
        was_special, is_special = base.added.get(id_, False), new.added.get(id_, False)
        if was_special != is_special:
            state = "is a special token and was none" if is_special else "is no special token and was one"
            raise UserError(f"id {id_} ({base.tokens[id_]!r}) {state}", where=where, expected=expected)
    end, was_end = new.tokenizer.eod, base.tokenizer.eod
    if end != was_end:
        what = f"its end-of-sequence token is id {end} ({new.tokens[end]!r})"
        raise UserError(what, where=where, expected=f"the base's, {was_end} ({base.tokens[was_end]!r})")
    if new.size == base.size:
        raise UserError("it has no id that the base has not", where=where, expected="an extended tokenizer")
