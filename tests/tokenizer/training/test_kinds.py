"""Every kind of tokenizer that is trained: what it does to text, what loads it, and that it is the same each time."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizer.training.conftest import SIZES, random_texts

from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.train import train_tokenizer

Trained = Callable[[str], Path]
SENTENCEPIECE = ("bpe", "unigram")
LOSSLESS = ("bpe", "unigram", "byte-level-bpe")
SIZE = 420
HOSTILE = [
    "",
    " ",
    "  two spaces  ",
    "tab\tand\nline\r\n\n\n  x",
    "<s>not a token</s><unk><0x0A><|endoftext|>[SEP]",
    "罕见字𠮷😀👨‍👩‍👧 é e\u0301 \u200b\ufeff",
    "a" * 50 + " " * 33 + "-" * 21,
    "\x00\x01",
    "١٢٣ ১২৩ 12.5%",
    "ﬁ ①２ Ａ",
]


def random_unicode(count: int) -> list[str]:
    """Strings of characters of all of Unicode but surrogates and U+2581, which SentencePiece writes for a space."""
    rng = random.Random(3)
    every = [c for c in map(chr, [*range(0xD800), *range(0xE000, 0x30000)]) if c != "\u2581"]
    return ["".join(rng.choices(every, k=rng.randint(1, 20))) for _ in range(count)]


def load(directory: Path) -> Tokenizer:
    return load_tokenizer("SentencePiece" if (directory / "tokenizer.model").exists() else "HuggingFace", directory)


def pieces(directory: Path) -> list[str]:
    """Text of every token in the Hugging Face file, by id."""
    from tokenizers import Tokenizer as Backend

    vocab = Backend.from_file(str(directory / "tokenizer.json")).get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


@pytest.mark.parametrize("kind", SIZES)
def test_transformers_gives_the_same_ids(trained: Trained, kind: str) -> None:
    from transformers import AutoTokenizer

    directory = trained(kind)
    tokenizer, ours = load(directory), load_tokenizer("HuggingFace", directory)
    auto = AutoTokenizer.from_pretrained(directory)
    assert len(auto) == ours.vocab_size == tokenizer.vocab_size == SIZES[kind]
    assert auto.eos_token_id == ours.eod == tokenizer.eod
    assert ours.fingerprint == tokenizer.fingerprint
    words = random_texts(150, seed=5)[:150]
    # In runs of one character a unigram model's ties are broken by rounding, which differs: see docs/tokenizer.md.
    for text in [*words, *HOSTILE[:4]] if kind == "unigram" else [*words, *random_texts(99, 6), *HOSTILE]:
        expected = tokenizer.encode(text)
        assert ours.encode(text) == expected, text
        assert auto(text, add_special_tokens=False, split_special_tokens=True).input_ids == expected, text
        if "<" not in text:
            assert auto(text).input_ids == expected, text  # no special token is added


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_text_comes_back(trained: Trained, kind: str) -> None:
    tokenizer = load(trained(kind))
    for text in [*random_texts(50, seed=9), *HOSTILE, *random_unicode(500)]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eod not in ids


def test_wordpiece_reads_as_bert_does(trained: Trained) -> None:
    tokenizer, names = load(trained("wordpiece")), pieces(trained("wordpiece"))
    assert names[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.eod == 3

    def read(text: str) -> list[str]:
        return [names[id_] for id_ in tokenizer.encode(text)]

    assert read("春天的北京，42") == ["春", "天", "的", "北", "京", "，", "4", "2"]
    assert "##water" in names or "water" in names
    assert "".join(read("underfall")).replace("##", "") == "underfall"  # no such word was in the text
    assert read("罕 water") == ["[UNK]", *read("water")]
    assert tokenizer.decode(tokenizer.encode("hello underwater 春")) == "hello underwater 春"
    assert not [
        name for name in names if name.startswith("##") and ("\u4e00" <= name[2] <= "\u9fff" or name[2] in "，。12")
    ]


def test_wordpiece_counts_the_bytes_of_words(trained: Trained) -> None:
    tokenizer = load_tokenizer("HuggingFace", trained("wordpiece"))
    words = "underwater waterfall 北京 在 中国"
    ids = tokenizer.encode(words)
    assert len(ids) > len(words.split())  # some begin with ##
    assert tokenizer.token_sizes()[ids, 0].sum() == len(words.replace(" ", "").encode())


@pytest.mark.parametrize("kind", SIZES)
def test_the_same_input_gives_the_same_bytes(trained: Trained, text_file: Path, tmp_path: Path, kind: str) -> None:
    """In another process, which hashes otherwise, and with other threads."""
    threads = [] if kind in SENTENCEPIECE else ["--threads", "3"]
    flags = ["--input", text_file, "--vocab-size", SIZES[kind], "--model-type", kind, "--output", tmp_path / "o"]
    program = (
        "import sys; from megatron_lm_zh.cli.main import main_for; status = main_for('tokenizer', 'train'); "
        "assert not {'torch', 'megatron', 'transformers'} & set(sys.modules); raise SystemExit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, [*flags, *threads])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    fingerprint = load(tmp_path / "o").fingerprint
    assert f"{SIZES[kind]} ids, fingerprint {fingerprint[:12]}" in done.stdout
    assert f"{kind}; normalization: none; cleaning: " in done.stdout
    assert "digits: one a token" in done.stdout
    assert done.stderr.startswith("reading: 0.0 of 0.")
    here, there = (
        {path.name: path.read_bytes() for path in place.iterdir()} for place in (trained(kind), tmp_path / "o")
    )
    assert here == there
    model = {"tokenizer.model"} if kind in SENTENCEPIECE else set()
    assert set(here) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "training.json"} | model


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_sentencepiece_is_trained_as_the_library_trains(
    trained: Trained, text_file: Path, tmp_path: Path, kind: str
) -> None:
    sentencepiece.SentencePieceTrainer.train(
        input=str(text_file), model_prefix=str(tmp_path / "alone"), model_type=kind, vocab_size=SIZES[kind],
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, allow_whitespace_only_pieces=True, character_coverage=0.9995,
        max_sentence_length=8192, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    alone = load_tokenizer("SentencePiece", tmp_path / "alone.model")
    assert alone.fingerprint == load(trained(kind)).fingerprint


def test_every_file_format_trains_the_same(trained: Trained, text_file: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = text_file.read_text(encoding="utf-8").split("\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts[:300]))
    pyarrow.parquet.write_table(pyarrow.table({"body": texts[300:]}), tmp_path / "b.parquet")
    from megatron_lm_zh.tokenizer.texts import TextFiles

    files = TextFiles((tmp_path / "a.jsonl", tmp_path / "b.parquet"), json_key="body")
    train_tokenizer(files, tmp_path / "o", vocab_size=SIZES["bpe"])
    assert (tmp_path / "o" / "tokenizer.model").read_bytes() == (trained("bpe") / "tokenizer.model").read_bytes()


def test_the_record_says_what_was_done(text_file: Path, tmp_path: Path) -> None:
    import hashlib
    from importlib.metadata import version

    from megatron_lm_zh.tokenizer.texts import TextFiles

    part = tmp_path / "part.jsonl"
    part.write_text("".join(json.dumps({"text": text}) + "\n" for text in random_texts(400)))
    files = TextFiles((part, text_file), share=0.5, seed=7)
    options: dict[str, Any] = {"normalization": "nfkc", "special_tokens": ("<|a|>",), "longest_piece": 9}
    seen = []
    directory = train_tokenizer(files, tmp_path / "o", vocab_size=350, on_progress=seen.append, **options)
    record = json.loads((directory / "training.json").read_bytes())
    texts = list(files.texts())
    assert record == {
        "model_type": "bpe",
        "options": {
            "vocab_size": 350,
            "special_tokens": ["<|a|>"],
            "pad_token": None,
            "normalization": "nfkc",
            "split_digits": True,
            "byte_fallback": True,
            "character_coverage": 0.9995,
            "longest_piece": 9,
        },
        "cleaning": "none",
        "inputs": [
            {"path": str(path), "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in files.paths
        ],
        "sample": {"json_key": "text", "share": 0.5, "seed": 7},
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "libraries": {"sentencepiece": version("sentencepiece")},
        "vocab_size": 350,
        "end_of_document": 2,
        "fingerprint": load(directory).fingerprint,
    }
    assert 300 < len(texts) < 500
    assert seen[-1].is_read and seen[-1].bytes_done == seen[-1].bytes_total == sum(
        p.stat().st_size for p in files.paths
    )


@pytest.mark.parametrize("kind", SIZES)
def test_digits_are_split_or_not(trained: Trained, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "digits.txt"
    path.write_text("".join(f"year 2024 and 1999 {text}\n" for text in random_texts(200)))
    together = train_tokenizer([path], tmp_path / "o", vocab_size=SIZES[kind], model_type=kind, split_digits=False)

    def with_digits(names: list[str]) -> list[str]:
        return [name for name in names if sum(c.isdigit() for c in name) > 1 and not name.startswith("<0x")]

    apart = train_tokenizer([path], tmp_path / "p", vocab_size=SIZES[kind] - 20, model_type=kind)
    assert not with_digits(pieces(apart))
    assert with_digits(pieces(together))


@pytest.mark.parametrize("kind", SIZES)
def test_special_tokens_are_tokens_where_asked_and_text_elsewhere(text_file: Path, tmp_path: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    added = ("<|im_start|>", "<|im_end|>")
    pad = {} if kind == "wordpiece" else {"pad_token": "<pad>"}
    directory = train_tokenizer(
        [text_file], tmp_path / "o", vocab_size=SIZES[kind], model_type=kind, special_tokens=added, **pad
    )
    names, tokenizer, auto = pieces(directory), load(directory), AutoTokenizer.from_pretrained(directory)
    expected = {
        "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *added],
        "byte-level-bpe": ["<|endoftext|>", "<pad>", *added],
    }.get(kind, ["<unk>", "<s>", "</s>", "<pad>", *added])
    assert names[: len(expected)] == expected
    assert names[auto.pad_token_id] == ("[PAD]" if kind == "wordpiece" else "<pad>")
    start, end = (names.index(token) for token in added)
    text = "<|im_start|>hello water<|im_end|>"
    assert not {start, end} & set(tokenizer.encode(text))
    ids = tokenizer.encode_special(text)
    assert (ids[0], ids[-1]) == (start, end)
    assert auto(text, add_special_tokens=False).input_ids == ids
    assert "im_" not in auto.decode(ids, skip_special_tokens=True)


def test_normalization_is_in_every_file(text_file: Path, tmp_path: Path) -> None:
    cases = [
        ("bpe", "nfkc", "ﬁ２Ａ", "fi2A"),
        ("unigram", "nmt_nfkc_cf", "ﬁ２Ａ", "fi2a"),
        ("byte-level-bpe", "nfc", "e\u0301", "é"),
        ("wordpiece", "nfkc", "ａｎｄ２", "and 2"),
    ]
    for kind, rule, text, expected in cases:
        path = tmp_path / f"{kind}.txt"
        path.write_text(text_file.read_text(encoding="utf-8") + "and fi 2 A a é\n" * 9, encoding="utf-8")
        directory = train_tokenizer(
            [path], tmp_path / kind, vocab_size=SIZES[kind] - 20, model_type=kind, normalization=rule
        )
        for type_ in {"HuggingFace", "SentencePiece"} if kind in SENTENCEPIECE else {"HuggingFace"}:
            tokenizer = load_tokenizer(type_, directory)
            assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_options_do_what_they_say(text_file: Path, tmp_path: Path) -> None:
    def train(name: str, **options: Any) -> Path:
        return train_tokenizer([text_file], tmp_path / name, **{"vocab_size": 150, **options})

    unknown = train("unknown", byte_fallback=False)
    assert "<0x0A>" not in pieces(unknown)
    assert load(unknown).encode("罕")[-1] == 0
    for longest in (2, 3, 5):
        short = train(f"short{longest}", vocab_size=330, longest_piece=longest)
        assert max(map(len, pieces(short)[259:])) == longest
        short = train(f"bytes{longest}", vocab_size=310, model_type="byte-level-bpe", longest_piece=longest)
        assert max(map(len, pieces(short)[1:])) == longest
        short = train(f"wordpiece{longest}", vocab_size=100, model_type="wordpiece", longest_piece=longest)
        assert max(len(piece.removeprefix("##")) for piece in pieces(short)[5:]) == longest
    rare = tmp_path / "rare.txt"
    rare.write_text(text_file.read_text(encoding="utf-8") + "罕", encoding="utf-8")
    for kind, size in {"bpe": 400, "unigram": 360, "wordpiece": 130}.items():
        for coverage in (0.9995, 1.0):
            directory = train_tokenizer(
                [rare], tmp_path / f"{kind}{coverage}", vocab_size=size, model_type=kind, character_coverage=coverage
            )
            assert ("罕" in pieces(directory)) == (coverage == 1)
    lower = train("lower", model_type="wordpiece", lowercase=True)
    assert load(lower).encode("WATER café") == load(lower).encode("water cafe")
