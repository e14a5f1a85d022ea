"""A model section as a file: model.yaml beside converted weights, and the config of a run that has just this model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from megatron_lm_zh.config.document import dump, read_document
from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.errors import UserError


def write_model_file(path: Path, model: Model, special_tokens: Mapping[str, Any]) -> None:
    """Writes the model section, in the words of our config, and the ids of the special tokens."""
    text = dump({"model": dataclasses.asdict(model), "special_tokens": dict(special_tokens)})
    path.write_text(text, encoding="utf-8")


def run_config_of(model: Model, dtype: str) -> str:
    """A run's config, on one rank, that has this model in this precision; nothing is trained with it."""
    return dump(
        {
            "run": {"dir": "unused"},
            "model": dataclasses.asdict(model),
            "precision": {"dtype": dtype},
            "data": {"tokenizer": {"type": "HuggingFace", "path": "unused"}, "train": [{"path": "unused"}]},
            "train": {"steps": 1, "global_batch_size": 1},
            "optim": {"lr": 1.0},
        }
    )


def read_model_file(path: Path) -> tuple[Model, dict[str, Any]]:
    """The model section, whose vocab_size is set, and the ids of the special tokens; UserError names the file."""
    values = read_document(path).values
    try:
        model: Model = TypeAdapter(Model).validate_json(json.dumps(values.get("model")))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where=f"{path} model") from error
    special_tokens = values.get("special_tokens")
    if model.vocab_size is None or not isinstance(special_tokens, dict):
        raise UserError("no model.vocab_size or no special_tokens", where=str(path))
    return model, special_tokens
