"""What cannot be extended is refused by the command in one line that names it, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_hf, weights
from safetensors.torch import save_file
from support.extended import make_byte_level, make_sentencepiece, size_of

from megatron_lm_zh.cli.main import main_for_arguments
from megatron_lm_zh.convert.embedding import extend as module
from megatron_lm_zh.tokenizer.load import load_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model with its tokenizer, the extended one, and where the output shall be."""
    base, new = make_sentencepiece(tmp_path / "tokenizers")
    source = make_hf(tmp_path / "hf", vocab_size=size_of(base))
    load_tokenizer("SentencePiece", base).save_huggingface(source)
    return source, new, tmp_path / "out"


def run(paths: tuple[Path, Path, Path], *more: object) -> int:
    """The command's exit code."""
    source, new, output = paths
    named = ["--from", source, "--tokenizer", new, "--output", output]
    return main_for_arguments(["tokenizer", "embed", *map(str, [*named, *more])])


def refused(paths: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], *more: object) -> str:
    """The one line with which the command refuses; checks that there is no output and no debris."""
    before = sorted(paths[2].parent.iterdir())
    capsys.readouterr()
    assert run(paths, *more) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and sorted(paths[2].parent.iterdir()) == before
    *progress, line = printed.err.splitlines()
    assert line.startswith("error: ") and not any("error" in other for other in progress)
    return line


def config(source: Path, **changes: Any) -> None:
    """Changes config.json; None takes a key away."""
    content = json.loads((source / "config.json").read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (source / "config.json").write_text(json.dumps(kept))


def tensors(source: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the weights."""
    content = weights(source)
    change(content)
    save_file(content, source / "model.safetensors")


INPUT = "model.embed_tokens.weight"
WRONG: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "no config": (lambda source, new: (source / "config.json").unlink(), "hf: no config.json"),
    "broken config": (lambda source, new: (source / "config.json").write_text("{"), "config.json: not JSON"),
    "no vocab_size": (lambda source, new: config(source, vocab_size=None), "config.json: no vocab_size"),
    "vocab_size of text": (lambda source, new: config(source, vocab_size="many"), "config.json: no vocab_size"),
    "other vocab_size": (
        lambda source, new: config(source, vocab_size=340),
        "lm_head.weight has 329 rows; expected 340, which is config.json's vocab_size",
    ),
    "ids beyond": (
        lambda source, new: [config(source, vocab_size=320), tensors(source, cut)],
        "its tokenizer has 329 ids and its embedding 320 rows: id 320 has none; name the tokenizer that",
    ),
    "no weights": (lambda source, new: (source / "model.safetensors").unlink(), "no model.safetensors"),
    "garbage weights": (lambda source, new: (source / "model.safetensors").write_bytes(bytes(99)), "unreadable"),
    "short weights": (lambda source, new: shorten(source / "model.safetensors"), "model.safetensors: unreadable"),
    "no embedding": (
        lambda source, new: tensors(source, lambda content: content.pop(INPUT)),
        "no embedding in its files; expected one of embed_in, ",
    ),
    "no output layer": (
        lambda source, new: tensors(source, lambda content: content.pop("lm_head.weight")),
        "no output layer in its files, though tie_word_embeddings is false",
    ),
    "unknown table": (
        lambda source, new: tensors(source, lambda content: content.update({"model.other.weight": torch.ones(329, 2)})),
        "model.other.weight has a row per id and is no embedding or output layer that is known",
    ),
    "codes": (
        lambda source, new: tensors(source, lambda content: content.update({INPUT: content[INPUT].to(torch.int8)})),
        "model.embed_tokens.weight is I8; expected F32, BF16, F16, F64",
    ),
    "a special id among the new": (
        lambda source, new: config(source, pad_token_id=330),
        "config.json: pad_token_id 330 is no id of its tokenizer, and would become the new '▁天下'; expected an id",
    ),
    "no tokenizer": (
        lambda source, new: strip(source),
        "hf: no tokenizer in it; name the model's own: --base-tokenizer",
    ),
    "no new tokenizer": (lambda source, new: shutil.rmtree(new), "new: no such directory"),
    "garbage tokenizer": (
        lambda source, new: (new / "tokenizer.model").write_bytes(b"\x00\xff" * 50),
        "new/tokenizer.model: not a SentencePiece model",
    ),
    "garbage json": (
        lambda source, new: (new / "tokenizer.json").write_bytes(b"\x00\xff" * 50),
        "new: no tokenizer can",
    ),
    "base as new": (lambda source, new: copy_base(source, new), "new: it has no id that the base has not"),
    "broken record": (lambda source, new: (new / "extension.json").write_text("["), "extension.json: not JSON"),
}


def cut(content: dict[str, torch.Tensor]) -> None:
    """Takes nine rows away."""
    for name in (INPUT, "lm_head.weight"):
        content[name] = content[name][:320].contiguous()


def shorten(path: Path) -> None:
    """Takes the last bytes away."""
    path.write_bytes(path.read_bytes()[:-1])


def strip(source: Path) -> None:
    """Takes the tokenizer away, and leaves its settings."""
    for name in ("tokenizer.json", "tokenizer.model"):
        (source / name).unlink()


def copy_base(source: Path, new: Path) -> None:
    """The base's own tokenizer in the new one's place."""
    shutil.copy(source / "tokenizer.model", new / "tokenizer.model")


@pytest.mark.parametrize("wrong", WRONG)
def test_one_line_names_what_is_wrong(
    model: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    change, words = WRONG[wrong]
    change(model[0], model[1])
    assert words in refused(model, capsys)


def test_a_tokenizer_of_another_kind(model: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    other = make_byte_level(model[2].parent / "other")[1]
    line = refused((model[0], other, model[2]), capsys)
    assert "id 0 is '</s>' and was '<unk>'" in line and "expected a tokenizer that extends" in line


FLAGS: dict[str, tuple[list[object], str]] = {
    "method": (["--method", "scaled_mean"], "no method 'scaled_mean'; expected one of scaled-mean, centred-"),
    "output method": (["--output-method", "means"], "no method 'means'; expected one of"),
    "multiple": (["--pad-to-multiple-of", 0], "rows a multiple of 0; expected 1 or more"),
    "seed": (["--seed", -1], "seed -1; expected 0 or more"),
    "base": (["--base-tokenizer", "nowhere"], "nowhere: no such directory"),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_wrong_flag(model: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], flag: str) -> None:
    arguments, words = FLAGS[flag]
    assert words in refused(model, capsys, *arguments)


def test_an_output_that_is_there(model: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "the output exists already" in refused((model[0], model[1], model[0]), capsys)


def test_a_full_disk(
    model: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    assert "cannot write: No space left on device" in refused(model, capsys)


def test_a_disk_that_is_too_small(
    model: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "do not fit" in refused(model, capsys)


def test_it_works_where_nothing_is_wrong(model: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """With every flag; the model's tokenizer is elsewhere."""
    strip(model[0])
    base = model[1].parent / "base"
    flags = [
        "--method",
        "normal",
        "--output-method",
        "byte-mean",
        "--seed",
        7,
        "--pad-to-multiple-of",
        64,
        "--base-tokenizer",
        base,
    ]
    assert run(model, *flags) == 0
    printed = capsys.readouterr()
    assert "384 rows, 329 of them kept, 10 new, 45 padding" in printed.out
    assert "embed_tokens.weight: normal, mean norm" in printed.out
    assert "lm_head.weight: byte-mean, mean norm" in printed.out
    assert printed.err == "1 of 1: model.safetensors, lm_head.weight, model.embed_tokens.weight\n"
