"""The distributed optimizer's flat shards (`dp_reshardable`) as whole tensors, each under the name of its weight."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.convert.boxes import StoredTensors
from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.convert.megatron_files import is_weight
from megatron_lm_zh.convert.parameters import EXPERTS, ORDERS, Order, Parameter, Ranks
from megatron_lm_zh.errors import UserError

_BUCKET = re.compile(
    r"(?:chained_(\d+)\.)?optimizer\.distributed\.dp_group_idx_(\d+)\.gbuf_idx_(\d+)"
    r"\.dtype_\((torch\.\w+), .+\)\.bucket_idx_(\d+)\.(\w+)"
)
_MASTER = "param"
_ALIGNMENT = 64  # numbers: each parameter begins at a multiple of this
PREFIX = "optimizer.state."


@dataclass(frozen=True)
class _Bucket:
    """One flat tensor of each kind."""

    prefix: str
    numel: int


@dataclass(frozen=True)
class _Held:
    """Where the state of one rank's parameter is."""

    parameter: Parameter
    bucket: str
    start: int


class BucketStates:
    """The optimizer's tensors of a checkpoint that was saved as `dp_reshardable`, under the names of any layout.

    The files do not say which parameter is where. That follows from the config's layout and the order of a model's
    modules, of which there are a few; the right one is known by the master weights, which must be the weights.
    """

    def __init__(self, stored: StoredTensors, config: Config) -> None:
        self._stored = stored
        self.where = stored.where
        self._config = config
        self._weights = {name: spec for name, spec in stored.specs.items() if is_weight(name)}

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor of the optimizer's state."""
        found = {}
        for (key, _), held in self._held.items():
            for kind in self._kinds:
                dtype = self._stored.specs[f"{held[0].bucket}.{kind}"].dtype
                found[f"{PREFIX}{kind}.{key}"] = TensorSpec(self._weights[key].shape, dtype)
        return found

    def read(self, name: str, part: int | None = None) -> Tensor:
        """One tensor, or one expert's part of it."""
        kind, _, key = name.removeprefix(PREFIX).partition(".")
        spec = self.specs[name]
        tensor = torch.empty(spec.shape if part is None else spec.shape[1:], dtype=spec.dtype)
        for held in self._held[key, part]:
            _put(tensor, held.parameter, self._flat(held, kind), skip=0 if part is None else 1)
        return tensor

    def _flat(self, held: _Held, kind: str) -> Tensor:
        numbers = self._stored.read_box(f"{held.bucket}.{kind}", (held.start,), (held.parameter.numel,))
        return numbers.view(held.parameter.shape)

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        kinds = {found[6] for name in self._stored.specs if (found := _BUCKET.fullmatch(name))}
        if _MASTER not in kinds:
            raise UserError("no master weights in it, by which its parameters are known", where=self.where)
        return tuple(sorted(kinds))

    @cached_property
    def _buffers(self) -> Mapping[tuple[int, int], list[tuple[str, list[_Bucket]]]]:
        """By optimizer and group: the buffers, each with its weights' dtype and its buckets."""
        found: dict[tuple[int, int], dict[int, tuple[str, dict[int, _Bucket]]]] = defaultdict(dict)
        for name, spec in self._stored.specs.items():
            match = _BUCKET.fullmatch(name)
            if match is not None and match[6] == _MASTER:
                buffers = found[int(match[1] or 0), int(match[2])]
                _, buckets = buffers.setdefault(int(match[3]), (match[4], {}))
                buckets[int(match[5])] = _Bucket(name.removesuffix(f".{_MASTER}"), spec.shape[0])
        return {
            group: [
                (dtype, [bucket for _, bucket in sorted(buckets.items())])
                for _, (dtype, buckets) in sorted(buffers.items())
            ]
            for group, buffers in found.items()
        }

    @cached_property
    def _held(self) -> Mapping[tuple[str, int | None], list[_Held]]:
        """The ranks' parts of every weight; UserError where no known order of modules fits."""
        ranks = Ranks(self._config, self._weights, self._stored.chunks)
        for order in ORDERS:
            found = self._held_in(ranks, order)
            if found is not None:
                return found
        what = "its optimizer's shards do not lie as the config's layout lays them"
        mend = "resume in that layout with checkpoint.distrib_optim_sharding_type=fully_reshardable, and save"
        raise UserError(what, where=self.where, mend=mend)

    def _held_in(self, ranks: Ranks, order: Order) -> Mapping[tuple[str, int | None], list[_Held]] | None:
        """The same for one order; None where master weights are not the weights."""
        held: dict[tuple[str, int | None], list[_Held]] = defaultdict(list)
        for group, chunks in _groups(ranks, order):
            laid = self._lay(self._buffers.get(group, []), chunks)
            if laid is None:
                return None
            for one in laid:
                if not self._is_master(one):
                    return None
                places = [other.parameter.boxes for other in held[one.parameter.key, one.parameter.part]]
                if one.parameter.boxes not in places:  # other ranks hold the same of what is not cut
                    held[one.parameter.key, one.parameter.part].append(one)
        return held if all(self._is_whole(key, part, parts) for (key, part), parts in held.items()) else None

    def _is_whole(self, key: str, part: int | None, parts: Sequence[_Held]) -> bool:
        """Whether the ranks' parts of a weight are all of it."""
        shape = self._weights[key].shape
        return sum(one.parameter.numel for one in parts) == prod(shape if part is None else shape[1:])

    def _lay(self, buffers: Sequence[tuple[str, list[_Bucket]]], chunks: list[list[Parameter]]) -> list[_Held] | None:
        """Where a group's buffers have the parameters of its chunks; None where they do not come out."""
        found: list[_Held] = []
        number = 0
        for chunk in chunks:
            by_dtype: dict[str, list[Parameter]] = defaultdict(list)
            for parameter in chunk:
                by_dtype[str(self._weights[parameter.key].dtype)].append(parameter)
            for dtype, parameters in by_dtype.items():
                if number >= len(buffers) or buffers[number][0] != dtype:
                    return None
                laid = _fill(buffers[number][1], parameters)
                if laid is None:
                    return None
                found += laid
                number += 1
        return found if number == len(buffers) else None

    def _is_master(self, held: _Held) -> bool:
        """Whether a master weight, rounded, is the weight."""
        parameter = held.parameter
        dtype = self._weights[parameter.key].dtype
        parts = [self._stored.read_box(parameter.key, *box) for box in parameter.boxes]
        if parameter.part is not None:
            parts = [part[0] for part in parts]
        return torch.equal(torch.cat(parts, dim=parameter.axis), self._flat(held, _MASTER).to(dtype))


def _groups(ranks: Ranks, order: Order) -> Iterator[tuple[tuple[int, int], list[list[Parameter]]]]:
    """Each group of each optimizer, with its parameters by model chunk."""
    for number, pipeline, tensor in ranks.dense_groups():
        yield (0, number), ranks.dense(pipeline, tensor, order)
    if ranks.separate_experts:
        for number, pipeline, expert, tensor in ranks.expert_groups():
            yield (1, number), ranks.experts(pipeline, expert, tensor, order)


def _fill(buckets: Sequence[_Bucket], parameters: Sequence[Parameter]) -> list[_Held] | None:
    """Lays parameters, the last first, into buckets; None unless they fill them."""
    left = iter(buckets)
    bucket, position = next(left, None), 0
    found = []
    for parameter in reversed(parameters):
        start = -(-position // _ALIGNMENT) * _ALIGNMENT
        if bucket is not None and start + parameter.numel > bucket.numel:
            if bucket.numel not in (position, start):
                return None
            bucket, start = next(left, None), 0
        if bucket is None or start + parameter.numel > bucket.numel:
            return None
        found.append(_Held(parameter, bucket.prefix, start))
        position = start + parameter.numel
    if bucket is None or position != bucket.numel or next(left, None) is not None:
        return None
    return found


def _put(tensor: Tensor, parameter: Parameter, state: Tensor, *, skip: int) -> None:
    """Writes a rank's state to its places in the whole tensor."""
    sizes = [box[1][skip:][parameter.axis] for box in parameter.boxes]
    for (offsets, shape), part in zip(parameter.boxes, state.split(sizes, dim=parameter.axis), strict=True):
        place = tuple(slice(start, start + size) for start, size in zip(offsets[skip:], shape[skip:], strict=True))
        tensor[place] = part


def is_split(name: str) -> bool:
    """Whether a tensor is one of experts, which is read and written expert by expert."""
    return EXPERTS in name
