"""What a model computes, layer by layer, and how two models differ in it.

Imports neither transformers nor megatron: it is used beside either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class States:
    """What a model computes on some ids: hidden states [b, s, h] by name, in the order of the network, and logits."""

    hidden: Mapping[str, Tensor]
    logits: Tensor
    """[b, s, vocabulary]"""

    def save(self, path: Path) -> None:
        """Writes them for `load`."""
        torch.save({"hidden": dict(self.hidden), "logits": self.logits}, path)

    @classmethod
    def load(cls, path: Path) -> States:
        """Reads what `save` wrote."""
        found = torch.load(path, weights_only=True)
        return cls(found["hidden"], found["logits"])


def state_names(layers: int) -> list[str]:
    """Names of the hidden states that both kinds of model have; the last layer's are taken after the final norm."""
    return ["embedding", *(f"layer {number}" for number in range(layers - 1)), f"layer {layers - 1} and final norm"]


@dataclass(frozen=True)
class LogitsReport:
    """What the comparison of the logits came to."""

    tokens: int
    max_difference: float
    argmax_agreement: float
    """Share of the places at which both sides find the same token likeliest."""
    first_different: str | None
    """The first hidden state that differs by more than the tolerance."""
    rows: tuple[tuple[str, float], ...]
    """Every hidden state and its largest difference."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether no logit differs by more than the tolerance."""
        return self.max_difference <= self.tolerance

    def lines(self) -> Iterator[str]:
        """The report in words; the table only where the sides differ."""
        yield (
            f"logits: max difference {self.max_difference:.3g} (tolerance {self.tolerance:g}), "
            f"argmax the same at {100 * self.argmax_agreement:.2f} % of {self.tokens} tokens"
        )
        if not self.agrees:
            yield f"first that differs: {self.first_different or 'the logits alone'}"
            yield from (f"  {name:<28}{difference:.3g}" for name, difference in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {"agrees": self.agrees} | asdict(self)


def compare_states(a: States, b: States, tolerance: float) -> LogitsReport:
    """Compares logits and, state by state, what led to them; a state's tolerance grows with its largest number."""
    rows = []
    first = None
    for name in a.hidden:
        x, y = a.hidden[name].float(), b.hidden.get(name)
        difference = _distance(x, y)
        rows.append((name, difference))
        if first is None and not difference <= tolerance * max(1.0, float(x.abs().max())):
            first = name
    if a.logits.shape != b.logits.shape:
        return LogitsReport(a.logits.shape[1], math.inf, 0.0, first, tuple(rows), tolerance)
    same = (a.logits.argmax(-1) == b.logits.argmax(-1)).float().mean()
    largest = float((a.logits.float() - b.logits.float()).abs().max())
    return LogitsReport(a.logits.shape[1], largest, float(same), first, tuple(rows), tolerance)


def _distance(x: Tensor, y: Tensor | None) -> float:
    if y is None or x.shape != y.shape:
        return math.inf
    return float((x - y.float()).abs().max())
