"""Extended tokenizers: everything reached, nothing moved, all files agree."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from tokenizer.merge.conftest import ENGLISH, chinese

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.merge.artifacts import write_extension
from megatron_lm_zh.tokenizer.merge.bases import load_base
from megatron_lm_zh.tokenizer.merge.construct import Extension, Rules, extend_from_corpus, extend_from_donor
from megatron_lm_zh.tokenizer.merge.donors import load_donor
from megatron_lm_zh.tokenizer.merge.pieces import bits_of, has_anchor, refusal
from megatron_lm_zh.tokenizer.merge.ranking import (
    BLOCK,
    Ranked,
    pruned,
    squares_by_block,
    token_counts,
    tokens_in,
    unreachable,
)

TYPES = {"sentencepiece": "SentencePiece", "byte-level": "HuggingFace"}
EDGES = [
    "",
    " ",
    "   ",
    "</s>",
    "我们</s>",
    "<|end|>",
    "👨‍👩‍👧我们",
    "ＡＢＣ１２",
    "\t我们\r\n",
    "𠮷𠮷",
    "“我们”",
    "２０２４年",
    "\x00我",
]


def fuzzed(count: int) -> list[str]:
    rng = random.Random(7)
    alphabet = [*"abc 1\n\t", " ", "  ", "我们", "今天", "，", "。", "“", "龘", "😀", "\u3000", "é", "TiDB", "人工智能"]
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 25))) for _ in range(count)]


@pytest.fixture(params=["sentencepiece", "byte-level"])
def base_path(request: pytest.FixtureRequest, sentencepiece_base: Path, byte_level_base: Path) -> Path:
    return sentencepiece_base if request.param == "sentencepiece" else byte_level_base


def extended(path: Path, **options: object) -> Extension:
    return extend_from_corpus(load_base(path), chinese(600), 90, Rules(**options))  # type: ignore[arg-type]


def checked(extension: Extension, base_path: Path, directory: Path) -> Tokenizer:
    """Writes it, and checks all that every extension promises."""
    tokenizer = write_extension(extension, directory)
    base = load_tokenizer(TYPES[extension.base.kind], base_path)
    assert tokenizer.vocab_size == base.vocab_size + len(extension.pieces)
    assert tokenizer.eod == base.eod
    assert unreachable(load_base(directory)) == unreachable(load_base(base_path))
    other = load_tokenizer("HuggingFace", directory)
    for text in [*ENGLISH.split("\n"), *EDGES[:4], "1234567", "“quoted” — text…"]:
        assert tokenizer.encode(text) == base.encode(text)
    for text in [*EDGES, *fuzzed(300), *chinese(40, seed=1)]:
        ids = tokenizer.encode(text)
        assert other.encode(text) == ids, text
        assert tokenizer.decode(ids) == base.decode(base.encode(text))
    return tokenizer


@pytest.mark.parametrize("joins", ["words", "punctuation"])
def test_learnt_pieces_are_reached_and_move_nothing(base_path: Path, tmp_path: Path, joins: str) -> None:
    extension = extended(base_path, joins=joins)
    assert len(extension.pieces) == 90
    tokenizer = checked(extension, base_path, tmp_path / "new")
    for text in extension.pieces:
        assert bits_of(text) is not None
        assert has_anchor(text)
    held_out = [line.strip() for line in chinese(50, seed=2)]
    base = load_tokenizer(TYPES[extension.base.kind], base_path)
    tokens = sum(len(tokenizer.encode(line)) for line in held_out)
    assert tokens < 0.5 * sum(len(base.encode(line)) for line in held_out)
    # what the library does is what the construction counted
    assert tokens == tokens_in(extension.ranked.encode(held_out))


def test_is_repeatable_whatever_the_threads(base_path: Path) -> None:
    assert extended(base_path).pieces == extended(base_path, threads=3).pieces


def test_special_tokens_and_files_stay(byte_level_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    extension = extended(byte_level_base)
    tokenizer = checked(extension, byte_level_base, tmp_path / "new")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert loaded.eos_token_id == tokenizer.eod
    assert loaded.chat_template == "{{ messages }}"
    loaded.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in [*fuzzed(100), *chinese(20, seed=3)]:
        expected = tokenizer.encode(text)
        assert loaded.encode(text, add_special_tokens=False) == expected
        assert again.encode(text, add_special_tokens=False) == expected
    assert loaded("<|end|>", add_special_tokens=False).input_ids == [tokenizer.eod]


def test_a_model_loads_in_transformers(sentencepiece_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = checked(extended(sentencepiece_base), sentencepiece_base, tmp_path / "new")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new")
    loaded.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in [*fuzzed(100), *chinese(20, seed=3)]:
        expected = tokenizer.encode(text)
        assert loaded.encode(text, add_special_tokens=False) == expected
        assert again.encode(text, add_special_tokens=False) == expected


@pytest.mark.parametrize("with_text", [False, True])
def test_a_unigram_donor_is_converted(base_path: Path, unigram_donor: Path, tmp_path: Path, with_text: bool) -> None:
    base, donor = load_base(base_path), load_donor(unigram_donor)
    extension = extend_from_donor(base, donor, chinese(200) if with_text else ())
    tokenizer = checked(extension, base_path, tmp_path / "new")
    left_out = {one.text: one.reason for one in extension.dropped}
    wanted = [text for text in donor.pieces if text not in base.texts]
    for text in wanted:
        assert (text in extension.pieces) != (text.decode() in left_out), text
        assert left_out.get(text.decode()) in (refusal(text), "no merges of the base's and the donor's pieces make it")
    assert sum(text in extension.pieces for text in wanted) > 0.95 * sum(refusal(text) is None for text in wanted)
    assert sum(text not in donor.pieces for text in extension.pieces) == extension.intermediates
    assert "no Chinese character: it could change other text" in left_out.values()
    record = json.loads((tmp_path / "new/extension.json").read_text())
    assert record["fingerprint"] == tokenizer.fingerprint
    assert {one["text"]: one["reason"] for one in record["dropped"]} == left_out


def test_a_base_that_normalises_keeps_doing_so(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ENGLISH * 20).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.getvalue())
    extension = extended(path, joins="words")
    tokenizer = write_extension(extension, tmp_path / "new")
    base = load_tokenizer("SentencePiece", path)
    texts = ["ＡＢ  we are", "我们，今天。", "  人工智能  数据库 ", *chinese(30, seed=5)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == base.decode(base.encode(text))
    assert sum(len(tokenizer.encode(text)) for text in texts) == tokens_in(extension.ranked.encode(texts))
    assert unreachable(load_base(tmp_path / "new")) == unreachable(load_base(path))


def test_a_word_of_one_place_goes_before_one_of_many(sentencepiece_base: Path) -> None:
    ranked = Ranked(load_base(sentencepiece_base), tuple(map(str.encode, ["甲", "乙", "丙", "丁", "甲乙", "丙丁"])))
    text = "甲乙。" * 20 + ("q7 " * BLOCK + "丙丁。") * 20
    symbols = ranked.encode([text])
    counts = token_counts(symbols, max(ranked.symbols.values()) + 1)
    squares = squares_by_block(symbols, len(counts))
    one_place, many = ranked.symbols["甲乙".encode()], ranked.symbols["丙丁".encode()]
    assert counts[one_place] == counts[many] == 20
    assert (squares[one_place], squares[many]) == (400, 20)
    spelled = ranked.spell([text])
    assert pruned(ranked, spelled, 5) == (*ranked.pieces[:4], ranked.pieces[5])
    assert pruned(ranked, spelled, 5, fixed=5) == ranked.pieces[:5]


def test_more_is_learnt_behind_a_donor(base_path: Path, unigram_donor: Path, tmp_path: Path) -> None:
    base = load_base(base_path)
    donor = extend_from_donor(base, load_donor(unigram_donor))
    texts = [text.replace("数据库", "鷄鴨鵝") for text in chinese(600)]
    extension = extend_from_corpus(base, texts, 25, behind=donor)
    assert len(extension.pieces) == len(donor.pieces) + 25
    assert extension.pieces[: len(donor.pieces)] == donor.pieces
    assert "鷄鴨鵝".encode() in extension.pieces
    assert extension.intermediates == donor.intermediates
    assert not {one.text for one in extension.dropped} & {text.decode(errors="replace") for text in extension.pieces}
    tokenizer = checked(extension, base_path, tmp_path / "new")
    before = write_extension(donor, tmp_path / "donor")
    assert len(tokenizer.encode(texts[0])) < len(before.encode(texts[0]))


def test_intermediates_can_be_bounded(sentencepiece_base: Path, unigram_donor: Path) -> None:
    base, donor = load_base(sentencepiece_base), load_donor(unigram_donor)
    none, some, free = (extend_from_donor(base, donor, (), Rules(intermediates=n)) for n in (0, 5, None))
    counts = [sum(len(text.decode()) > 1 and text not in donor.pieces for text in e.pieces) for e in (none, some, free)]
    assert counts[0] == 0
    assert counts[1] <= 5 < counts[2]
    assert len(none.dropped) >= len(some.dropped) > len(free.dropped)


def test_a_list_of_words_is_a_donor(sentencepiece_base: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("人工智能\n数据库\n2024\ncreate people\n学 习\n", encoding="utf-8")
    extension = extend_from_donor(load_base(sentencepiece_base), load_donor(tmp_path / "words.txt"))
    tokenizer = checked(extension, sentencepiece_base, tmp_path / "new")
    assert len(tokenizer.encode("人工智能数据库")) <= 3
    assert {one.text: one.reason for one in extension.dropped} == {
        "2024": "several digits",
        "create people": "no Chinese character: it could change other text",
        "学 习": "a space inside",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("我们", None),
        (" 我们", None),
        ("，但", None),
        ("”。", None),
        ("12", "several digits"),
        ("第1", "a digit among other characters"),
        ("——", "no Chinese character: it could change other text"),
        ("TiDB集群", "mixed scripts"),
        ("我 们", "a space inside"),
    ],
)
def test_what_may_be_a_piece(text: str, reason: str | None) -> None:
    assert refusal(text.encode()) == reason


def test_refuses_what_is_no_base(unigram_donor: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unigram model has no merges"):
        load_base(unigram_donor)
    (tmp_path / "broken.model").write_bytes(b"\x07garbage" * 9)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_base(tmp_path / "broken.model")
    with pytest.raises(UserError, match="no such directory"):
        load_base(tmp_path / "nowhere")
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "[SEP]": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[SEP]"}')
    with pytest.raises(UserError, match="WordPiece that is no byte-level BPE"):
        load_base(tmp_path)


def test_says_what_is_wrong(sentencepiece_base: Path, tmp_path: Path) -> None:
    base = load_base(sentencepiece_base)
    with pytest.raises(UserError, match=r"the text gives \d+ pieces, not 5,000"):
        extend_from_corpus(base, chinese(20), 5000)
    with pytest.raises(UserError, match="0 pieces"):
        extend_from_corpus(base, chinese(20), 0)
    with pytest.raises(UserError, match="--joins all"):
        extend_from_corpus(base, chinese(20), 5, Rules("all"))
    (tmp_path / "file").write_text("there")
    with pytest.raises(UserError, match="the output exists already"):
        write_extension(Extension(base, ()), tmp_path)
