"""In which order a rank's model has its parameters, and which of a global tensor it holds: no model is built for it.

The distributed optimizer lays a rank's parameters, last first, into flat buffers. Source: megatron-core's
distributed/param_and_grad_buffer.py and distributed_data_parallel.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.stages import layers_of_stages
from megatron_lm_zh.convert.engine import TensorSpec

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_MTP = re.compile(r"mtp\.layers\.(\d+)\.(?:transformer_layer\.)?(.+)")
EXPERTS = ".mlp.experts.experts."
WORD_EMBEDDING = "embedding.word_embeddings.weight"

_MODULES = (
    "input_layernorm",
    "self_attention.linear_proj",
    "self_attention.linear_proj.post_layernorm",
    "self_attention.linear_qkv",
    "self_attention.linear_q_proj",
    "self_attention.linear_q_down_proj",
    "self_attention.linear_q_up_proj",
    "self_attention.linear_kv_down_proj",
    "self_attention.linear_kv_up_proj",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "self_attention.kv_layernorm",
    "pre_mlp_layernorm",
    "mlp.router",
    "mlp.experts.experts.linear_fc1",
    "mlp.experts.experts.linear_fc2",
    "mlp.shared_experts",
    "mlp.shared_experts.linear_fc1",
    "mlp.shared_experts.linear_fc2",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
    "mlp.linear_fc2.post_layernorm",
)
_LOCAL_NORMS: Mapping[str, str] = MappingProxyType(
    {
        "self_attention.linear_qkv.layer_norm": "input_layernorm",
        "self_attention.linear_q_up_proj.layer_norm": "self_attention.q_layernorm",
        "self_attention.linear_kv_up_proj.layer_norm": "self_attention.kv_layernorm",
        "mlp.linear_fc1.layer_norm": "pre_mlp_layernorm",
    }
)
_MTP_MODULES = ("enorm", "hnorm", "eh_proj", "transformer_layer", "final_layernorm")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a rank."""

    key: str
    """Canonical name of the global tensor."""
    part: int | None
    """Which expert's."""
    shape: tuple[int, ...]
    """On the rank."""
    boxes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """Offsets and sizes of the places of the global tensor that it holds, one after the other along one axis."""
    axis: int
    """That axis, of the parameter."""

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class Order:
    """What differs between two specs of the same layer."""

    local: bool
    """Norms are modules of their own; else they are inside the linear layer that follows."""
    by_expert: bool
    """Both matrices of an expert, then the next expert; else the first matrices of all come first."""


ORDERS = tuple(Order(local, by_expert) for local in (True, False) for by_expert in (True, False))

Chunks = Callable[[str], list[tuple[tuple[int, ...], tuple[int, ...]]]]


class Ranks:
    """The parameters of every rank of the layout that a config describes."""

    def __init__(self, config: Config, weights: Mapping[str, TensorSpec], chunks: Chunks) -> None:
        self._parallel, self._model = config.parallel, config.model
        self._weights, self._chunks = weights, chunks
        self._stages = layers_of_stages(config)

    @property
    def separate_experts(self) -> bool:
        """Whether experts have an optimizer of their own."""
        parallel = self._parallel
        return self._model.num_moe_experts is not None and (
            parallel.expert > 1 or parallel.expert_tensor != parallel.tensor
        )

    def dense_groups(self) -> Iterator[tuple[int, int, int]]:
        """Number of each group of the optimizer of all but separate experts, its pipeline rank and tensor rank."""
        for pipeline in range(self._parallel.pipeline):
            for tensor in range(self._parallel.tensor):
                yield tensor + self._parallel.tensor * pipeline, pipeline, tensor

    def expert_groups(self) -> Iterator[tuple[int, int, int, int]]:
        """Number of each group of the experts' optimizer, its pipeline, expert and expert-tensor rank."""
        parallel = self._parallel
        for pipeline in range(parallel.pipeline):
            for expert in range(parallel.expert):
                for tensor in range(parallel.expert_tensor):
                    number = tensor + parallel.expert_tensor * (expert + parallel.expert * pipeline)
                    yield number, pipeline, expert, tensor

    def dense(self, pipeline: int, tensor: int, order: Order) -> list[list[Parameter]]:
        """Parameters of each model chunk of a rank, but for separate experts, in the order of its modules."""
        experts = None if self.separate_experts else range(self._model.num_moe_experts or 0)
        return [
            [
                p
                for key in keys
                if EXPERTS not in key or experts is not None
                for p in self._parameters(key, experts, tensor)
            ]
            if not order.by_expert
            else self._alternating(keys, experts, tensor)
            for keys in self._keys(pipeline, order)
        ]

    def experts(self, pipeline: int, expert: int, tensor: int, order: Order) -> list[list[Parameter]]:
        """Parameters of the experts of each model chunk of a rank, in the order of its modules."""
        each = (self._model.num_moe_experts or 0) // self._parallel.expert
        mine = range(expert * each, (expert + 1) * each)
        found = []
        for keys in self._keys(pipeline, order):
            keys = [key for key in keys if EXPERTS in key]
            if order.by_expert:
                found.append(self._alternating(keys, mine, tensor))
            else:
                found.append([p for key in keys for p in self._parameters(key, mine, tensor)])
        return found

    def _alternating(self, keys: Sequence[str], experts: range | None, tensor: int) -> list[Parameter]:
        """The same, where the modules of an expert stand together."""
        found: list[Parameter] = []
        waiting: list[str] = []
        for key in [*keys, ""]:
            layer = key.partition(EXPERTS)[0] if EXPERTS in key else None
            if waiting and waiting[0].partition(EXPERTS)[0] != layer:
                for expert in experts or ():
                    found += [p for one in waiting for p in self._parameters(one, range(expert, expert + 1), tensor)]
                waiting = []
            if layer is not None:
                waiting.append(key)
            elif key:
                found += self._parameters(key, None, tensor)
        return found

    def _keys(self, pipeline: int, order: Order) -> list[list[str]]:
        """Names of the tensors of each model chunk of a pipeline rank, in the order of its modules."""
        found = []
        last = len(self._stages) - 1
        for stage in range(pipeline, len(self._stages), self._parallel.pipeline):
            first = sum(self._stages[:stage])
            layers = range(first, first + self._stages[stage])
            keys = [key for key in self._weights if self._stands(key, stage, last, layers)]
            keys.sort(key=lambda key: _place(key, order))
            if stage == last and last > 0 and self._model.tie_embeddings:
                keys.append(WORD_EMBEDDING)  # a copy, as the output layer
            elif stage == last and last > 0 and self._model.mtp_num_layers:
                keys.insert(0, WORD_EMBEDDING)
            found.append(keys)
        return found

    def _stands(self, key: str, stage: int, last: int, layers: range) -> bool:
        if key.endswith(".expert_bias"):
            return False  # no gradient moves it
        if found := _LAYER.fullmatch(key):
            return int(found[1]) in layers
        return stage == 0 if key.startswith("embedding.") else stage == last

    def _parameters(self, key: str, experts: range | None, tensor: int) -> Iterator[Parameter]:
        for expert in experts or () if EXPERTS in key else (None,):
            yield self._parameter(key, expert, tensor)

    def _parameter(self, key: str, expert: int | None, tensor: int) -> Parameter:
        """What a tensor-parallel rank holds, from the parts in which the ranks wrote the weight."""
        skip = 0 if expert is None else 1
        boxes = [box for box in self._chunks(key) if expert is None or box[0][0] <= expert < box[0][0] + box[1][0]]
        whole = self._weights[key].shape[skip:]
        sizes = boxes[0][1][skip:]
        axes = [axis for axis, size in enumerate(whole) if sizes[axis] != size]
        gated = ".linear_fc1." in key and "layer_norm" not in key and self._model.activation in ("swiglu", "geglu")
        if not axes:
            return Parameter(key, expert, whole, ((_box(expert, (0,) * len(whole), whole)),), 0)
        (axis,) = axes
        count = whole[axis] // sizes[axis]
        numbers = (tensor, count // 2 + tensor) if gated else (tensor,)
        places = []
        for number in numbers:
            offset = tuple(number * sizes[axis] if one == axis else 0 for one in range(len(whole)))
            places.append(_box(expert, offset, sizes))
        shape = tuple(size * len(numbers) if one == axis else size for one, size in enumerate(sizes))
        return Parameter(key, expert, shape, tuple(places), axis)


def _box(
    expert: int | None, offset: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (offset, sizes) if expert is None else ((expert, *offset), (1, *sizes))


def _place(key: str, order: Order) -> tuple[int, ...]:
    """Sorts the names of a chunk as its modules stand."""
    if found := _LAYER.fullmatch(key):
        return 1, int(found[1]), *_inside(found[2], order)
    if found := _MTP.fullmatch(key):
        word = "transformer_layer" if ".transformer_layer." in key else found[2].partition(".")[0]
        inside = _inside(found[2], order) if word == "transformer_layer" else (0, 0)
        return 3, int(found[1]), _MTP_MODULES.index(word), *inside
    known = {WORD_EMBEDDING: 0, "embedding.position_embeddings.weight": 0, "output_layer.weight": 4}
    return known.get(key, 2), int("position" in key), int(key.endswith("bias"))


def _inside(name: str, order: Order) -> tuple[int, int]:
    """Place of a name in its layer: that of its module, and its own in it."""
    module, _, kind = name.rpartition(".")
    norm = kind.startswith("layer_norm")
    if norm and order.local:
        module, kind = _LOCAL_NORMS.get(f"{module}.layer_norm", module), kind.removeprefix("layer_norm_")
    own = int(kind.endswith("bias")) + (0 if norm and not order.local else 2)
    return _MODULES.index(module) if module in _MODULES else len(_MODULES), own
