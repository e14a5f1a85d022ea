"""Compares the weights of two models, tensor by tensor in Hugging Face's terms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.engine import Conversion, Source, Step, TensorSpec
from megatron_lm_zh.convert.hf_files import CONFIG
from megatron_lm_zh.convert.hf_source import open_hf
from megatron_lm_zh.convert.legacy.find import NOTHING_ASKED, TOKENIZER, Asked, find_plain
from megatron_lm_zh.convert.plan import natural
from megatron_lm_zh.convert.to_hf import ToHF, tokenizer_of
from megatron_lm_zh.families.registry import huggingface

_BLOCK = 1 << 24
"""Numbers that are compared at a time: differences are taken in fp64."""


class Side:
    """One of the two models, in Hugging Face's terms, whatever it is."""

    def __init__(self, path: Path, asked: Asked = NOTHING_ASKED) -> None:
        """Opens it; `asked` is what the user says of a checkpoint of Megatron-LM's own, and means nothing elsewhere."""
        self.path = path
        self.is_hf = (path / CONFIG).is_file()
        self.is_plain = not self.is_hf and find_plain(path) is not None
        self.source: Source
        if self.is_hf:
            _, self.model, self.source = open_hf(path)
            assert self.model.vocab_size is not None
            conversion = Conversion.of(huggingface(self.model.family), self.model, self.model.vocab_size)
            self.tokenizer, self.checkpoint = path, path
            ignored = conversion.hf_ignored
            self.specs: Mapping[str, TensorSpec] = {
                name: spec for name, spec in self.source.specs.items() if name not in ignored
            }
        else:
            seen = ToHF(path, asked if self.is_plain else NOTHING_ASKED)
            self.model, self.source, self.conversion = seen.model, seen.source, seen.conversion
            self.checkpoint = seen.checkpoint
            own = seen.checkpoint / TOKENIZER if self.is_plain else tokenizer_of(seen.checkpoint)
            self.tokenizer = seen.tokenizer or own
            self.specs = {piece.key: piece.spec for piece in seen.plan.pieces}

    def read(self, name: str) -> Tensor:
        """One tensor under its Hugging Face name."""
        if self.is_hf:
            return self.source.read(name)
        return self.conversion.to_hf(self._step_of[name], self.source)[name]

    @cached_property
    def _step_of(self) -> dict[str, Step]:
        steps = {name: step for step in self.conversion.steps for name in step.hf}
        return steps | {name: steps[of] for name, of in self.conversion.copies.items()}


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same on both sides."""

    key: str
    layer: int | None
    what: str
    max_abs: float | None
    """Largest difference of two numbers; None where the shapes differ; NaN where one side has a NaN."""


@dataclass(frozen=True)
class WeightsReport:
    """What the comparison of the weights came to; differences stand in the order of the layers."""

    compared: int
    numbers: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """Whether both sides have the same tensors with the same numbers."""
        return not (self.only_a or self.only_b or self.differences)

    def lines(self) -> Iterator[str]:
        """The report in words."""
        for side, names in (("A", self.only_a), ("B", self.only_b)):
            if names:
                yield f"weights: {len(names)} only in {side}, the first {names[0]}"
        if self.differences:
            first = self.differences[0]
            where = f" (layer {first.layer})" if first.layer is not None else ""
            count = f"{len(self.differences)} of {self.compared}"
            yield f"weights: {count} differ, the first {first.key}{where}: {first.what}"
        if self.agrees:
            yield f"weights: all {self.compared} tensors ({self.numbers:,} numbers) are the same"

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {"agrees": self.agrees} | asdict(self)


def compare_weights(
    a: Side, b: Side, *, tolerance: float, workers: int, on_progress: Callable[[int, int], None] = lambda *_: None
) -> WeightsReport:
    """Compares every tensor, a few at a time.

    Args:
        tolerance: 0 asks for the same bits; above it, numbers may differ by so much, and dtypes may differ.
        workers: threads.
        on_progress: told the tensors done and all of them.
    """
    both = sorted(a.specs.keys() & b.specs.keys(), key=natural)
    found = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for number, difference in enumerate(pool.map(lambda name: _difference(a, b, name, tolerance), both), start=1):
            on_progress(number, len(both))
            if difference is not None:
                found.append(difference)
    return WeightsReport(
        compared=len(both),
        numbers=sum(math.prod(a.specs[name].shape) for name in both),
        only_a=tuple(sorted(a.specs.keys() - b.specs.keys(), key=natural)),
        only_b=tuple(sorted(b.specs.keys() - a.specs.keys(), key=natural)),
        differences=tuple(found),
    )


def _difference(a: Side, b: Side, name: str, tolerance: float) -> Difference | None:
    """How one tensor differs; None where it does not."""
    match = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
    layer = int(match.group(1)) if match else None
    one, two = a.specs[name], b.specs[name]
    if one.shape != two.shape:
        return Difference(name, layer, f"shape {list(one.shape)} and {list(two.shape)}", None)
    x, y = a.read(name).reshape(-1), b.read(name).reshape(-1)
    if one.dtype == two.dtype and _same_bits(x, y):
        return None
    largest = _largest_difference(x, y)
    if tolerance and largest <= tolerance:
        return None
    dtypes = f"{one.dtype} and {two.dtype}, ".replace("torch.", "") if one.dtype != two.dtype else ""
    return Difference(name, layer, f"{dtypes}max difference {largest:.3g}", largest)


def _same_bits(x: Tensor, y: Tensor) -> bool:
    for one, two in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
        if not torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8)):
            return False
    return True


def _largest_difference(x: Tensor, y: Tensor) -> float:
    """NaN where one side has a NaN that the other has not."""
    largest = 0.0
    for one, two in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
        if one.numel():
            found = float((one.double() - two.double()).nan_to_num(math.nan, math.inf, math.inf).abs().max())
            largest = found if math.isnan(found) else max(largest, found)
            if math.isnan(largest):
                break
    return largest


def random_ids(models: Sequence[Model], tokens: int) -> Tensor:
    """[1, tokens] ids that every one of the models has, the same each time."""
    smallest = min(model.vocab_size or 1 for model in models)
    return torch.randint(smallest, (1, tokens), generator=torch.Generator().manual_seed(1234))
