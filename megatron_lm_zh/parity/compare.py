"""Compares two recordings of the same steps: the asked layout against one rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Regrouping micro-batches alone moves the fp32 gradient norm by up to 6e-5 relative in 20 steps, so a tighter bound
# would test the machine; a wrong reduction moves it by far more than these.
TOLERANCES = {"fp32": (1e-5, 1e-3), "bf16": (1e-2, 5e-2), "fp16": (1e-2, 5e-2)}


@dataclass(frozen=True)
class StepRecord:
    """One step of one world."""

    step: int
    lm_loss: float
    """Nats per token."""
    grad_norm: float | None
    """Global norm before clipping; None where it overflowed (fp16) and the update was skipped."""


@dataclass(frozen=True)
class Comparison:
    """Two worlds, step by step."""

    one_rank: tuple[StepRecord, ...]
    layout: tuple[StepRecord, ...]
    loss_tolerance: float
    """Largest absolute difference of the losses that passes."""
    norm_tolerance: float
    """Largest relative difference of the gradient norms that passes."""

    @property
    def loss_difference(self) -> float:
        """Largest absolute difference of the losses."""
        return max(abs(a.lm_loss - b.lm_loss) for a, b in zip(self.one_rank, self.layout, strict=True))

    @property
    def norm_difference(self) -> float:
        """Largest relative difference of the gradient norms; infinite where one world skipped an update alone."""
        return max(abs(_relative(a, b)) for a, b in zip(self.one_rank, self.layout, strict=True))

    @property
    def weakest_norm(self) -> float:
        """Smallest gradient norm of the one rank's steps."""
        return min(record.grad_norm for record in self.one_rank if record.grad_norm is not None)

    @property
    def agrees(self) -> bool:
        """Whether every step is within the tolerances."""
        return self.loss_difference <= self.loss_tolerance and self.norm_difference <= self.norm_tolerance

    def lines(self) -> list[str]:
        """The table, one line a step, and the verdict."""
        table = ["step   one rank       the layout     difference   grad norm      relative difference"]
        for a, b in zip(self.one_rank, self.layout, strict=True):
            table.append(
                f"{a.step:4d}   {a.lm_loss:.9f}   {b.lm_loss:.9f}   {b.lm_loss - a.lm_loss:+.1e}     "
                f"{'overflow ' if b.grad_norm is None else f'{b.grad_norm:.7f}'}      {_relative(a, b):+.1e}"
            )
        verdict = "agrees with" if self.agrees else "DIFFERS from"
        table.append(
            f"the layout {verdict} one rank: "
            f"loss within {self.loss_difference:.1e} (allowed {self.loss_tolerance:.0e}), "
            f"grad norm within {self.norm_difference:.1e} relative (allowed {self.norm_tolerance:.0e})"
        )
        return table

    def to_json(self) -> dict[str, Any]:
        """The table for machines."""
        return {
            "agrees": self.agrees,
            "loss_difference": self.loss_difference,
            "norm_difference": self.norm_difference,
            "loss_tolerance": self.loss_tolerance,
            "norm_tolerance": self.norm_tolerance,
            "steps": [
                {"step": a.step, "one_rank": vars(a), "layout": vars(b)}
                for a, b in zip(self.one_rank, self.layout, strict=True)
            ],
        }


def _relative(one_rank: StepRecord, layout: StepRecord) -> float:
    """How far the layout's gradient norm is from one rank's, relative to it."""
    if one_rank.grad_norm is None or layout.grad_norm is None:
        return 0.0 if one_rank.grad_norm == layout.grad_norm else math.inf
    return (layout.grad_norm - one_rank.grad_norm) / one_rank.grad_norm


def compare(one_rank: Sequence[StepRecord], layout: Sequence[StepRecord], dtype: str) -> Comparison:
    """The comparison of two recordings in the tolerances of a precision (`fp32`, `bf16` or `fp16`)."""
    loss_tolerance, norm_tolerance = TOLERANCES[dtype]
    return Comparison(tuple(one_rank), tuple(layout), loss_tolerance, norm_tolerance)
