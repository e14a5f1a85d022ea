"""Mistakes in what is asked of a training: one line each, and nothing is left behind."""

from __future__ import annotations

import functools
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizer.training.conftest import SIZES

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.train import train_tokenizer


def mistake(inputs: list[Path], output: Path, **options: Any) -> str:
    """The line that a training ends with."""
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(UserError) as raised:
        train_tokenizer(inputs, output, **{"vocab_size": 420, **options})
    assert "\n" not in str(raised.value)
    assert sorted(output.parent.rglob("*")) == before
    return str(raised.value)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt: no such file"),
        ("a.csv", b"x", "unknown kind of file '.csv'; expected .txt or .jsonl or .parquet"),
        ("empty.txt", b"", "empty.txt: no text to train on"),
        ("blank.txt", b"  \n\n \t\n", "blank.txt: no text to train on"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "x"}\n', 'a.jsonl:2: broken line: no key "text" (keys: txt)'),
        ("latin.txt", b"good\ncaf\xe9\n", "latin.txt:2: not UTF-8"),
        ("a.parquet", b"garbage", "a.parquet: not read"),
    ],
)
def test_bad_inputs(tmp_path: Path, kind: str, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in mistake([tmp_path / name], tmp_path / "out", model_type=kind)


@pytest.mark.parametrize(
    ("kind", "small", "large"),
    [
        ("bpe", "a vocabulary of 10 is too small; expected 260 or more", "Vocabulary size too high"),
        ("unigram", "a vocabulary of 10 is too small; expected 260 or more", "Vocabulary size too high"),
        (
            "byte-level-bpe",
            "a vocabulary of 10 is too small; expected 257 or more",
            "1000000 is too large: the text gives",
        ),
        ("wordpiece", "a vocabulary of 10 is too small; expected", "1000000 is too large: the text gives"),
    ],
)
def test_vocabularies_that_do_not_suit_the_text(
    text_file: Path, tmp_path: Path, kind: str, small: str, large: str
) -> None:
    def error(size: int) -> str:
        return mistake([text_file], tmp_path / "out", vocab_size=size, model_type=kind)

    assert error(10).startswith(f"--vocab-size: {small}")
    assert error(1_000_000).startswith("--vocab-size: ")
    assert large in error(1_000_000)
    assert "a vocabulary of 0 ids; expected 1 or more" in error(0)


def test_too_few_ids_for_the_characters(text_file: Path, tmp_path: Path) -> None:
    message = mistake([text_file], tmp_path / "out", vocab_size=265)
    assert "SentencePiece cannot train 265 ids on this text: Vocabulary size is smaller than required_chars" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "byte_level_bpe"}, "unknown kind of model 'byte_level_bpe'.*did you mean byte-level-bpe"),
        (
            {"model_type": "wordpiece", "byte_fallback": False},
            "--byte-fallback: wordpiece does not take it; expected --",
        ),
        ({"model_type": "wordpiece", "pad_token": "<pad>"}, "--pad-token: wordpiece does not take it"),
        ({"lowercase": True}, "--lowercase: bpe does not take it"),
        (
            {"model_type": "byte-level-bpe", "character_coverage": 1},
            "--character-coverage: byte-level-bpe does not take",
        ),
        ({"normalization": "nfc"}, "--normalization: bpe has no 'nfc'; expected one of identity, nfkc"),
        ({"model_type": "wordpiece", "normalization": "nmt_nfkc"}, "wordpiece has no 'nmt_nfkc'; expected one of"),
        ({"special_tokens": ("<a>", "<a>")}, "--special-tokens: the special token '<a>' is there twice"),
        ({"special_tokens": ("</s>",)}, "the special token '</s>' is there twice"),
        ({"special_tokens": ("<p>",), "pad_token": "<p>"}, "the special token '<p>' is there twice"),
        ({"model_type": "wordpiece", "special_tokens": ("[SEP]",)}, "the special token '\\[SEP\\]' is there twice"),
        ({"special_tokens": ("",)}, "'' is no special token; expected text without spaces"),
        ({"special_tokens": ("a b",)}, "'a b' is no special token"),
        ({"model_type": "byte-level-bpe", "special_tokens": ("water",)}, "'water' is a piece of plain text; expected"),
        ({"character_coverage": 0.5}, "--character-coverage: 0.5; expected 0.98 to 1"),
        ({"longest_piece": 1}, "--longest-piece: 1; expected 2 or more"),
    ],
)
def test_options_that_do_not_suit(text_file: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert re.search(message, mistake([text_file], tmp_path / "out", **options))


def test_outputs_that_are_taken_or_cannot_be(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "file").touch()
    expected = "the output exists already; name another one or remove it"
    assert mistake([text_file], tmp_path / "full") == f"{tmp_path / 'full'}: {expected}"
    assert mistake([text_file], tmp_path / "file") == f"{tmp_path / 'file'}: {expected}"
    assert "cannot write: " in mistake([text_file], tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    assert train_tokenizer([text_file], tmp_path / "empty", vocab_size=420) == tmp_path / "empty"
    assert (tmp_path / "empty" / "training.json").is_file()


def test_a_relative_output(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train_tokenizer([text_file], Path("a/b"), vocab_size=420)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "2"], "error: --threads: bpe does not take it; expected byte-level-bpe or wordpiece\n"),
        (["--threads", "0", "--model-type", "wordpiece"], "error: --threads: 0; expected 1 or more\n"),
        (["--no-byte-fallback", "--model-type", "wordpiece"], "error: --byte-fallback: wordpiece does not take it; "),
        (["--share", "1.5"], "error: a share of 1.5; expected more than 0, at most 1\n"),
        (["--model-type", "word"], "error: --model-type: unknown kind of model 'word'"),
    ],
)
def test_mistakes_on_the_command_line(text_file: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    command = [sys.executable, "-m", "megatron_lm_zh", "tokenizer", "train", "--input", str(text_file)]
    asked = [*command, "--vocab-size", "420", "--output", str(tmp_path / "o"), *flags]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_ctrl_c_stops_it_and_leaves_nothing(tmp_path: Path) -> None:
    rng = random.Random(1)
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(0x4E00 + int(rng.expovariate(0.002))) for _ in range(1_500_000)), encoding="utf-8")
    command = [sys.executable, "-m", "megatron_lm_zh", "tokenizer", "train", "--input", str(text)]
    asked = [*command, "--vocab-size", "9000", "--model-type", "unigram", "--output", str(tmp_path / "o")]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert next(line for line in lines if line.startswith("training unigram, 9,000 ids"))
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
