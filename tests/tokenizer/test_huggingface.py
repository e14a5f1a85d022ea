"""Hugging Face directories: tokenizer.json, bare GPT-2 files, converted ones, and what is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.load import load_tokenizer

TEXTS = ["hello world, hello 花开了", "在北京 the end\n\n  x = 1", "<|endoftext|> é😀", "", " "]
END = {"content": "<|endoftext|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    return tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory as `save_pretrained` writes it, with truncation and padding switched on by a former user."""
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=16)
    path = tmp_path / "hf"
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": {"__type": "AddedToken", **END}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_encodes_plain_text_whole(directory: Path) -> None:
    tokenizer = load_tokenizer("HuggingFaceTokenizer", directory)
    assert tokenizer.eod == 0
    assert tokenizer.vocab_size == byte_level().get_vocab_size()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.eod not in ids
        assert tokenizer.decode(ids) == text
        np.testing.assert_array_equal(tokenizer.token_sizes()[ids].sum(axis=0), (len(text.encode()), len(text)))
    assert tokenizer.decode([0, *tokenizer.encode("hello"), 0]) == "hello"
    assert tokenizer.token_sizes()[0].tolist() == [0, 0]


def test_saves_the_same_files_which_load_the_same(directory: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "model.safetensors").write_text("weights")
    tokenizer = load_tokenizer("HuggingFace", directory)
    target = tmp_path / "copy"
    target.mkdir()
    tokenizer.save_huggingface(target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in directory.iterdir() if path.name != "model.safetensors"
    }
    assert load_tokenizer("HuggingFace", target).fingerprint == tokenizer.fingerprint
    auto = AutoTokenizer.from_pretrained(target)
    for text in TEXTS:
        assert auto(text, add_special_tokens=False, split_special_tokens=True).input_ids == tokenizer.encode(text)


def test_fingerprint_is_of_the_content(directory: Path) -> None:
    tokenizer = load_tokenizer("HuggingFace", directory)
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content, indent=7))
    assert load_tokenizer("HuggingFace", directory).fingerprint == tokenizer.fingerprint
    content["model"]["merges"].pop()
    file.write_text(json.dumps(content))
    assert load_tokenizer("HuggingFace", directory).fingerprint != tokenizer.fingerprint


def test_bare_gpt2_files(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source, target = tmp_path / "gpt2", tmp_path / "hf"
    source.mkdir()
    target.mkdir()
    byte_level().model.save(str(source))
    tokenizer = load_tokenizer("HuggingFace", source)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.eod not in tokenizer.encode(text)
    tokenizer.save_huggingface(target)
    auto = AutoTokenizer.from_pretrained(target)
    assert auto.eos_token_id == tokenizer.eod
    assert auto(TEXTS[0]).input_ids == tokenizer.encode(TEXTS[0])
    assert load_tokenizer("HuggingFace", target).fingerprint == tokenizer.fingerprint


def test_older_files_are_converted(tmp_path: Path) -> None:
    source = tmp_path / "qwen2"
    source.mkdir()
    byte_level().model.save(str(source))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "model_max_length": 32}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer("HuggingFace", source)
    assert tokenizer.eod == 0
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_no_tokenizer_is_one_line(directory: Path, tmp_path: Path) -> None:
    def error(path: Path) -> str:
        with pytest.raises(UserError) as raised:
            load_tokenizer("HuggingFace", path)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)
        return str(raised.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "transformers finds no tokenizer in it (it is empty)" in error(empty)
    assert "no such directory" in error(tmp_path / "none")
    assert "no such directory" in error(directory / "tokenizer.json")
    config = directory / "tokenizer_config.json"
    config.write_text("{}")
    assert "no end-of-sequence token" in error(directory)
    config.write_text('{"eos_token": "<end>"}')
    assert "'<end>' is not in the vocabulary" in error(directory)
    config.write_text("[")
    assert "not JSON" in error(directory)
    config.write_text('{"eos_token": "<|endoftext|>"}')
    (directory / "tokenizer.json").write_bytes(b"\xff\x00garbage")
    assert "no tokenizer can be loaded" in error(directory)
