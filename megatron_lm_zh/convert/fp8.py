"""FP8 weights with a scale for each block, as DeepSeek-V3's are published, read as the bf16 weights they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from megatron_lm_zh.convert.engine import Source, TensorSpec
from megatron_lm_zh.errors import UserError

QUANTIZATION = "quantization_config"
SCALE = "_scale_inv"
"""What the name of a weight's scales ends with; a weight is its numbers times them."""

_FP8 = torch.float8_e4m3fn
_SCALES = (torch.float32, torch.bfloat16)
_WHOLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def block_size(config: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """Rows and columns that share a scale, by config.json's quantization_config; None where it has none.

    Raises:
        UserError: the model is quantized in another way.
    """
    told = config.get(QUANTIZATION)
    if told is None:
        return None
    expected = "quant_method fp8 with fmt e4m3 and a weight_block_size, or no quantization"
    if not isinstance(told, Mapping) or told.get("quant_method") != "fp8" or told.get("fmt", "e4m3") != "e4m3":
        method = told.get("quant_method") if isinstance(told, Mapping) else told
        raise UserError(f"{QUANTIZATION} is of quant_method {method!r}", where=where, expected=expected)
    size = told.get("weight_block_size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(one) is int and one > 0 for one in size):
        raise UserError(f"{QUANTIZATION}.weight_block_size is {size!r}", where=where, expected=expected)
    rows, columns = size
    return rows, columns


class Dequantized:
    """A source whose FP8 weights are read as bf16, each number times its block's scale in fp32, rounded once.

    Args:
        source: weights [rows, columns] of dtype float8_e4m3fn with scales of fp32 or bf16 beside them, one for each
            block, those at the lower and right edges being smaller; other tensors are passed on.
        block: rows and columns of a block.
    """

    def __init__(self, source: Source, block: tuple[int, int]) -> None:
        self._source, self._block = source, block

    @property
    def where(self) -> str:
        """The path that errors name."""
        return self._source.where

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor but the scales; UserError where a weight's scales are missing or of another shape."""
        found = dict(self._source.specs)
        for name, spec in self._source.specs.items():
            if spec.dtype == _FP8:
                self._check_scales(name, spec, found.pop(name + SCALE, None))
                found[name] = TensorSpec(spec.shape, torch.bfloat16)
        return found

    def read(self, name: str, part: int | None = None) -> Tensor:
        """One tensor, or `part` of its first axis."""
        if self._source.specs[name].dtype != _FP8:
            return self._source.read(name, part)
        weight = dequantize(self._source.read(name), self._source.read(name + SCALE), self._block)
        return weight if part is None else weight[part]

    def _check_scales(self, name: str, weight: TensorSpec, scales: TensorSpec | None) -> None:
        if scales is None or len(weight.shape) != 2:
            raise UserError(f"{name} is FP8 and has no {name + SCALE}", where=self.where)
        expected = tuple(-(-axis // size) for axis, size in zip(weight.shape, self._block, strict=True))
        if scales.shape != expected or scales.dtype not in _SCALES:
            dtype = str(scales.dtype).removeprefix("torch.")
            raise UserError(
                f"{name + SCALE} has shape {list(scales.shape)} and dtype {dtype}",
                where=self.where,
                expected=f"{list(expected)} for blocks of {list(self._block)}, in float32 or bfloat16",
            )


def dequantize(weight: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """FP8 [m, n] and scales [ceil(m / rows), ceil(n / columns)] to bf16 [m, n], one row of blocks at a time."""
    rows, columns = block
    result = torch.empty(weight.shape, dtype=torch.bfloat16)
    for number, scale in enumerate(scales.float()):
        strip = slice(number * rows, (number + 1) * rows)
        result[strip] = weight[strip].float() * scale.repeat_interleave(columns)[: weight.shape[1]]
    return result


def check_whole(source: Source) -> None:
    """Every tensor is of a dtype that training has, or UserError names one."""
    for name, spec in source.specs.items():
        if spec.dtype not in _WHOLE:
            dtype = str(spec.dtype).removeprefix("torch.")
            raise UserError(f"{name} is {dtype}", where=source.where, expected="float32, bfloat16 or float16 weights")
