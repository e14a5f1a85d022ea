"""The engine: a family's table becomes steps, and a step maps one megatron tensor to its HF tensors or back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.ops import OPS, Op, Sizes
from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.families.base import HuggingFace


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor that is not in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def empty(self) -> Tensor:
        """A tensor of this shape and dtype without data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class Source(Protocol):
    """Where tensors come from, one at a time."""

    @property
    def where(self) -> str:
        """The path that errors name."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor there is."""

    def read(self, name: str) -> Tensor:
        """One tensor; UserError where it cannot be read."""


@dataclass(frozen=True)
class Step:
    """One row of the table with its variables filled in."""

    megatron: str
    hf: tuple[str, ...]
    op: Op
    shape: tuple[int, ...]
    """Shape of the megatron tensor."""


@dataclass(frozen=True)
class Conversion:
    """Everything needed to convert one model, in either direction, tensor by tensor."""

    steps: tuple[Step, ...]
    sizes: Sizes
    hf_ignored: frozenset[str]

    @classmethod
    def of(cls, tables: HuggingFace, model: Model, vocab_size: int) -> Conversion:
        """The steps of a family for one model section, in the table's order, layer by layer."""
        sizes = Sizes.of(model, vocab_size)
        steps = []
        for row in tables.weights:
            if row.when is not None and getattr(model, row.when[0]) != row.when[1]:
                continue
            shape = tuple(getattr(sizes, size) for size in row.shape)
            for layer in range(model.num_layers if "{layer}" in row.megatron else 1):
                names = tuple(name.format(layer=layer) for name in row.hf)
                steps.append(Step(row.megatron.format(layer=layer), names, OPS[row.op], shape))
        ignored = {name.format(layer=layer) for name in tables.hf_ignored for layer in range(model.num_layers)}
        return cls(tuple(steps), sizes, frozenset(ignored))

    def plan_to_hf(self, source: Source) -> dict[str, TensorSpec]:
        """Checks every tensor of a megatron source and returns what the HF side will hold, in the steps' order."""
        _check_names(source.where, (step.megatron for step in self.steps), source.specs)
        planned = []
        for step in self.steps:
            spec = source.specs[step.megatron]
            _check_shape(source.where, step.megatron, spec.shape, step.shape)
            for name, tensor in zip(step.hf, step.op.to_hf(spec.empty(), self.sizes), strict=True):
                planned.append((name, TensorSpec(tuple(tensor.shape), spec.dtype)))
        return _once(planned)

    def plan_to_megatron(self, source: Source) -> dict[str, TensorSpec]:
        """Checks every tensor of an HF source and returns what the megatron side will hold, in the steps' order."""
        present = [name for name in source.specs if name not in self.hf_ignored]
        _check_names(source.where, (name for step in self.steps for name in step.hf), present)
        planned = []
        for step in self.steps:
            dtypes = {source.specs[name].dtype for name in step.hf}
            if len(dtypes) > 1:
                raise UserError(f"{', '.join(step.hf)} become one tensor and have different dtypes", where=source.where)
            spec = TensorSpec(step.shape, dtypes.pop())
            for name, tensor in zip(step.hf, step.op.to_hf(spec.empty(), self.sizes), strict=True):
                _check_shape(source.where, name, source.specs[name].shape, tuple(tensor.shape))
            planned.append((step.megatron, spec))
        return _once(planned)

    def to_hf(self, step: Step, source: Source) -> dict[str, Tensor]:
        """The HF tensors of one step, read from a megatron source."""
        return dict(zip(step.hf, step.op.to_hf(source.read(step.megatron), self.sizes), strict=True))

    def to_megatron(self, step: Step, source: Source) -> Tensor:
        """The megatron tensor of one step, read from an HF source."""
        return step.op.to_megatron(tuple(source.read(name) for name in step.hf), self.sizes)


def _check_names(where: str, expected: Iterable[str], present: Iterable[str]) -> None:
    """Every key that is there is taken once and every key that is asked for is there, or UserError names one."""
    counts = Counter(expected)
    twice = [name for name, count in counts.items() if count > 1]
    assert not twice, f"the family's table takes {twice[0]} twice"
    there = set(present)
    missing = [name for name in counts if name not in there]
    unknown = sorted(there - counts.keys())
    if missing:
        close = nearest(missing[0], unknown)
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"no tensor {missing[0]}{more}", where=where, mend=f"there is {close}" if close else "")
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(f"tensor {unknown[0]}{more} has no place in this family", where=where)


def _check_shape(where: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise UserError(f"{name} has shape {list(found)}", where=where, expected=f"{list(expected)} by its config")


def _once(planned: list[tuple[str, TensorSpec]]) -> dict[str, TensorSpec]:
    """The plan as a dict; the family's table must produce every name once."""
    specs = dict(planned)
    assert len(specs) == len(planned), "the family's table makes a tensor twice"
    return specs
