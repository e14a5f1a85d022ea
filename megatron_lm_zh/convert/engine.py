"""The engine: a family's table becomes steps, and a step maps one megatron tensor to its HF tensors or back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.ops import OPS, Op
from megatron_lm_zh.convert.sizes import Sizes
from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.families.base import Condition, Given, HuggingFace, WeightRow


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

    def read(self, name: str, part: int | None = None) -> Tensor:
        """One tensor, or `part` of its first axis; UserError where it cannot be read."""


@dataclass(frozen=True)
class Step:
    """One row of the table with its variables filled in."""

    megatron: str
    part: int | None
    """Which expert of the megatron tensor [experts, ...] this is; None: the tensor is no expert's."""
    hf: tuple[str, ...]
    op: Op
    shape: tuple[int, ...]
    """Shape of the megatron tensor, or of this part of it."""
    parts: int | None
    """How many parts the megatron tensor has."""

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the megatron tensor."""
        return self.shape if self.parts is None else (self.parts, *self.shape)


@dataclass(frozen=True)
class Conversion:
    """Everything needed to convert one model, in either direction, tensor by tensor."""

    steps: tuple[Step, ...]
    sizes: Sizes
    copies: Mapping[str, str]
    """HF tensors that repeat another one, and which."""
    hf_ignored: frozenset[str]

    @classmethod
    def of(cls, tables: HuggingFace, model: Model, vocab_size: int) -> Conversion:
        """The steps of a family for one model section, in the table's order, layer by layer."""
        sizes = Sizes(model, vocab_size)
        steps = tuple(step for row in tables.weights for step in _steps_of(row, model, sizes))
        mtp = range(model.num_layers, model.num_layers + (model.mtp_num_layers or 0))
        copies = {row.hf.format(layer=layer): row.of for row in tables.copies for layer in mtp}
        ignored = {name.format(layer=layer) for name in tables.hf_ignored for layer in range(model.num_layers)}
        return cls(steps, sizes, copies, frozenset(ignored))

    def plan_to_hf(self, source: Source) -> dict[str, TensorSpec]:
        """Checks every tensor of a megatron source and returns what the HF side will hold, in the steps' order."""
        _check_names(source.where, list(dict.fromkeys(step.megatron for step in self.steps)), source.specs)
        planned = []
        for step in self.steps:
            spec = source.specs[step.megatron]
            _check_shape(source.where, step.megatron, spec.shape, step.whole_shape)
            empty = TensorSpec(step.shape, spec.dtype).empty()
            for name, tensor in zip(step.hf, step.op.to_hf(empty, self.sizes), strict=True):
                planned.append((name, TensorSpec(tuple(tensor.shape), spec.dtype)))
        specs = _once(planned)
        return specs | {name: specs[of] for name, of in self.copies.items()}

    def plan_to_megatron(self, source: Source) -> dict[str, TensorSpec]:
        """Checks every tensor of an HF source and returns what the megatron side will hold, in the steps' order."""
        present = [name for name in source.specs if name not in self.hf_ignored and name not in self.copies]
        _check_names(source.where, (name for step in self.steps for name in step.hf), present)
        planned: dict[str, TensorSpec] = {}
        for step in self.steps:
            dtypes = {source.specs[name].dtype for name in step.hf}
            if len(dtypes) > 1:
                raise UserError(f"{', '.join(step.hf)} become one tensor and have different dtypes", where=source.where)
            spec = TensorSpec(step.whole_shape, dtypes.pop())
            empty = TensorSpec(step.shape, spec.dtype).empty()
            for name, tensor in zip(step.hf, step.op.to_hf(empty, self.sizes), strict=True):
                _check_shape(source.where, name, source.specs[name].shape, tuple(tensor.shape))
            if planned.setdefault(step.megatron, spec) != spec:
                raise UserError(f"{step.hf[0]} has another dtype than the other experts", where=source.where)
        return planned

    def to_hf(self, step: Step, source: Source) -> dict[str, Tensor]:
        """The HF tensors of one step, read from a megatron source."""
        tensor = source.read(step.megatron, step.part)
        made = dict(zip(step.hf, step.op.to_hf(tensor, self.sizes), strict=True))
        return made | {name: made[of] for name, of in self.copies.items() if of in made}

    def to_megatron(self, step: Step, source: Source) -> Tensor:
        """The megatron tensor of one step, or its part of it, read from an HF source."""
        return step.op.to_megatron(self._hf_tensors(step, source), self.sizes)

    def blocks(self, step: Step, source: Source) -> Sequence[Tensor]:
        """The same as blocks of rows that follow one another: most of them are views of the source."""
        return step.op.blocks(self._hf_tensors(step, source), self.sizes)

    def _hf_tensors(self, step: Step, source: Source) -> tuple[Tensor, ...]:
        tensors = tuple(source.read(name) for name in step.hf)
        for name, of in self.copies.items():
            if of in step.hf and name in source.specs and not torch.equal(source.read(name), source.read(of)):
                raise UserError(f"{name} is not {of}, which it should repeat", where=source.where)
        return tensors


def _steps_of(row: WeightRow, model: Model, sizes: Sizes) -> Iterator[Step]:
    """The row for every layer, module and expert that it stands for."""
    if not all(_holds(condition, model) for condition in row.when):
        return
    has_experts = any("{expert}" in name for name in row.hf)
    experts = model.num_moe_experts if has_experts else None
    places = list(_places(row, model))
    shape = tuple(sizes[size] for size in row.shape) if places else ()
    for variables in places:
        name = row.megatron.format(**variables)
        for expert in range(experts) if experts is not None else (None,):
            hf = tuple(one.format(**variables, expert=expert) for one in row.hf)
            yield Step(name, expert, hf, OPS[row.op], shape, experts)


def _places(row: WeightRow, model: Model) -> Iterator[dict[str, Any]]:
    """The variables of each place in which a row stands."""
    modules = range(model.mtp_num_layers or 0)
    if row.stands == "once":
        yield {}
        return
    if row.stands == "mtp":
        for module in modules:
            yield {"mtp": module, "layer": model.num_layers + module}
        return
    kinds = layer_kinds(model)
    layers = [(f"decoder.layers.{layer}.", layer, kind) for layer, kind in enumerate(kinds)]
    layers += [(f"mtp.layers.{module}.transformer_layer.", model.num_layers + module, kinds[-1]) for module in modules]
    for block, layer, kind in layers:
        if row.stands in ("layers", kind):
            yield {"block": block, "layer": layer}


def layer_kinds(model: Model) -> list[str]:
    """`dense` or `experts` for each decoder layer."""
    if model.num_moe_experts is None:
        return ["dense"] * model.num_layers
    frequency = model.moe_layer_freq
    if isinstance(frequency, int):
        frequency = tuple(int(layer % frequency == 0) for layer in range(model.num_layers))
    if len(frequency) != model.num_layers:
        raise UserError(f"model.moe_layer_freq has no place for each of {model.num_layers} layers: {list(frequency)}")
    return ["experts" if has else "dense" for has in frequency]


def _holds(condition: Condition, model: Model) -> bool:
    key, wanted = condition
    value = getattr(model, key)
    if isinstance(wanted, Given):
        return (value not in (None, False)) == (wanted is Given.SET)
    return value == wanted


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
