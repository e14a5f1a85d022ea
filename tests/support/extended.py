"""Small tokenizers with an extension, and what spells a new piece, made without the code that is tested."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = ["The cat sat on the mat.", "天下大势，分久必合，合久必分。", "def f(x):\n    return x + 1\n"] * 4
PIECES = ["天下", "▁天下", "大势", "，", "天下大势", "分久必合", "▁the▁cat", "合久", "龘龘", "。"]
"""Added to the SentencePiece base: with and without a space before, one of characters that it spells in bytes."""
BYTE_PIECES = ["天下", "龘", " 大势", "分久必合，合久必分", b"\xe9\xbe", b"\x98\xe5\xa4", "，但"]
"""Added to the byte-level base: some begin or end inside a character."""


def make_sentencepiece(directory: Path, pieces: list[str] | None = None) -> tuple[Path, Path]:
    """A BPE like Llama 2's (a space before every text, bytes for the rest) and its extension: two directories."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The cat sat on the mat, and the dog is there.", "天 下 大 势"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    base, new = directory / "base", directory / "new"
    for path in (base, new):
        path.mkdir(parents=True)
    (base / "tokenizer.model").write_bytes(proto.SerializeToString())
    for number, piece in enumerate(PIECES if pieces is None else pieces):
        proto.pieces.add(piece=piece, score=-1e6 - number)
    (new / "tokenizer.model").write_bytes(proto.SerializeToString())
    return base, new


def spelled_by_sentencepiece(base: Path, piece: str) -> list[int]:
    """Ids of a piece's text alone: the library told not to put a space before it."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((base / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    return processor.encode(piece.replace("▁", " "))


def make_byte_level(directory: Path, pieces: list[Any] | None = None) -> tuple[Path, Path]:
    """A byte-level BPE with an end-of-text token and its extension, two directories."""
    base, new = directory / "base", directory / "new"
    for path in (base, new):
        path.mkdir(parents=True)
        (path / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "{{ messages }}"}'
        )
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXT, trainer)
    bpe.save(str(base / "tokenizer.json"))
    content = json.loads((base / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    for piece in BYTE_PIECES if pieces is None else pieces:
        vocab[byte_characters(piece)] = len(vocab)
    (new / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    return base, new


def byte_characters(piece: str | bytes) -> str:
    """A piece in GPT-2's characters for bytes: printable Latin-1 is itself, the rest is numbered from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    content = piece.encode() if isinstance(piece, str) else piece
    return "".join(chr(byte if byte in printable else 256 + others.index(byte)) for byte in content)


def spelled_by_merges(base: Path, piece: str | bytes) -> list[int]:
    """Ids of a byte-level piece by the base's merges, the lowest rank and leftmost first."""
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}
    symbols = list(byte_characters(piece))
    while True:
        found = [(ranks[pair], at) for at, pair in enumerate(zip(symbols, symbols[1:], strict=False)) if pair in ranks]
        if not found:
            return [model["vocab"][symbol] for symbol in symbols]
        at = min(found)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def size_of(tokenizer: Path) -> int:
    """The largest id + 1 of a directory's tokenizer."""
    if (tokenizer / "tokenizer.model").is_file():
        return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model")).vocab_size()
    return tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
