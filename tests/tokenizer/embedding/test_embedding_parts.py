"""Each new token is made of what the base's own rules make of its text, and of nothing that is put before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from support.extended import (
    BYTE_PIECES,
    PIECES,
    byte_characters,
    make_byte_level,
    make_sentencepiece,
    size_of,
    spelled_by_merges,
    spelled_by_sentencepiece,
)

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.embedding.parts import Parts, find_parts
from megatron_lm_zh.tokenizer.embedding.vocabulary import check_extends, holds_tokenizer, read_vocabulary


def parts_of(base: Path, new: Path) -> Parts:
    """What `new` adds to `base`, in the base's ids."""
    old, extended = read_vocabulary(base), read_vocabulary(new)
    check_extends(extended, old)
    return find_parts(extended, old)


def listed(parts: Parts) -> list[list[int]]:
    """Parts of each new id."""
    return [parts.of(id_) for id_ in range(parts.first, parts.first + parts.count)]


def test_sentencepiece_puts_no_space_before_a_piece(tmp_path: Path) -> None:
    base, new = make_sentencepiece(tmp_path)
    parts = parts_of(base, new)
    assert parts.first == size_of(base) and parts.unspelled == 0
    assert listed(parts) == [spelled_by_sentencepiece(base, piece) for piece in PIECES]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    space = processor.piece_to_id("▁")
    assert processor.encode("，")[0] == space, "the base itself puts a space there"
    assert space not in parts.of(parts.first + PIECES.index("，"))


def test_a_converted_sentencepiece_model_spells_alike(tmp_path: Path) -> None:
    base, new = make_sentencepiece(tmp_path)
    read_vocabulary(base).tokenizer.save_huggingface(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    assert listed(parts_of(tmp_path, new)) == listed(parts_of(base, new))


def test_byte_level_pieces_may_begin_inside_a_character(tmp_path: Path) -> None:
    base, new = make_byte_level(tmp_path)
    parts = parts_of(base, new)
    assert listed(parts) == [spelled_by_merges(base, piece) for piece in BYTE_PIECES]
    sizes = [len(piece.encode() if isinstance(piece, str) else piece) for piece in BYTE_PIECES]
    starts = parts.starts
    assert [int(parts.token_bytes[a:b].sum()) for a, b in zip(starts, starts[1:], strict=False)] == sizes


@pytest.mark.parametrize("make", [make_sentencepiece, make_byte_level])
def test_an_added_token_is_plain_text(tmp_path: Path, make: Callable[..., tuple[Path, Path]]) -> None:
    base, new = make(tmp_path, [])
    read_vocabulary(base).tokenizer.save_huggingface(new)
    (new / "tokenizer.model").unlink(missing_ok=True)
    edit(new / "tokenizer.json", lambda content: content["added_tokens"].append(added(size_of(base), "<|天 the|>")))
    spell = spelled_by_sentencepiece if make is make_sentencepiece else spelled_by_merges
    assert listed(parts_of(base, new)) == [spell(base, "<|天 the|>")]


def test_a_piece_without_any_old_one(tmp_path: Path) -> None:
    """A base without bytes for what it does not know."""
    base, new = make_sentencepiece(tmp_path, ["天下", "龘", "龘天"])
    for path in (base, new):
        proto = sentencepiece_model_pb2.ModelProto.FromString((path / "tokenizer.model").read_bytes())
        kept = [piece for piece in proto.pieces if piece.type != piece.BYTE]
        del proto.pieces[:]
        proto.pieces.extend(kept)
        proto.trainer_spec.byte_fallback = False
        (path / "tokenizer.model").write_bytes(proto.SerializeToString())
    parts = parts_of(base, new)
    assert [len(ids) for ids in listed(parts)] == [2, 0, 1] and parts.unspelled == 1


def test_a_unigram_base(tmp_path: Path) -> None:
    base, new = make_sentencepiece(tmp_path)
    for path in (base, new):
        proto = sentencepiece_model_pb2.ModelProto.FromString((path / "tokenizer.model").read_bytes())
        proto.trainer_spec.model_type = 1
        (path / "tokenizer.model").write_bytes(proto.SerializeToString())
    assert listed(parts_of(base, new)) == [spelled_by_sentencepiece(base, piece) for piece in PIECES]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False))


def added(id_: int, content: str, *, special: bool = True) -> dict[str, Any]:
    """An entry of added_tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": id_, "content": content, **flags}


def swap(content: dict[str, Any]) -> None:
    """Exchanges two ids."""
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def drop(content: dict[str, Any]) -> None:
    """Takes the last 20 tokens away."""
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = dict(list(vocab.items())[:286])
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if "".join(merge) in list(vocab)[:286]]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "moved": (swap, r"id 65 is 'b' and was 'a' \(2 ids of 300 differ\)"),
    "fewer": (drop, r"id 286 is missing and was '.+' \(14 ids of 300 differ\)"),
    "special": (lambda content: content["added_tokens"].append(added(65, "a")), r"id 65 \('a'\) is a special token"),
    "plain": (lambda content: content["added_tokens"][0].update(special=False), r"id 0 \('</s>'\) is no special token"),
    "nothing": (lambda content: [content["model"]["vocab"].popitem() for _ in BYTE_PIECES], "no id that the base has"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_extend_the_base(tmp_path: Path, change: str) -> None:
    base, new = make_byte_level(tmp_path)
    function, message = CHANGES[change]
    edit(new / "tokenizer.json", function)
    with pytest.raises(UserError, match=message) as caught:
        parts_of(base, new)
    assert str(new) in str(caught.value) and "\n" not in str(caught.value)


def test_another_end_of_text(tmp_path: Path) -> None:
    base, new = make_byte_level(tmp_path)
    edit(new / "tokenizer_config.json", lambda config: config.update(eos_token="a"))
    with pytest.raises(UserError, match=r"end-of-sequence token is id 65 \('a'\); expected the base's, 0 \('</s>'\)"):
        parts_of(base, new)


def test_new_ids_in_gaps_of_the_base(tmp_path: Path) -> None:
    base, new = make_byte_level(tmp_path, [])
    last = byte_characters("天")
    for path, ids in ((base, {"far": 320}), (new, {last: 300, "far": 320, "龘": 321})):
        edit(path / "tokenizer.json", lambda content, ids=ids: content["model"]["vocab"].update(ids))
    with pytest.raises(UserError, match=f"id 300 is '{last}', where the base has no token; expected new ids from 321"):
        parts_of(base, new)


def test_another_kind_of_tokenizer(tmp_path: Path) -> None:
    sentencepieces, byte_level = make_sentencepiece(tmp_path / "one"), make_byte_level(tmp_path / "two")
    with pytest.raises(UserError, match="id 0 is '</s>' and was '<unk>'"):
        parts_of(sentencepieces[0], byte_level[1])


def test_a_base_that_is_no_bpe(tmp_path: Path) -> None:
    base, new = make_byte_level(tmp_path)
    for path in (base, new):
        edit(path / "tokenizer.json", lambda content: content.update(model=word_piece(content["model"]["vocab"])))
    with pytest.raises(UserError, match="a WordPiece model; expected a byte-level BPE or a SentencePiece model"):
        parts_of(base, new)


def word_piece(vocab: dict[str, int]) -> dict[str, Any]:
    """A WordPiece model."""
    settings = {"unk_token": "</s>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 99}
    return {"type": "WordPiece", "vocab": vocab, **settings}


def test_a_config_alone_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not holds_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    assert holds_tokenizer(tmp_path)
