"""FP8 weights in blocks, as DeepSeek-V3's are published: read as bf16, checked, and every other kind refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import CASES, make
from hf_models import read_json, same_bits, weights
from safetensors.torch import save_file

from megatron_lm_zh.convert.fp8 import dequantize
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.errors import UserError

FP8 = torch.float8_e4m3fn
BLOCK = (32, 20)  # of 48 x 48, 32 x 48 and so on: most edges are ragged
QUANTIZED = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}


def plain(weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The definition: each number times the scale of the block that it stands in."""
    rows = torch.arange(weight.shape[0]) // block[0]
    columns = torch.arange(weight.shape[1]) // block[1]
    return (weight.float() * scales.float()[rows[:, None], columns[None]]).to(torch.bfloat16)


def quantized(weight: torch.Tensor, block: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 numbers and a scale for each block, by which its largest number becomes the largest that FP8 has."""
    counts = [-(-axis // size) for axis, size in zip(weight.shape, block, strict=True)]
    scales = torch.empty(counts)
    small = torch.empty(weight.shape, dtype=FP8)
    for i in range(counts[0]):
        for j in range(counts[1]):
            part = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scale = (weight[part].float().abs().max() / 448).to(dtype)
            scales[i, j] = scale
            small[part] = (weight[part].float() / scale.float()).to(FP8)
    return small, scales.to(dtype)


def published(directory: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, dict[str, torch.Tensor]]:
    """A small DeepSeek-V3 in FP8, but for embeddings, norms and router, and the bf16 weights that it stands for."""
    hf = make(CASES["deepseek_v3"], directory, torch.bfloat16)
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, tensor in weights(hf).items():
        stored[name] = meant[name] = tensor
        if "_proj" in name:
            stored[name], stored[name + "_scale_inv"] = quantized(tensor, BLOCK, dtype)
            meant[name] = plain(stored[name], stored[name + "_scale_inv"], BLOCK)
    save_file(stored, hf / "model.safetensors")
    tell(hf, QUANTIZED)
    return hf, meant


def tell(hf: Path, quantization: Any) -> None:
    """Puts a quantization_config into config.json."""
    config = read_json(hf / "config.json") | {"quantization_config": quantization}
    (hf / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("shape", [(128, 256), (130, 300), (1, 1), (127, 129), (257, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_number_is_its_own_times_its_blocks_scale(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator).to(FP8)
    scales = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128), generator=generator).to(dtype)
    found = dequantize(weight, scales, (128, 128))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, plain(weight, scales, (128, 128)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_in_fp8_becomes_the_bf16_model(tmp_path: Path, dtype: torch.dtype) -> None:
    hf, meant = published(tmp_path / "hf", dtype)
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    assert same_bits(weights(tmp_path / "back"), meant)
    config = read_json(tmp_path / "back" / "config.json")
    assert "quantization_config" not in config and config["torch_dtype"] == "bfloat16"


NAME = "model.layers.1.mlp.experts.3.up_proj.weight"
SCALE = NAME + "_scale_inv"
EXPECTED = "expected quant_method fp8"
BROKEN: dict[str, tuple[Any, dict[str, torch.Tensor | None], str]] = {
    "awq": ({"quant_method": "awq", "bits": 4}, {}, f"of quant_method 'awq'; {EXPECTED}"),
    "compressed": ({"quant_method": "compressed-tensors"}, {}, "of quant_method 'compressed-tensors'"),
    "e5m2": (QUANTIZED | {"fmt": "e5m2"}, {}, EXPECTED),
    "no-block": ({"quant_method": "fp8"}, {}, "weight_block_size is None"),
    "zero-block": (QUANTIZED | {"weight_block_size": [0, 128]}, {}, "weight_block_size is [0, 128]"),
    "other-block": (QUANTIZED | {"weight_block_size": [16, 16]}, {}, "_scale_inv has shape"),
    "untold": (None, {}, "float8_e4m3fn; expected float32"),
    "no-scale": (QUANTIZED, {SCALE: None}, f"{NAME} is FP8 and has no {SCALE}"),
    "scale-dtype": (QUANTIZED, {SCALE: torch.ones(1, 3, dtype=torch.float16)}, "and dtype float16; expected [1, 3]"),
    "scale-alone": (QUANTIZED, {NAME: torch.ones(32, 48, dtype=torch.bfloat16)}, f"tensor {SCALE} has no place"),
    "integers": (QUANTIZED, {NAME: torch.ones(32, 48, dtype=torch.int8), SCALE: None}, f"{NAME} is int8"),
    "other-fp8": (QUANTIZED, {NAME: torch.ones(32, 48).to(torch.float8_e5m2), SCALE: None}, "is float8_e5m2"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in FP8."""
    hf, _ = published(tmp_path_factory.mktemp("fp8"))
    return hf


@pytest.mark.parametrize("kind", BROKEN)
def test_anything_else_about_quantization_is_refused(whole: Path, tmp_path: Path, kind: str) -> None:
    quantization, changes, words = BROKEN[kind]
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "config.json").write_bytes((whole / "config.json").read_bytes())
    tensors = {name: changes.get(name, tensor) for name, tensor in weights(whole).items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, hf / "model.safetensors")
    tell(hf, quantization)
    with pytest.raises(UserError) as caught:
        from_hf(hf, tmp_path / "megatron")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "megatron").exists()
