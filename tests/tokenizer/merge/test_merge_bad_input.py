"""What `mlzh tokenizer merge` says to what is no base: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizer.merge.conftest import ENGLISH, chinese, write_tiktoken

from megatron_lm_zh.cli.main import main_for_arguments
from megatron_lm_zh.tokenizer.load import load_tokenizer

Say = Callable[[Path], str]


@pytest.fixture
def say(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Say:
    """The command's one line about a base."""
    (tmp_path / "words.txt").write_text("人工智能\n", encoding="utf-8")

    def line(base: Path, *flags: str) -> str:
        capfd.readouterr()
        arguments = ["--base", base, "--pieces", tmp_path / "words.txt", "--output", tmp_path / "out", *flags]
        assert main_for_arguments(["tokenizer", "merge", *map(str, arguments)]) == 2
        assert not (tmp_path / "out").exists()
        error = capfd.readouterr().err.strip()
        assert len(error.splitlines()) == 1, error
        return error

    return line


def train(path: Path, **options: object) -> Path:
    model = io.BytesIO()
    lines = (ENGLISH * 20 + "".join(chinese(50))).split("\n")
    settings = {"model_type": "bpe", "vocab_size": 250, "normalization_rule_name": "identity", **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, hard_vocab_limit=False, **settings
    )
    path.write_bytes(model.getvalue())
    return path


def test_models_of_another_type(say: Say, tmp_path: Path) -> None:
    assert "a unigram model has no merges" in say(train(tmp_path / "u.model", model_type="unigram"))
    for kind in ("word", "char"):
        assert f"a SentencePiece model of type {kind}" in say(train(tmp_path / "w.model", model_type=kind))
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "[SEP]": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[SEP]"}')
    assert "a WordPiece that is no byte-level BPE" in say(tmp_path)
    assert "a WordPiece that is no byte-level BPE" in say(tmp_path / "tokenizer.json")
    assert "leave out --pattern and --special" in say(tmp_path, "--pattern", "qwen")  # type: ignore[call-arg]


def test_garbage_truncated_and_empty_models(say: Say, sentencepiece_base: Path, tmp_path: Path) -> None:
    content = sentencepiece_base.read_bytes()
    path = tmp_path / "x.model"
    whole = {len(content)}
    for cut in {0, 1, 50, len(content) // 3, len(content) // 2, len(content) - 100, len(content) - 1} - whole:
        path.write_bytes(content[:cut])
        assert "not a SentencePiece model" in say(path), cut
    for garbage in (bytes(range(256)) * 9, b"\0" * 999, b"hello, this is no model\n", b"\x1f\x8b\x08" + content[:500]):
        path.write_bytes(garbage)
        assert "not a SentencePiece model" in say(path)
    assert "no such" in say(tmp_path / "nothing.model")


def test_garbage_truncated_and_empty_directories(say: Say, byte_level_base: Path, tmp_path: Path) -> None:
    content = (byte_level_base / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_bytes((byte_level_base / "tokenizer_config.json").read_bytes())
    for raw in (b"", b"{}", b"[]", b"null", bytes(range(256)), content[: len(content) // 2], content[:-2]):
        (tmp_path / "tokenizer.json").write_bytes(raw)
        assert "no tokenizer can be loaded from it" in say(tmp_path), raw[:9]
    (tmp_path / "tokenizer.json").write_bytes(content)
    for raw in (b"", b"{", b"[1]", b"\xff\xfe\0"):
        (tmp_path / "tokenizer_config.json").write_bytes(raw)
        assert "not JSON" in say(tmp_path) or raw == b"[1]"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "vocab.json").write_bytes(b"\0garbage")
    (bare / "merges.txt").write_bytes(b"\0garbage")
    assert "no tokenizer can be loaded from it" in say(bare)


def test_broken_tiktoken_files(say: Say, ranks: dict[bytes, int], tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path / "x.tiktoken", ranks)
    content = path.read_bytes()
    assert "name a --pattern: qwen, llama3" in say(path)
    flags = ("--pattern", "llama3", "--special", "<|stop|>")
    for raw, message in (
        (b"", "256 of the 256 bytes have no token"),
        (b"".join(content.splitlines(keepends=True)[:100]), "of the 256 bytes have no token"),
        (content[:1001], "broken line"),
        (b"\0\1\2\n" + content, "x.tiktoken:1: broken line"),
        (content + b"!!!! 999\n", "broken line"),
        (content + content.splitlines()[3] + b"\n", "a token for the second time"),
        (content + b"enp6enp6 3\n", "a rank for the second time"),
    ):
        path.write_bytes(raw)
        assert message in say(path, *flags), message  # type: ignore[call-arg]
    path.write_bytes(content)
    assert "did you mean llama3" in say(path, "--pattern", "llama", "--special", "a")  # type: ignore[call-arg]
    twice = ("--pattern", "llama3", "--special", "<a>", "<a>")
    assert "a special token for the second time" in say(path, *twice)  # type: ignore[call-arg]


def test_duplicate_special_tokens(say: Say, byte_level_base: Path, tmp_path: Path) -> None:
    content = json.loads((byte_level_base / "tokenizer.json").read_text())
    config = json.loads((byte_level_base / "tokenizer_config.json").read_text())
    token = content["added_tokens"][0]

    def write(tokens: list[dict[str, object]], **more: object) -> None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": tokens}))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | more))

    write([token, token | {"id": 401}])
    assert "duplicate special token '<|end|>'" in say(tmp_path)
    write([token, token])
    assert "duplicate special token '<|end|>'" in say(tmp_path)
    write([token, token | {"content": "<|pad|>"}])
    assert f"id {token['id']} is that of '<|end|>' and of '<|pad|>'" in say(tmp_path)
    write([token, token | {"content": "<|pad|>", "id": 401}])
    assert "special token '<|pad|>' has id 401 in the file and gets" in say(tmp_path)
    write([token | {"id": 5}])
    assert "id 5 is that of" in say(tmp_path)
    write([token], added_tokens_decoder={str(token["id"]): {"content": "<|other|>"}})
    assert f"tokenizer_config.json: id {token['id']} is that of '<|end|>' and of '<|other|>'" in say(tmp_path)
    write([token], added_tokens_decoder={"x": {}})
    assert "broken added tokens" in say(tmp_path)


def test_files_that_normalise_otherwise(say: Say, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    load_tokenizer("SentencePiece", train(tmp_path / "a.model", normalization_rule_name="nmt_nfkc")).save_huggingface(
        tmp_path / "hf"
    )
    train(tmp_path / "hf/tokenizer.model", remove_extra_whitespaces=False)
    assert "tokenizer.model and tokenizer.json normalise otherwise" in say(tmp_path / "hf")


def test_added_tokens_that_the_model_lacks(say: Say, chat_directory: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((chat_directory / name).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 400, "[X]": 401}')
    assert "2 added tokens that tokenizer.model lacks, the first is '[PAD]' with id 400" in say(tmp_path)
