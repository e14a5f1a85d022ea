"""Whether the files of a base's directory agree with each other: its special tokens, and .model with tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import read_json_if_any
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.sentencepiece import SentencePieceTokenizer

_PROBES = ("a", " a", "a  b ", "ＡＢ１２，。", "ﬁ ①", "e\u0301é", "a\tb\nc", "我们\u3000他们", "\u200bx\u00a0y", "▁x")
"""Texts that normalisers treat differently: spaces, full-width forms, compositions, control characters."""


def check_files_agree(tokenizer: SentencePieceTokenizer, other: Tokenizer) -> None:
    """That a .model and the tokenizer.json beside it make the same text of a text, whatever they cut it into.

    Raises:
        UserError: they do not; or tokenizer.json holds tokens that the .model lacks.
    """
    where = str(tokenizer.path.parent)
    check_no_more_tokens(tokenizer.path.parent, tokenizer.vocab_size)
    texts = dict(enumerate(piece.text for piece in tokenizer.model.pieces))
    for probe in _PROBES:
        model, twin = ("".join(texts.get(i, f"#{i}") for i in one.encode(probe)) for one in (tokenizer, other))
        if model != twin:
            raise UserError(
                f"tokenizer.model and tokenizer.json normalise otherwise: {probe!r} becomes {model!r} and {twin!r}",
                where=where,
                mend="give the file that is right: --base .../tokenizer.model, or a directory without the other",
            )


def check_no_more_tokens(directory: Path, size: int) -> None:
    """That a directory names no token whose id is behind the .model's last one: new pieces would take its id.

    Args:
        directory: a Hugging Face directory.
        size: pieces of the .model.
    """
    more = {content: id_ for _, content, id_ in _added_tokens(directory) if id_ >= size}
    if more:
        first = min(more, key=more.__getitem__)
        raise UserError(
            f"{len(more)} added tokens that tokenizer.model lacks, the first is {first!r} with id {more[first]}",
            where=str(directory),
            expected="a .model that holds all ids",
            mend="extend the .model itself (--base .../tokenizer.model) and add them to the result",
        )


def check_added_tokens(directory: Path, loaded: dict[str, int]) -> None:
    """That no two special or added tokens of a Hugging Face directory have one text or one id.

    Args:
        directory: the directory; where it is none, nothing is checked.
        loaded: texts and ids that these tokens have when `tokenizers` has read them: it numbers those anew that leave
            a gap behind the vocabulary.

    Raises:
        UserError: two have, in one file or in two of them, or one gets another id than its file says.
    """
    if not directory.is_dir():
        return
    vocab = read_json_if_any(directory / "tokenizer.json").get("model", {}).get("vocab", {})
    ids: dict[str, int] = dict(vocab) if isinstance(vocab, dict) else {}
    contents = {id_: content for content, id_ in ids.items()}
    seen: set[tuple[str, str]] = set()
    for file, content, id_ in _added_tokens(directory):
        if (file, content) in seen or ids.setdefault(content, id_) != id_:
            raise UserError(f"duplicate special token {content!r}", where=str(directory / file), expected="one id each")
        seen.add((file, content))
        if contents.setdefault(id_, content) != content:
            raise UserError(
                f"id {id_} is that of {contents[id_]!r} and of {content!r}",
                where=str(directory / file),
                expected="one token for each id",
            )
        if loaded.get(content, id_) != id_:
            raise UserError(
                f"special token {content!r} has id {id_} in the file and gets {loaded[content]}",
                where=str(directory / file),
                expected="no gap between the vocabulary and its special tokens",
            )


def _added_tokens(directory: Path) -> Iterator[tuple[str, str, int]]:
    """File, text and id of each added token, file by file."""
    try:
        for token in read_json_if_any(directory / "tokenizer.json").get("added_tokens") or []:
            yield "tokenizer.json", token["content"], int(token["id"])
        for content, id_ in read_json_if_any(directory / "added_tokens.json").items():
            yield "added_tokens.json", content, int(id_)
        for id_, token in (
            read_json_if_any(directory / "tokenizer_config.json").get("added_tokens_decoder") or {}
        ).items():
            yield "tokenizer_config.json", token["content"], int(id_)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"broken added tokens ({type(error).__name__}: {error})", where=str(directory)) from error
