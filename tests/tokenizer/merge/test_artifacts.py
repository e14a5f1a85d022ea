"""What an extended tokenizer keeps of its base's directory."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizer.merge.conftest import CHAT, chinese

from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.merge.artifacts import write_extension
from megatron_lm_zh.tokenizer.merge.bases import load_base
from megatron_lm_zh.tokenizer.merge.construct import extend_from_corpus


def extended(base: Path, directory: Path) -> Path:
    write_extension(extend_from_corpus(load_base(base), chinese(300), 20), directory)
    return directory


def config_of(directory: Path) -> dict[str, object]:
    return json.loads((directory / "tokenizer_config.json").read_text())


def ids_with_special(directory: Path, text: str) -> list[int]:
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids


def test_a_model_alone_adds_nothing_around_a_text(chat_directory: Path, tmp_path: Path) -> None:
    made = extended(chat_directory / "tokenizer.model", tmp_path / "new")
    ids = load_tokenizer("SentencePiece", made).encode("the people")
    assert ids_with_special(made, "the people") == ids
    assert "chat_template" not in config_of(made)


def test_a_directory_keeps_its_settings(chat_directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    config = config_of(chat_directory) | {
        "add_eos_token": True,
        "auto_map": {"x": "y"},
        "clean_up_tokenization_spaces": 1,
    }
    (source / "tokenizer.model").write_bytes((chat_directory / "tokenizer.model").read_bytes())
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "chat_template.jinja").write_text(CHAT)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool.jinja").write_text("{{ tools }}")
    made = extended(source, tmp_path / "new")
    kept = config_of(made)
    for name in ("bos_token", "pad_token", "padding_side", "model_max_length", "chat_template"):
        assert kept[name] == config[name]
    assert (kept["tokenizer_class"], kept["clean_up_tokenization_spaces"]) == ("PreTrainedTokenizerFast", False)
    assert not {"auto_map", "legacy"} & set(kept)
    assert (made / "chat_template.jinja").read_text() == CHAT
    assert (made / "additional_chat_templates/tool.jinja").read_text() == "{{ tools }}"
    ids = load_tokenizer("SentencePiece", made).encode("the people")
    assert ids_with_special(made, "the people") == [1, *ids, 2]
    # and the next extension takes over what this tokenizer.json says, the same model behind it
    again = extended(made, tmp_path / "again")
    assert ids_with_special(again, "the people") == [1, *ids, 2]
    one, twin = load_tokenizer("SentencePiece", again), load_tokenizer("HuggingFace", again)
    assert one.fingerprint == twin.fingerprint


def test_a_space_before_the_text_stays(byte_level_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    content = json.loads((byte_level_base / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>", "add_prefix_space": true}')
    made = extended(tmp_path, tmp_path / "new")
    ours = load_tokenizer("HuggingFace", made)
    assert ours.encode("the") == ours.encode(" the")
    assert AutoTokenizer.from_pretrained(made)("the people").input_ids == ours.encode("the people")
