"""The global batch size over a run: one size, or grown from a small one as by Megatron-LM's --rampup-batch-size."""

from __future__ import annotations

import functools
from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """Sequences in each optimizer step: a function of the sequences consumed before it alone."""

    final: int
    """Size after the ramp."""
    ramp: tuple[int, int, int] | None = None
    """[start, increment, samples], or None for one size all along. One that is not `legal` counts as None."""

    @property
    def legal(self) -> bool:
        """Whether the ramp rises to the final size in whole increments."""
        if self.ramp is None:
            return True
        start, increment, _ = self.ramp
        return min(self.ramp) > 0 and start < self.final and (self.final - start) % increment == 0

    def at(self, consumed_samples: int) -> int:
        """Size of the step that begins when `consumed_samples` have been consumed."""
        if self.ramp is None or not self.legal or consumed_samples > self.ramp[2]:
            return self.final
        start, increment, samples = self.ramp
        # In floating point, as in megatron-core's RampupBatchsizeNumMicroBatchesCalculator.
        samples_per_increment = samples / ((self.final - start) // increment)
        return start + int(consumed_samples / samples_per_increment) * increment

    def sizes(self) -> list[int]:
        """Every size that a step may have, smallest first."""
        return (
            [self.final]
            if self.ramp is None or not self.legal
            else [*range(self.ramp[0], self.final, self.ramp[1]), self.final]
        )

    def consumed_by(self, steps: int) -> int:
        """Sequences consumed by the first `steps` steps of a run."""
        starts = _starts(self)
        ramped = min(steps, len(starts) - 1)
        return starts[ramped] + (steps - ramped) * self.final

    def steps_for(self, samples: int) -> int:
        """The fewest steps that consume at least `samples` sequences."""
        starts = _starts(self)
        if samples <= starts[-1]:
            return bisect_left(starts, samples)
        return len(starts) - 1 - (starts[-1] - samples) // self.final

    def last_whole_step(self, consumed_samples: int, available: int) -> int:
        """Where the last step ends that `available` samples can fill, from `consumed_samples` on."""
        while (size := self.at(consumed_samples)) != self.final and consumed_samples + size <= available:
            consumed_samples += size
        if size != self.final or available < consumed_samples:
            return consumed_samples
        return available - (available - consumed_samples) % size


@functools.lru_cache(maxsize=8)
def _starts(sizes: BatchSizes) -> tuple[int, ...]:
    """Sequences consumed before each step of the ramp, and before the first step of the final size."""
    starts = [0]
    while (size := sizes.at(starts[-1])) != sizes.final:
        starts.append(starts[-1] + size)
    return tuple(starts)
