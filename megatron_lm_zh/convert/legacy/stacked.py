"""Megatron-LM's `torch_dist` checkpoints whose layers are stacked: one tensor [layers, ...] for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from megatron_lm_zh.convert.boxes import StoredTensors
from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.convert.megatron_files import MegatronWeights

_LAYERS = "decoder.layers."


class StackedWeights(MegatronWeights):
    """The weights of a checkpoint under the name of each layer, whether its files stack them or not."""

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every weight, by its canonical key."""
        found: dict[str, TensorSpec] = {}
        for name, spec in self.stored.items():
            if not _is_stacked(name):
                found[name] = spec
                continue
            for layer in range(spec.shape[0]):
                found[_of_layer(name, layer)] = TensorSpec(spec.shape[1:], spec.dtype)
        return found

    @cached_property
    def stored(self) -> Mapping[str, TensorSpec]:
        """The tensors as they are in the files."""
        return MegatronWeights(self.checkpoint).specs

    @cached_property
    def _tensors(self) -> StoredTensors:
        return StoredTensors(self.checkpoint)

    def check(self) -> None:
        """UserError where a file is missing or cut short, or a part of a weight was written by no rank."""
        MegatronWeights(self.checkpoint).check()

    def read(self, name: str, part: int | None = None) -> Tensor:
        """The tensor `name`, or `part` of its first axis."""
        if name in self.stored:
            return super().read(name, part)
        word = name.removeprefix(_LAYERS).partition(".")
        fixed = (int(word[0]),) if part is None else (int(word[0]), part)
        rest = self.stored[_LAYERS + word[2]].shape[len(fixed) :]
        offsets, sizes = (*fixed, *[0] * len(rest)), (*[1] * len(fixed), *rest)
        return self._tensors.read_box(_LAYERS + word[2], offsets, sizes)[(0,) * len(fixed)]


def _is_stacked(name: str) -> bool:
    return name.startswith(_LAYERS) and not name.removeprefix(_LAYERS).partition(".")[0].isdecimal()


def _of_layer(name: str, layer: int) -> str:
    return f"{_LAYERS}{layer}.{name.removeprefix(_LAYERS)}"
