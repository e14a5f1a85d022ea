"""Megatron-LM's own checkpoints of one file a rank (mp_rank_TT_PPP_EEE/model_optim_rng.pt) as one model's weights."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lm_zh.convert.engine import Conversion, TensorSpec
from megatron_lm_zh.convert.legacy.archive import StoredTensor, read_archive
from megatron_lm_zh.convert.legacy.names import LocalWeight, local_weights
from megatron_lm_zh.convert.ops import OPS
from megatron_lm_zh.errors import UserError

FILE = "model_optim_rng.pt"
_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_ON_SEVERAL_STAGES = ("embedding.word_embeddings.weight", "output_layer.weight")

Place = tuple[str, int | None]
"""A canonical name, and the number of the expert in the whole model."""


class RankFiles:
    """The ranks' files of one checkpoint: which weight of the model is in which of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.where = str(directory)

    @property
    def content(self) -> Mapping[str, Any]:
        """What the first rank's file holds."""
        return next(iter(self._contents.values()))

    @cached_property
    def args(self) -> argparse.Namespace:
        """What Megatron-LM was started with."""
        return _args(self.content, self.where)

    @cached_property
    def shards(self) -> Mapping[Place, tuple[StoredTensor, ...]]:
        """The shards of every weight, by tensor-parallel rank.

        Raises:
            UserError: the files are not those of all ranks.
        """
        found: dict[Place, dict[int, StoredTensor]] = defaultdict(dict)
        seen: dict[Place, int] = {}
        for number, first, (pipeline, chunk) in self._chunks:
            for (tensor, stage, expert), content in self._contents.items():
                if stage == pipeline:
                    weights = content[chunk]
                    for weight in local_weights(list(weights)):
                        place, shard = self._place(weight, first, tensor, expert, weights)
                        if seen.setdefault(place, number) == number:
                            found[place].setdefault(shard, weights[weight.local])
                        elif weight.name not in _ON_SEVERAL_STAGES:
                            raise UserError(f"{place[0]} is on two pipeline stages", where=self.where)
        for (name, _), shards in found.items():
            if sorted(shards) != list(range(len(shards))):
                raise UserError(f"{name} is not whole: a rank's file is missing", where=self.where)
        return {place: tuple(shards[rank] for rank in sorted(shards)) for place, shards in found.items()}

    def _place(
        self, weight: LocalWeight, first: int, tensor: int, expert: int, weights: Mapping[str, Any]
    ) -> tuple[Place, int]:
        """Where a weight of a file belongs in the model, and the number of its shard."""
        name = weight.name if weight.layer is None else weight.name.format(layer=first + weight.layer)
        if weight.expert is None:
            return (name, None), tensor
        local = self._experts // self._size("expert_model_parallel_size")
        across = getattr(self.args, "expert_tensor_parallel_size", None) or self._size("tensor_model_parallel_size")
        if across > self._size("tensor_model_parallel_size"):
            raise UserError("experts are cut into more parts than the rest", where=self.where)
        return (name, expert * local + weight.expert), tensor % across

    @property
    def _experts(self) -> int:
        return getattr(self.args, "num_experts", None) or 0

    def _size(self, name: str) -> int:
        return getattr(self.args, name, None) or 1

    @cached_property
    def _chunks(self) -> list[tuple[int, int, tuple[int, str]]]:
        """The model chunks as a token passes them: number, first layer, pipeline rank and name in the file."""
        stages = {pipeline: content for (_, pipeline, _), content in reversed(self._contents.items())}
        if sorted(stages) != list(range(self._size("pipeline_model_parallel_size"))):
            raise UserError("the files of a pipeline stage are missing", where=self.where)
        names = [{key for key in content if re.fullmatch(r"model\d*", str(key))} for content in stages.values()]
        if not names[0] or any(other != names[0] for other in names):
            raise UserError("no weights in the files of a rank", where=self.where)
        chunks: list[tuple[int, int, tuple[int, str]]] = []
        layer = 0
        for name in sorted(names[0], key=lambda key: int(key.removeprefix("model") or 0)):
            for pipeline in sorted(stages):
                layers = {w.layer for w in local_weights(list(stages[pipeline][name])) if w.layer is not None}
                if layers != set(range(len(layers))):
                    raise UserError(f"a layer is missing on pipeline rank {pipeline}", where=self.where)
                chunks.append((len(chunks), layer, (pipeline, name)))
                layer += len(layers)
        return chunks

    @cached_property
    def _contents(self) -> dict[tuple[int, int, int], dict[str, Any]]:
        """What each file holds, by tensor, pipeline and expert rank; of tensors, only where they are."""
        paths = sorted(path for path in self.directory.glob(f"mp_rank_*/{FILE}") if _RANK.fullmatch(path.parent.name))
        if not paths:
            raise UserError(f"no mp_rank_*/{FILE}", where=self.where)
        contents = {path: read_archive(path) for path in paths}
        for path, content in contents.items():
            if not isinstance(content, dict):
                raise UserError("no checkpoint of Megatron-LM", where=str(path))
        args = _args(contents[paths[0]], str(paths[0]))
        staged = (getattr(args, "pipeline_model_parallel_size", None) or 1) > 1
        ranks = {}
        for path, content in contents.items():
            found = _RANK.fullmatch(path.parent.name)
            assert found is not None
            numbers = [int(number) for number in found.groups() if number is not None]
            tensor, *more = numbers
            pipeline = more.pop(0) if staged and more else 0
            ranks[tensor, pipeline, more[0] if more else 0] = content
        tensors = {tensor for tensor, _, _ in ranks}
        if len(tensors) != (getattr(args, "tensor_model_parallel_size", None) or 1):
            raise UserError("the files of a tensor-parallel rank are missing", where=self.where)
        return ranks


def _args(content: Mapping[str, Any], where: str) -> argparse.Namespace:
    args = content.get("args")
    if not isinstance(args, argparse.Namespace):
        raise UserError("no args in it", where=where, expected="a checkpoint that Megatron-LM's training saved")
    return args


class LegacyWeights:
    """The ranks' files as whole tensors, put together one at a time by the rows of a conversion."""

    def __init__(self, files: RankFiles, conversion: Conversion) -> None:
        self.where = files.where
        self._shards = files.shards
        self._steps = {(step.megatron, step.part): step for step in conversion.steps}
        self._whole = {step.megatron: step.whole_shape for step in conversion.steps}
        tied = conversion.sizes.model.tie_embeddings
        self._left_out = {"output_layer.weight"} if tied else set()  # the last stage's copy of the word embedding

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every weight, with the whole shape where the conversion knows it."""
        found = {}
        for (name, part), shards in self._shards.items():
            if name in self._left_out:
                continue
            if name in self._whole:
                found[name] = TensorSpec(self._whole[name], shards[0].dtype)
                if (name, part) not in self._steps:
                    raise UserError(f"{name} of expert {part} has no place in this family", where=self.where)
            else:
                found[name] = TensorSpec(shards[0].shape, shards[0].dtype)
        return found

    def check(self) -> None:
        """UserError where an expert is missing, or the shards of a weight do not make up its shape."""
        for name, part in self._steps:
            self._axis_of(name, part)

    def read(self, name: str, part: int | None = None) -> Tensor:
        """The tensor `name`, or one expert's part of it."""
        shards = [shard.read() for shard in self._shards[name, part]]
        axis = self._axis_of(name, part)
        if axis is None:
            return shards[0]
        if axis == 0 and self._steps[name, part].op is OPS["gate_up"]:
            halves = [shard.chunk(2) for shard in shards]  # each rank has a part of the gate, then one of up
            return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
        return torch.cat(shards, dim=axis)

    def _axis_of(self, name: str, part: int | None) -> int | None:
        """The axis along which the ranks cut a weight; None where each has the whole."""
        shards = self._shards.get((name, part))
        if shards is None:
            raise UserError(f"no {name}" + (f" of expert {part}" if part is not None else ""), where=self.where)
        whole = self._steps[name, part].shape
        if all(shard.shape == whole for shard in shards):
            return None
        axis = _cut_axis([shard.shape for shard in shards], whole)
        if axis is None:
            shapes = ", ".join(str(list(shard.shape)) for shard in shards)
            raise UserError(
                f"{name} has shape {shapes} on its ranks", where=self.where, expected=f"parts of {list(whole)}"
            )
        return axis


def _cut_axis(shapes: Sequence[tuple[int, ...]], whole: tuple[int, ...]) -> int | None:
    """The only axis along which `shapes` differ from `whole`, if they make it up; else None."""
    if any(len(shape) != len(whole) for shape in shapes):
        return None
    axes = [axis for axis, size in enumerate(whole) if any(shape[axis] != size for shape in shapes)]
    if len(axes) != 1 or sum(shape[axes[0]] for shape in shapes) != whole[axes[0]]:
        return None
    return axes[0]
