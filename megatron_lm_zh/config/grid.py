"""The layout as arithmetic: the grid of ranks and the layers of each pipeline stage, as megatron-core lays them out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.stages import layers_of_stages, parse_layout

# The axes of `parallel.order`, as the dense layers and as the experts see them.
DENSE = {"tp": "tensor", "cp": "context", "dp": "data", "pp": "pipeline"}
EXPERTS = {"tp": "expert tensor", "ep": "expert", "dp": "expert data", "pp": "pipeline"}


@dataclass(frozen=True)
class Grid:
    """Ranks 0..world-1 along axes of which the first varies fastest, like `arange(world).view(...)` read backwards."""

    axes: tuple[tuple[str, int], ...]
    """Name and size of each axis."""

    @property
    def world(self) -> int:
        """Number of ranks."""
        return math.prod(size for _, size in self.axes)

    def size(self, name: str) -> int:
        """How many ranks lie along an axis."""
        return dict(self.axes)[name]

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a rank is on each axis."""
        place = {}
        for name, size in self.axes:
            rank, place[name] = divmod(rank, size)
        return place

    def groups(self, *along: str) -> list[list[int]]:
        """The groups of ranks that differ in their coordinates on the axes `along` alone, each in rising order."""
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world):
            rest = tuple(at for name, at in self.coordinates(rank).items() if name not in along)
            found.setdefault(rest, []).append(rank)
        return list(found.values())


def dense_grid(config: Config, world: int) -> Grid:
    """How the ranks share attention, norms, embeddings and dense MLPs."""
    layout = config.parallel
    sizes = (layout.tensor, layout.context, world // config.replica_size, layout.pipeline)
    return _grid(layout.order, DENSE, sizes)


def expert_grid(config: Config, world: int) -> Grid:
    """How the same ranks share the experts: expert and expert-tensor take the place of tensor and context."""
    layout = config.parallel
    sizes = (layout.expert_tensor, layout.expert, world // config.expert_replica_size, layout.pipeline)
    return _grid(layout.order, EXPERTS, sizes)


@dataclass(frozen=True)
class Chunk:
    """What one model chunk of a pipeline stage holds."""

    layers: range
    """Decoder layers, counted from 0 over the whole model."""
    embedding: bool
    predictions: int
    """Multi-token prediction layers."""
    loss: bool
    """The final norm, the output layer and the loss."""

    def __str__(self) -> str:
        return ", ".join(self._parts()) or "nothing"

    def _parts(self) -> Iterator[str]:
        if self.embedding:
            yield "embedding"
        if self.layers:
            first, last = self.layers[0], self.layers[-1]
            yield f"layers {first}-{last}" if last > first else f"layer {first}"
        if self.predictions:
            yield "MTP" if self.predictions == 1 else f"{self.predictions} MTP"
        if self.loss:
            yield "loss"


def stages(config: Config) -> list[list[Chunk]]:
    """The model chunks of each pipeline stage, in the order in which the stage's rank numbers them."""
    letters = spelled_out(config)
    ends = list(accumulate(chunk.count("t") for chunk in letters))
    chunks = [
        Chunk(range(end - chunk.count("t"), end), "E" in chunk, chunk.count("m"), "L" in chunk)
        for chunk, end in zip(letters, ends, strict=True)
    ]
    pipeline = config.parallel.pipeline
    return [chunks[stage::pipeline] for stage in range(pipeline)]


def spelled_out(config: Config) -> list[str]:
    """Every model chunk in the order in which a token passes them, spelled as `pipeline_model_parallel_layout` is."""
    if config.parallel.pipeline_model_parallel_layout is not None:
        return parse_layout(config.parallel.pipeline_model_parallel_layout)
    chunks = ["t" * layers for layers in layers_of_stages(config)]
    chunks[0] = "E" + chunks[0]
    chunks[-1] += "m" * (config.model.mtp_num_layers or 0) + "L"
    return chunks


def _grid(order: str, names: dict[str, str], sizes: tuple[int, ...]) -> Grid:
    size = dict(zip(names, sizes, strict=True))
    return Grid(tuple((names[axis], size[axis]) for axis in order.split("-") if axis in names))
