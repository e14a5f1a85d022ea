"""Speed: tokens a second, where a step's time goes, and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

# Dense peaks in FLOP/s; NVIDIA's data sheets give them with 2:4 sparsity, which is twice as much.
# Words that the device name must hold, most particular first (names as torch.cuda.get_device_name gives them).
PEAK_FLOPS: Mapping[tuple[str, ...], Mapping[str, float]] = MappingProxyType(
    {
        ("a100",): {"bf16": 312e12},  # NVIDIA A100 data sheet (SXM and PCIe alike); Ampere has no FP8
        ("h100", "pcie"): {"bf16": 756e12, "fp8": 1513e12},  # NVIDIA H100 data sheet, PCIe column
        ("h100", "nvl"): {"bf16": 835e12, "fp8": 1671e12},  # NVIDIA H100 data sheet, NVL column (one GPU)
        ("h100",): {"bf16": 989e12, "fp8": 1979e12},  # NVIDIA H100 data sheet, SXM5; its name says "80GB HBM3"
        ("h200", "nvl"): {"bf16": 835e12, "fp8": 1671e12},  # NVIDIA H200 data sheet, NVL column
        ("h200",): {"bf16": 989e12, "fp8": 1979e12},  # NVIDIA H200 data sheet, SXM
        ("h800", "pcie"): {"bf16": 756e12, "fp8": 1513e12},  # H100 PCIe with a slower NVLink: same tensor cores
        ("h800",): {"bf16": 989e12, "fp8": 1979e12},  # H100 SXM5 with NVLink at 400 GB/s: same tensor cores
        ("b200",): {"bf16": 2250e12, "fp8": 4500e12, "fp4": 9000e12},  # NVIDIA HGX B200 data sheet, one GPU of eight
    }
)


def peak_flops(device_name: str, dtype: Literal["fp32", "bf16", "fp16", "fp8", "fp4"]) -> float | None:
    """Dense tensor-core peak of a device in FLOP/s for a number format; None where the table does not know it."""
    if dtype == "fp16":
        dtype = "bf16"  # tensor cores are as fast with either
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    for needed, peaks in PEAK_FLOPS.items():
        if words.issuperset(needed):
            return peaks.get(dtype)
    return None


def mfu(flops_per_token: float, tokens_per_s: float, gpus: int, peak_flops: float) -> float:
    """Model FLOPs utilisation, 0 to 1, as PaLM (arXiv:2204.02311, appendix B) defines it.

    Args:
        flops_per_token: forward and backward FLOPs that the model needs for a token; recomputation does not count.
        tokens_per_s: of the whole job.
        gpus: GPUs in the job.
        peak_flops: dense peak of one GPU, FLOP/s.
    """
    return flops_per_token * tokens_per_s / (gpus * peak_flops)


@dataclass(frozen=True)
class Speed:
    """Speed over one interval."""

    tokens_per_s: float
    """Tokens a second of the whole job."""
    step_time_s: float
    """Mean seconds of a step."""


class Throughput:
    """Counts steps against the wall clock, from one report to the next; pauses (evaluation, saving) do not count.

    The clock starts with the object: make it just before the first step.

    Args:
        tokens: tokens trained on before.
    """

    def __init__(self, tokens: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._tokens = self._tokens_reported = tokens
        self._clock = clock
        self._begin = clock()
        self._paused_s = 0.0
        self._steps = 0

    def step(self, tokens: int) -> None:
        """Counts one finished step, after which the run has trained on `tokens` tokens in all."""
        self._steps += 1
        self._tokens = tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the block out of the interval."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - begin

    def report(self) -> Speed:
        """The speed since the last report; begins the next interval. At least one step must have been counted."""
        assert self._steps > 0, "a speed needs a step"
        now = self._clock()
        seconds = max(now - self._begin - self._paused_s, 1e-9)  # a coarse clock may stand still for a tiny step
        done = self._tokens - self._tokens_reported
        speed = Speed(tokens_per_s=done / seconds, step_time_s=seconds / self._steps)
        self._begin, self._paused_s, self._steps, self._tokens_reported = now, 0.0, 0, self._tokens
        return speed


class Timeline:
    """Adds up host seconds by name, e.g. ``with timeline.span("data")``; two clock reads a span, no device wait.

    On a GPU a span is the time to queue the work, not to do it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Adds the time of the block to ``name``."""
        begin = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - begin

    def drain(self) -> dict[str, float]:
        """Seconds since the last drain, summed over its steps, as the extra figures of a row: ``time_<name>_s``."""
        drained = {f"time_{name}_s": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        return drained
