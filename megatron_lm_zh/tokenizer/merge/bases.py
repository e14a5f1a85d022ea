"""Base tokenizers as symbols and merges: SentencePiece BPE and byte-level BPE, told apart by their files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.byte_level import byte_alphabet
from megatron_lm_zh.tokenizer.huggingface import HuggingFaceTokenizer
from megatron_lm_zh.tokenizer.merge.checks import check_added_tokens, check_files_agree, check_no_more_tokens
from megatron_lm_zh.tokenizer.sentencepiece import MODEL_FILE, SPACE, SentencePieceTokenizer
from megatron_lm_zh.tokenizer.spm_export import tokenizer_json, user_defined
from megatron_lm_zh.tokenizer.spm_file import ModelType, PieceType
from megatron_lm_zh.tokenizer.tiktoken import tiktoken_file

BORDER = "\udfff"
"""Put between texts that are spelled together; no text that was read as UTF-8 holds it."""
END = -1
"""Symbol of a border; a character that is spelled in k bytes, or that no symbol has, is -1 - k."""
WHOLE = 0x10000
"""Code point of symbol 0 where a chunk of a byte-level base is one token, whatever the merges say."""
OPAQUE = "\udffe"
"""Stands for a token that no merge takes, as user-defined pieces are."""
UNICODE = 0x110000


@dataclass(frozen=True)
class Base:
    """A BPE tokenizer that can be extended.

    Attributes:
        path: what it was read from: a directory or a file.
        kind: ``sentencepiece`` or ``byte-level``.
        texts: UTF-8 text of each symbol (all pieces that merges make or join); a space is a space.
        ids: id of each symbol in the vocabulary.
        merges: [m, 4] int32: left, right and made symbol, and rank; of equal ranks the leftmost pair goes first.
        ranks: [n] rank of each symbol, for pairs with a new piece that spell it: in SentencePiece the rank of the text
            itself; of a byte-level base behind all its merges.
        vocab_size: the largest id + 1, special tokens included.
        named: special tokens that no file of the base names: ``eos_token`` and so on.
        one_class: whether the base was trained on runs of one script, so that words and punctuation never join.
        chunks: what a text is cut into before its characters become symbols; a chunk that is a token whatever the
            merges say is one character, `WHOLE` + its symbol or `OPAQUE`.
        content: a .model file's bytes, or the text of tokenizer.json.
    """

    path: Path
    kind: str
    texts: tuple[bytes, ...]
    ids: NDArray[np.int32]
    merges: NDArray[np.int32]
    ranks: NDArray[np.int32]
    vocab_size: int
    named: dict[str, str]
    one_class: bool
    chunks: Callable[[Iterable[str]], Iterator[str]]
    content: bytes

    def spell(self, texts: Iterable[str], characters: Sequence[str] = ()) -> NDArray[np.int32]:
        """Symbols before any merge, with a border behind each text and each chunk of it.

        Args:
            texts: the texts.
            characters: further symbols, numbered from ``len(self.texts)`` on.
        """
        return spelled(BORDER.join((*self.chunks(texts), "")), self._table(characters))

    def _table(self, characters: Sequence[str]) -> NDArray[np.int32]:
        table = np.full(UNICODE, 0, np.int32)
        codes = np.arange(UNICODE)
        table[:] = -2 - (codes >= 0x80) - (codes >= 0x800) - (codes >= 0x10000)
        if self.kind == "byte-level":
            alphabet = byte_alphabet()
            single = {text: symbol for symbol, text in enumerate(self.texts) if len(text) == 1}
            for character, byte in alphabet.items():
                table[ord(character)] = single[bytes([byte])]
            table[WHOLE : WHOLE + len(self.texts)] = np.arange(len(self.texts))
        else:
            for symbol, text in enumerate(self.texts):
                if len(character := text.decode()) == 1:
                    table[ord(SPACE if character == " " else character)] = symbol
        for number, character in enumerate(characters):
            table[ord(character)] = len(self.texts) + number
        table[ord(BORDER)] = END
        table[ord(OPAQUE)] = END - 1
        return table

    def stands_whole(self, text: bytes) -> bool:
        """Whether the text alone is a chunk that is a token whatever the merges say."""
        chunk = next(iter(self.chunks([text.decode(errors="ignore")])), "")
        symbol = ord(chunk) - WHOLE if len(chunk) == 1 and self.kind == "byte-level" else -1
        return symbol >= 0 and self.texts[symbol] == text

    def obstacle(self, text: bytes) -> str | None:
        """Why no merge could ever make this text, in a few words: it does not stay whole before merges."""
        plain = text.decode(errors="ignore")
        if plain.encode() != text:
            return None  # it ends inside a character: the rest of it decides
        if self.kind == "byte-level":
            names = {byte: character for character, byte in byte_alphabet().items()}
            chunks, spelled_text = list(self.chunks([plain])), "".join(names[byte] for byte in text)
        else:
            chunks, spelled_text = list(self.chunks(["x" + plain])), plain.replace(" ", SPACE)
        if any(spelled_text in chunk for chunk in chunks):
            return None
        if spelled_text in "".join(chunks):
            return "the base cuts text inside it"
        return OPAQUE_REASON if OPAQUE in chunks else "the base's normaliser never leaves it in text"

    def unknown_characters(self, texts: Iterable[str]) -> Counter[str]:
        """Characters of the texts that the base spells in bytes, and how often they occur; none if it is byte-level."""
        if self.kind == "byte-level":
            return Counter()
        codes = codes_of("".join(chunk for chunk in self.chunks(texts) if chunk != OPAQUE))
        counts = np.bincount(codes, minlength=1)
        table = self._table(())
        return Counter({chr(code): int(counts[code]) for code in np.flatnonzero(counts) if table[code] < END})


def codes_of(text: str) -> NDArray[np.uint32]:
    """Code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def spelled(text: str, table: NDArray[np.int32]) -> NDArray[np.int32]:
    """Each character's entry of a table."""
    return table[codes_of(text)]


def load_base(path: str | Path, *, pattern: str = "", special: Sequence[str] = ()) -> Base:
    """Reads a base tokenizer.

    Args:
        path: a .model file, a directory that holds ``tokenizer.model``, a Hugging Face directory of a byte-level BPE
            (tokenizer.json, or vocab.json and merges.txt), or a file in tiktoken's format.
        pattern: name of the preset that says how the text of such a file is cut; by default known by its size.
        special: its special tokens; by default the preset's.

    Raises:
        UserError: there is none, it is no BPE of these kinds, or its files contradict each other.
    """
    path = Path(path)
    if path.name == "tokenizer.json":
        path = path.parent
    model = path / MODEL_FILE if path.is_dir() else path
    if model.is_file() and tiktoken_file(path) is None and not _is_tiktoken_beside_json(path):
        if pattern or special:
            raise UserError("a .model has its own rules", where=str(path), mend="leave out --pattern and --special")
        return _sentencepiece(SentencePieceTokenizer(path), path)
    return _byte_level(HuggingFaceTokenizer(path, preset=pattern, special=special))


def _is_tiktoken_beside_json(path: Path) -> bool:
    return path.is_dir() and tiktoken_file(path / MODEL_FILE) is not None


def _sentencepiece(tokenizer: SentencePieceTokenizer, path: Path) -> Base:
    model, where = tokenizer.model, str(tokenizer.path)
    if model.model_type != ModelType.BPE:
        raise UserError(
            "a unigram model has no merges to extend", where=where, expected="a BPE model as the base", mend=DONOR
        )
    if not model.escape_whitespaces or model.treat_whitespace_as_suffix:
        raise UserError("spaces at the end of words have no Hugging Face form", where=where)
    if path.is_dir():
        check_no_more_tokens(path, tokenizer.vocab_size)
        if (path / "tokenizer.json").is_file():
            check_files_agree(tokenizer, HuggingFaceTokenizer(path))
    opaque = user_defined(model)
    if opaque and (model.precompiled_charsmap or model.remove_extra_whitespaces):
        raise UserError(
            "user-defined pieces beside a normaliser have no Hugging Face form",
            where=where,
            expected="a base without the one or the other (remove_extra_whitespaces is a normaliser, too)",
        )
    normal = {piece.text: id_ for id_, piece in enumerate(model.pieces) if piece.type == PieceType.NORMAL}
    symbols = {text: symbol for symbol, text in enumerate(normal)}
    scores = np.array([model.pieces[id_].score for id_ in normal.values()])
    ranks = np.unique(-scores, return_inverse=True)[1]
    rows = [
        (symbols[left], symbols[right], symbols[left + right], ranks[symbols[left + right]])
        for left, right in (pair.split(" ") for pair in tokenizer_json(model)["model"]["merges"])
    ]
    form = tokenizer.json_form()
    assert form is not None
    content = tokenizer.path.read_bytes()
    return Base(
        path=path,
        kind="sentencepiece",
        texts=tuple(text.replace(SPACE, " ").encode() for text in normal),
        ids=np.array(list(normal.values()), np.int32),
        merges=np.array(rows, np.int32).reshape(-1, 4),
        ranks=ranks.astype(np.int32),
        vocab_size=tokenizer.vocab_size,
        named={},
        one_class=model.split_by_unicode_script,
        chunks=_sentencepiece_chunks(form.prepare, SPACE if model.add_dummy_prefix else "", opaque),
        content=content,
    )


def _sentencepiece_chunks(
    normalize: Callable[[str], str] | None, prefix: str, opaque: Sequence[str]
) -> Callable[[Iterable[str]], Iterator[str]]:
    """Normalised texts, cut at user-defined pieces, the longest first."""
    parts = _cutter(opaque)

    def chunks(texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            if text:
                yield from parts(normalize(text) if normalize else prefix + text.replace(" ", SPACE))

    return chunks


def _cutter(opaque: Sequence[str]) -> Callable[[str], Iterable[str]]:
    """What cuts a text at these texts, which become `OPAQUE`."""
    if not opaque:
        return lambda text: (text,)
    longest_first = sorted(opaque, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def parts(text: str) -> Iterator[str]:
        for number, part in enumerate(pattern.split(text)):
            if part:
                yield OPAQUE if number % 2 else part

    return parts


DONOR = "a unigram model can be the donor: --pieces"
OPAQUE_REASON = "it holds a user-defined piece of the base, which cuts text"


def _byte_level(tokenizer: HuggingFaceTokenizer) -> Base:
    form = tokenizer.json_form()
    assert form is not None
    text = form.text(form.added_tokens)
    content: dict[str, Any] = json.loads(text)
    model, where = content["model"], str(tokenizer.path)
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(content["pre_tokenizer"]):
        raise UserError(
            f"a {model['type']} that is no byte-level BPE", where=where, expected="a byte-level BPE or a .model file"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UserError(f"{option} decides tokens beside the merges", where=where, expected="a base without it")
    check_added_tokens(tokenizer.path, {token["content"]: token["id"] for token in form.added_tokens})
    alphabet = byte_alphabet()
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    added = {token["content"] for token in form.added_tokens} - {left + right for left, right in merges}
    vocab = {
        piece: id_ for piece, id_ in model["vocab"].items() if piece not in added and all(c in alphabet for c in piece)
    }
    symbols = {piece: symbol for symbol, piece in enumerate(vocab)}
    missing = [part for merge in merges for part in merge if part not in symbols] + list(alphabet.keys() - symbols)
    if missing:
        raise UserError(f"no token for {missing[0]!r}", where=where, expected="all 256 bytes and all halves of merges")
    rows = [(symbols[left], symbols[right], symbols[left + right], rank) for rank, (left, right) in enumerate(merges)]
    whole = {piece: chr(WHOLE + symbol) for piece, symbol in symbols.items()} if model.get("ignore_merges") else {}
    cut = tokenizers.Tokenizer.from_str(text)
    parts = _cutter([token["content"] for token in form.added_tokens if not token["special"]])

    def chunks(texts: Iterable[str]) -> Iterator[str]:
        for one in texts:
            for part in parts(cut.normalizer.normalize_str(one) if cut.normalizer else one):
                if part == OPAQUE:
                    yield part
                    continue
                for chunk, _ in cut.pre_tokenizer.pre_tokenize_str(part):
                    yield whole.get(chunk, chunk)

    if whole:
        _check_special_chunks(added, chunks, where)
    return Base(
        path=tokenizer.path,
        kind="byte-level",
        texts=tuple(bytes(alphabet[c] for c in piece) for piece in vocab),
        ids=np.array(list(vocab.values()), np.int32),
        merges=np.array(rows, np.int32).reshape(-1, 4),
        ranks=np.arange(len(rows), len(rows) + len(vocab), dtype=np.int32),
        vocab_size=tokenizer.vocab_size,
        named=tokenizer.named,
        one_class=False,
        chunks=chunks,
        content=text.encode(),
    )


def _check_special_chunks(special: Iterable[str], chunks: Callable[[Iterable[str]], Iterator[str]], where: str) -> None:
    """Chunks that are in the vocabulary are taken whole: a special token's text may not be one."""
    for text in special:
        if list(chunks([text])) == [text]:
            raise UserError(
                f"text that spells the special token {text!r} would become it, for the base has ignore_merges",
                where=where,
                expected="special tokens that its pre-tokenizer cuts",
            )
