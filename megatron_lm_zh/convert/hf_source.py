"""Opens a Hugging Face directory: what its config.json and its tensors together say of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from pathlib import Path
from typing import Any

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.engine import Source
from megatron_lm_zh.convert.fp8 import QUANTIZATION, Dequantized, block_size, check_whole
from megatron_lm_zh.convert.hf_files import CONFIG, HFWeights
from megatron_lm_zh.convert.model_config import from_hf_config
from megatron_lm_zh.convert.prefixed import with_prefix
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.base import HuggingFace
from megatron_lm_zh.families.registry import family_of, huggingface
from megatron_lm_zh.files import read_json


def open_hf(directory: Path) -> tuple[dict[str, Any], Model, Source]:
    """config.json, the model section that it means, and the tensors; FP8 weights are read as bf16.

    Raises:
        UserError: it is no model directory, or of a model that does not convert.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"no {CONFIG}", where=str(directory), expected="a Hugging Face model directory")
    hf_config = read_json(path)
    family = family_of(str(hf_config.get("model_type")))
    source: Source = with_prefix(HFWeights(directory), huggingface(family.name).prefix)
    block = block_size(hf_config, str(path))
    if block is not None:
        source = Dequantized(source, block)
    plain = {key: value for key, value in hf_config.items() if key != QUANTIZATION}
    model = from_hf_config(family, plain, str(path))
    check_whole(source)
    return hf_config, with_predictions_of(model, huggingface(family.name), source.specs), source


def with_predictions_of(model: Model, tables: HuggingFace, names: Container[str]) -> Model:
    """The model with as many modules of multi-token prediction as there are tensors of.

    config.json does not tell: transformers leaves the modules' tensors out and keeps their number.
    """
    row = next((row for row in tables.weights if row.stands == "mtp"), None)
    if row is None:
        return model
    modules = 0
    while row.hf[0].format(layer=model.num_layers + modules) in names:
        modules += 1
    return dataclasses.replace(model, mtp_num_layers=modules or None)
