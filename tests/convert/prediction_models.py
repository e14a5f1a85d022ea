"""Hugging Face directories as DeepSeek publishes them: modules of multi-token prediction, fp32 biases of the router."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from hf_models import read_json, weights
from safetensors.torch import save_file


def add_predictions(directory: Path, modules: int) -> Path:
    """Adds modules beside the layers of a model, each with a layer like the last one, and counts them in config.json.

    transformers keeps no such tensors, so that the names are put together here as DeepSeek-V3's index has them.
    """
    config = read_json(directory / "config.json")
    tensors = weights(directory)
    generator = torch.Generator().manual_seed(11)
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    dtype = tensors["lm_head.weight"].dtype
    last = f"model.layers.{layers - 1}."
    for number in range(layers, layers + modules):
        module = f"model.layers.{number}."
        for name in [name for name in tensors if name.startswith(last)]:
            old = tensors[name]
            tensors[module + name.removeprefix(last)] = _draw(old.shape, old.dtype, generator)
        for norm in ("enorm", "hnorm", "shared_head.norm"):
            tensors[f"{module}{norm}.weight"] = _draw((hidden,), dtype, generator)
        tensors[module + "eh_proj.weight"] = _draw((hidden, 2 * hidden), dtype, generator)
        tensors[module + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[module + "shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": modules}))
    return directory


def keep_biases_in_fp32(directory: Path) -> Path:
    """Gives the router's biases numbers of fp32 that bf16 has not, in a model of another dtype."""
    tensors = weights(directory)
    generator = torch.Generator().manual_seed(12)
    for name, tensor in tensors.items():
        if name.endswith("e_score_correction_bias"):
            tensors[name] = _draw(tensor.shape, torch.float32, generator)
    save_file(tensors, directory / "model.safetensors")
    return directory


def _draw(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Norms around one half, matrices around zero."""
    return (torch.randn(shape, generator=generator) * 0.1 + (0.5 if len(shape) == 1 else 0)).to(dtype)
