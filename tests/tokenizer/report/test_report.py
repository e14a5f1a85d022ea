"""The audit: it finds what a careless merge breaks, and shows it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import tokenizers
from tokenizer.merge.conftest import ENGLISH, chinese
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_lm_zh.cli.tokenizer_tools import merge as merge_command
from megatron_lm_zh.cli.tokenizer_tools import report as report_command
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.byte_level import byte_alphabet
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.report.domains import read_domain
from megatron_lm_zh.tokenizer.report.figures import Domain, Example, audit, open_tokenizer, scripts_of
from megatron_lm_zh.tokenizer.report.page import page
from megatron_lm_zh.tokenizer.report.rows import piece_lists, text_lists
from megatron_lm_zh.tokenizer.report.spans import token_bytes
from megatron_lm_zh.tokenizer.spm_file import parse_model, with_pieces


def run(module: object, *arguments: object) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return int(module.run(parser.parse_args(list(map(str, arguments)))))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def careless(sentencepiece_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model's pieces poured in with the best score of all, as many do."""
    pieces = ["人", "工", "智", "能", "人工", "能人", "人工智能", "12", "TiDB集", "我们的一个"]
    own = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_base))
    pairs = ["people"[at : at + 2] for at in range(5)]
    pieces.append(next(pair for pair in pairs if own.piece_to_id(pair) == own.unk_id()))  # it breaks the word
    size = load_tokenizer("SentencePiece", sentencepiece_base).vocab_size + len(pieces)
    content = with_pieces(sentencepiece_base.read_bytes(), [(piece, 0.0) for piece in pieces], size)
    path = tmp_path_factory.mktemp("careless") / "careless.model"
    path.write_bytes(content)
    return path


def test_finds_what_a_careless_merge_breaks(sentencepiece_base: Path, careless: Path) -> None:
    base, opened = open_tokenizer(sentencepiece_base), open_tokenizer(careless)
    english = Domain("en", tuple(line for line in ENGLISH.split("\n") if line))
    figures = audit(opened, base, [english, Domain("zh", ("人工智能12", "能人"))])
    assert figures.added == 11
    assert figures.multi_digit == ("12",)
    assert figures.script_crossing == ("TiDB集",)
    assert figures.domains[0].changed == 2
    assert figures.domains[1].han_characters == 6
    assert figures.domains[0].tokens_per_han is None
    # what the library says of each piece's own text
    processor = sentencepiece.SentencePieceProcessor(model_file=str(careless))
    known = {piece.replace("\u2581", " ") for piece in map(processor.id_to_piece, range(processor.vocab_size()))}
    dead = {*(figures.unreachable_added or ()), *(figures.unreachable_base or ())}
    assert "人工智能" in dead
    assert " people" in known & dead
    for text in ["人工", "能人", "people", "人工智能", "create", "12"]:
        if text in known:
            alone = processor.encode("\n" + text)[2:]
            assert (len(alone) == 1) == (text not in dead), text
    own = audit(base, base, [english])
    assert (own.added, own.unreachable_added, own.unreachable_base) == (0, (), ())
    assert own.domains[0].changed is None


def test_names_what_to_look_at(sentencepiece_base: Path, careless: Path) -> None:
    base, opened = open_tokenizer(sentencepiece_base), open_tokenizer(careless)
    long = "read it " * 100 + "the people of the city"
    found = audit(opened, base, [Domain("en", ("it", long, "people")), Domain("odd", ("a\u2581b",))], examples=1)
    (example,) = found.domains[0].changed_examples
    assert (found.domains[0].changed, example.number) == (2, 2)
    assert len(example.text) < 300
    assert "the people" in example.text
    assert found.domains[1].round_trip_examples == (Example(1, "a\u2581b"),)
    assert found.moved == 0
    assert "人工智能" in found.unused
    assert found.used_added == sum(count > 0 for count in found.usage) / 11
    content = json.loads(json.dumps(found.to_json()))
    assert content["domains"][0]["characters_per_token"] == found.domains[0].characters / found.domains[0].tokens
    assert [name for name, _ in piece_lists(found)] == [
        "unreachable added",
        "unreachable base",
        "several digits",
        "mixed scripts",
        "added, used in no text",
    ]
    assert ("not lossless", "odd", 1) in [entry[:3] for entry in text_lists(found)]


def test_tokens_of_several_scripts_are_counted(sentencepiece_base: Path, careless: Path) -> None:
    base, opened = open_tokenizer(sentencepiece_base), open_tokenizer(careless)
    found = audit(opened, base, [Domain("zh", ("的TiDB集", "TiDB集TiDB集", "人工"))])
    piece = next(id_ for id_, text in opened.vocabulary.pieces.items() if text == "TiDB集".encode())
    times = sum(opened.tokenizer.encode(text).count(piece) for text in ("的TiDB集", "TiDB集TiDB集"))
    assert found.domains[0].mixed_tokens == times


@pytest.fixture(scope="module")
def word_piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    made.train_from_iterator([ENGLISH, *chinese(50)], trainer)
    directory = tmp_path_factory.mktemp("word_piece")
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "[SEP]"}')
    return directory


def test_unrelated_tokenizers(sentencepiece_base: Path, unigram_donor: Path, word_piece: Path) -> None:
    base, unigram, words = map(open_tokenizer, (sentencepiece_base, unigram_donor, word_piece))
    domains = [Domain("zh", tuple(line.strip() for line in chinese(30, seed=5)))]
    of_unigram, of_words = audit(unigram, base, domains), audit(words, base, domains)
    assert (of_unigram.kind, of_words.kind) == ("SentencePiece unigram", "WordPiece")
    for found in (of_unigram, of_words):
        assert found.moved > 100
        assert found.domains[0].changed is None
        assert found.domains[0].disagreements is None
        assert found.added > 50
        assert 0 < (found.used_added or 0) <= 1
    assert of_words.unreachable_added is of_words.unreachable_base is None
    assert of_words.domains[0].round_trip_failures == 30  # WordPiece forgets where spaces were
    # a piece of a unigram model that costs more than its parts is never chosen, in whatever text
    pieces = [piece.text for piece in unigram.tokenizer.model.pieces]  # type: ignore[attr-defined]
    dead = set(of_unigram.unreachable_added or ())
    texts = [*chinese(400, seed=6), *(piece.replace("\u2581", " ") for piece in pieces)]
    seen = {pieces[id_].replace("\u2581", " ") for text in texts for id_ in unigram.tokenizer.encode(text)}
    assert not dead & seen
    assert audit(words, words, domains).added == 0


def test_a_pre_tokenizer_may_cut_a_piece(tmp_path: Path, byte_level_base: Path) -> None:
    content = json.loads((byte_level_base / "tokenizer.json").read_bytes())
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    left, right = "。".encode(), "我们".encode()
    alphabet = {byte: character for character, byte in byte_alphabet().items()}

    def name(text: bytes) -> str:
        return "".join(alphabet[byte] for byte in text)

    for text in (left, right, left + right):  # spelled by merges, byte by byte
        for end in range(2, len(text) + 1):
            if name(text[:end]) not in vocab:
                vocab[name(text[:end])] = 2000 + len(vocab)
                merges.append([name(text[: end - 1]), name(text[end - 1 : end])])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_bytes((byte_level_base / "tokenizer_config.json").read_bytes())
    found = audit(open_tokenizer(tmp_path), open_tokenizer(byte_level_base), [Domain("zh", ("他说。我们。",))])
    assert "。我们" in (found.unreachable_added or ())  # GPT-2's pattern parts marks from letters
    assert "。" not in (found.unreachable_added or ())
    assert found.unreachable_base == found.multi_digit == ()  # parts of characters are no digits


def test_scripts() -> None:
    assert scripts_of("，但是12") == {"Han"}
    assert scripts_of("的ひらカタ") == {"Japanese"}
    assert scripts_of("Go语言") == {"Latin", "Han"}
    assert scripts_of("5 µm ªＡ") == {"Latin"}
    assert scripts_of("人々") == {"Han"}


def test_tokens_are_cut_where_they_end(sentencepiece_base: Path, byte_level_base: Path) -> None:
    for type_, path in (("SentencePiece", sentencepiece_base), ("HuggingFace", byte_level_base)):
        tokenizer = load_tokenizer(type_, path)
        ids = tokenizer.encode("people 我x")
        pieces = token_bytes(tokenizer, "people 我x", ids)
        assert len(pieces) == len(ids)
        assert b"".join(pieces).decode().strip() == "people 我x"
    tokenizer = load_tokenizer("HuggingFace", byte_level_base)
    assert token_bytes(tokenizer, "龘", tokenizer.encode("龘")) == [b"\xe9", b"\xbe", b"\x98"]


def test_commands(sentencepiece_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "zh.txt"
    text.write_text("".join(chinese(400)), encoding="utf-8")
    (tmp_path / "en.txt").write_text(ENGLISH)
    new = tmp_path / "new"
    made = ("--base", sentencepiece_base, "--corpus", text, "--add", 60, "--output", new)
    assert run(merge_command, *made) == 0
    assert "60 of them new" in capsys.readouterr().out
    files = (
        "--text",
        f"Chinese={text}",
        tmp_path / "en.txt",
        "--json",
        tmp_path / "r.json",
        "--html",
        tmp_path / "r.html",
    )
    assert run(report_command, sentencepiece_base, f"<new>={new}", *files) == 0
    shown = capsys.readouterr().out
    assert "Chinese" in shown
    base, audited = json.loads((tmp_path / "r.json").read_text())
    assert audited["unreachable_added"] == audited["unreachable_base"] == []
    chinese_figures, english = audited["domains"]
    assert english["changed"] == english["disagreements"] == chinese_figures["disagreements"] == 0
    assert chinese_figures["round_trip_failures"] == 0
    assert chinese_figures["tokens_per_han"] < base["domains"][0]["tokens_per_han"]
    assert sum(audited["lengths"].values()) == audited["added"] == 60
    shown = (tmp_path / "r.html").read_text()
    assert "&lt;new&gt;" in shown
    assert "<new>" not in shown
    assert shown.count("<svg") == 1
    assert not re.search(r"(src|href)=|url\(|@import", shown)  # it loads nothing
    assert "prefers-color-scheme:dark" in shown
    for heading in ("By domain", "Bytes per token", "Lengths of added pieces", "What was found", "Side by side"):
        assert heading in shown, heading


def test_page_has_no_markup_of_texts(sentencepiece_base: Path) -> None:
    base = open_tokenizer(sentencepiece_base, "<i>base")
    domains = [Domain("<b>x", ("<script>alert(1)</script> &amp; \x07 end",))]
    shown = page([audit(base, base, domains)], [base], domains)
    assert "<script" not in shown
    assert "<i>base" not in shown
    assert "<b>x" not in shown
    assert "\x07" not in shown
    parser = HTMLParser()
    parser.feed(shown)
    parser.close()
    assert shown.count("<div") == shown.count("</div>")
    assert shown.count("<span") == shown.count("</span>")


def test_page_marks_what_differs(sentencepiece_base: Path, careless: Path) -> None:
    opened = [open_tokenizer(sentencepiece_base, "base"), open_tokenizer(careless, "careless")]
    domains = [Domain("en", ("they read", "the people of"))]
    audits = [audit(one, opened[0], domains) for one in opened]
    shown = page(audits, opened, domains)
    found = shown[shown.index("What was found") : shown.index("Side by side")]
    assert "changed: 1 texts of en" in found
    assert re.search(r'class="t\d alone" title="id \d+"> people</span>', found)
    assert not re.search(r'alone" title="id \d+"> of</span>', found)


def test_records_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one\\ntwo"}\n{"body": " "}\n{"body": "three"}\n')
    assert read_domain(tmp_path / "a.jsonl", json_key="body") == Domain("a", ("one\ntwo", "three"))
    table = pyarrow.table({"body": ["我们", "他们", "今天"]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert read_domain(tmp_path / "b.parquet", "zh", json_key="body", most=2) == Domain("zh", ("我们", "他们"))
    (tmp_path / "c.txt").write_text("one\r\n\n two\u2028x\n")
    assert read_domain(tmp_path / "c.txt").texts == ("one", " two\u2028x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "none.txt"), "No such file"),
        (("--text", "empty.txt"), "no text in it"),
        (("--text", "binary.txt"), "not UTF-8"),
        (("--text", "text.txt", "--list", "0"), "--list 0"),
        (("--text", "text.txt", "--lines", "-1"), "--lines -1"),
        (("x=again.model", "--text", "text.txt"), "two tokenizers called x"),
    ],
)
def test_bad_reports_are_one_line(
    sentencepiece_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("text.txt").write_text("people\n")
    Path("again.model").write_bytes(sentencepiece_base.read_bytes())
    with pytest.raises(UserError, match=message) as raised:
        run(report_command, f"x={sentencepiece_base}", *arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to add"),
        (("--pieces", "x.txt", "--add", "5"), "--add with --pieces"),
        (("--pieces", "x.txt", "--threads", "0"), "--threads 0"),
        (("--corpus", "x.txt", "--add", "5", "--intermediates", "5"), "--intermediates 5"),
        (("--pieces", "missing.txt"), "no such file"),
        (("--corpus", "x.csv", "--add", "5"), "unknown kind of file"),
    ],
)
def test_bad_flags_are_one_line(sentencepiece_base: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(merge_command, "--base", sentencepiece_base, "--output", tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()


def test_the_protobuf_keeps_what_it_does_not_know(sentencepiece_base: Path) -> None:
    content = sentencepiece_base.read_bytes()
    assert parse_model(content).split_by_unicode_script
    same = sentencepiece.SentencePieceProcessor(model_proto=with_pieces(content, [], 400))
    assert same.encode("the people 我") == sentencepiece.SentencePieceProcessor(model_proto=content).encode(
        "the people 我"
    )
    larger = sentencepiece.SentencePieceProcessor(model_proto=with_pieces(content, [("我们我们", -9e9)], 401))
    assert larger.vocab_size() == 401
    assert larger.id_to_piece(400) == "我们我们"
