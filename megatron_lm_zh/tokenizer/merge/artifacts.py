"""An extended tokenizer as files: a .model with a Hugging Face directory, or that alone for a byte-level base."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.processors import TemplateProcessing

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import new_directory, write_bytes
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.byte_level import byte_alphabet
from megatron_lm_zh.tokenizer.extension import RECORD_FILE
from megatron_lm_zh.tokenizer.huggingface import TEMPLATES, HuggingFaceTokenizer
from megatron_lm_zh.tokenizer.merge.bases import Base
from megatron_lm_zh.tokenizer.merge.construct import Extension
from megatron_lm_zh.tokenizer.sentencepiece import MODEL_FILE, SPACE, SentencePieceTokenizer
from megatron_lm_zh.tokenizer.spm_export import settings_of
from megatron_lm_zh.tokenizer.spm_file import PieceType, parse_model, with_pieces

COPIED = ("special_tokens_map.json", "chat_template.jinja", "generation_config.json")
"""Files of a base's directory that stay as they are; additional_chat_templates/ does, too."""
ADDS_BEGINNING = ("Llama", "Gemma", "CodeLlama")
"""Beginnings of the names of transformers' classes that put bos_token before a text unless they are told otherwise."""


def write_extension(extension: Extension, directory: Path) -> Tokenizer:
    """Writes the extended tokenizer's files and loads it from them.

    New ids follow the base's largest one. ``extension.json`` says what was added to which base, and what of a donor was
    left out. What a base's directory says beside the vocabulary is kept: the chat template, special tokens and their
    names, padding_side, model_max_length, what is put around a text's ids.

    Raises:
        UserError: the directory holds files already, or cannot be written.
    """
    with new_directory(directory) as partial:
        tokenizer = _write(extension, partial)
        record = {
            "base_vocab_size": extension.base.vocab_size,
            "pieces": len(extension.pieces),
            "intermediates": extension.intermediates,
            "fingerprint": tokenizer.fingerprint,
            "dropped": [{"text": one.text, "reason": one.reason} for one in extension.dropped],
        }
        write_bytes(partial / RECORD_FILE, _json(record))
    return type(tokenizer)(directory)


def _write(extension: Extension, directory: Path) -> SentencePieceTokenizer | HuggingFaceTokenizer:
    """The tokenizer's files and what of the base's directory goes with them; the tokenizer that they are."""
    base = extension.base
    if base.kind == "byte-level":
        _write_byte_level(extension, directory)
        if base.path.is_dir():
            _copy_others(base.path, directory)
        return HuggingFaceTokenizer(directory)
    write_bytes(directory / MODEL_FILE, _model(extension))
    tokenizer = SentencePieceTokenizer(directory)
    config = _settings(base.path)
    tokenizer.save_huggingface(
        directory, settings=settings_of(config), post_processor=_post_processor(base.path, config, tokenizer)
    )
    if base.path.is_dir():
        _copy_others(base.path, directory)
    return tokenizer


def _model(extension: Extension) -> bytes:
    """The .model: scores of new pieces fall by one from below the lowest score of the base's."""
    content = extension.base.content
    normal = [piece.score for piece in parse_model(content).pieces if piece.type == PieceType.NORMAL]
    lowest = math.floor(min(normal, default=0.0))
    # Scores are kept in 32 bits: far from zero (Llama 2's spaces have -1e9) they are told apart by larger steps.
    step = max(1.0, 2 * float(np.spacing(np.float32(abs(lowest)))))
    scores = [lowest - step * (1 + number) for number in range(len(extension.pieces))]
    if len({float(np.float32(score)) for score in scores}) < len(scores):
        raise UserError(f"scores below {lowest} cannot be told apart in 32 bits", where=str(extension.base.path))
    texts = (text.decode().replace(" ", SPACE) for text in extension.pieces)
    size = extension.base.vocab_size + len(extension.pieces)
    return with_pieces(content, zip(texts, scores, strict=True), size)


def _write_byte_level(extension: Extension, directory: Path) -> None:
    base = extension.base
    content: dict[str, Any] = json.loads(base.content)
    names = {byte: character for character, byte in byte_alphabet().items()}
    spelled = ["".join(names[byte] for byte in text) for text in (*base.texts, *extension.pieces)]
    model = content["model"]
    vocab = model["vocab"]
    # Added tokens stand in the vocabulary too: readers number those that do not behind all others.
    vocab.update({token["content"]: token["id"] for token in content["added_tokens"]})
    vocab.update({spelled[len(base.texts) + i]: base.vocab_size + i for i in range(len(extension.pieces))})
    model["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    for left, right, _, _ in extension.ranked.added_merges.tolist():
        pair = [spelled[left], spelled[right]]
        model["merges"].append(" ".join(pair) if as_text else pair)
    write_bytes(directory / "tokenizer.json", _json(content))
    write_bytes(directory / "tokenizer_config.json", _json(_config(base, content)))


def _copy_others(base: Path, directory: Path) -> None:
    for name in COPIED:
        if (base / name).is_file():
            write_bytes(directory / name, (base / name).read_bytes())
    templates = base / TEMPLATES
    if templates.is_dir():
        shutil.copytree(templates, directory / templates.name)


def _config(base: Base, content: dict[str, Any]) -> dict[str, Any]:
    """The base's tokenizer_config.json for the class that loads tokenizer.json as it is."""
    config = base.named | settings_of(_settings(base.path))
    # transformers 4.46 and later set it in tokenizer.json to what is said here, or to false.
    if (content["pre_tokenizer"] or {}).get("add_prefix_space"):
        config["add_prefix_space"] = True
    return {**config, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


def _settings(base: Path) -> dict[str, Any]:
    """What the files of a base's directory say: special_tokens_map.json, then tokenizer_config.json."""
    files = (base / "special_tokens_map.json", base / "tokenizer_config.json")
    return {k: v for file in files if file.is_file() for k, v in json.loads(file.read_bytes()).items()}


def _post_processor(base: Path, config: dict[str, Any], tokenizer: SentencePieceTokenizer) -> dict[str, Any] | None:
    """What a base's directory puts around a text's ids: as tokenizer.json says, else as the class and its options do.

    A .model alone puts nothing.
    """
    if (base / "tokenizer.json").is_file():
        return json.loads((base / "tokenizer.json").read_bytes()).get("post_processor")
    begins = config.get("add_bos_token", str(config.get("tokenizer_class", "")).startswith(ADDS_BEGINNING))
    around = [("bos_token", begins), ("eos_token", config.get("add_eos_token", False))]
    ids = {piece.text: id_ for id_, piece in enumerate(tokenizer.model.pieces)}
    texts = [_content(config.get(name)) if wanted else None for name, wanted in around]
    if not any(texts):
        return None
    for text in filter(None, texts):
        if text not in ids:
            raise UserError(f"its special token {text!r} is no piece of the .model", where=str(base))
    first, last = ([(text, ids[text])] if text else [] for text in texts)
    single = [*(t for t, _ in first), "$A", *(t for t, _ in last)]
    pair = [*single, *(f"{t}:1" for t, _ in first), "$B:1", *(f"{t}:1" for t, _ in last)]
    made = TemplateProcessing(single=single, pair=pair, special_tokens=list(dict.fromkeys(first + last)))
    return json.loads(made.__getstate__())


def _content(token: object) -> str | None:
    """Text of a special token as tokenizer_config.json names it: by itself or as an object."""
    return token["content"] if isinstance(token, dict) else token  # type: ignore[return-value]


def _json(content: object) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
