"""Learning-rate schedules: one frozen class each, its fields the config, its arguments megatron-core's scheduler.

The curve itself is drawn by ``megatron.core.optimizer_param_scheduler.OptimizerParamScheduler``; a class here only says
which of its styles is wanted. To add a schedule, write one class and add it to ``Schedule``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class _WarmUp:
    """Fields that every schedule has."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from warmup_init_lr to `optim.lr`."""
    warmup_init_lr: float = Field(default=0.0, ge=0)
    """Learning rate of the first step of a warm-up."""

    def scheduler_arguments(self, total_steps: int) -> dict[str, Any]:
        """Keyword arguments of OptimizerParamScheduler that depend on the schedule, for a run of `total_steps`."""
        return {
            "init_lr": self.warmup_init_lr,
            "lr_warmup_steps": self.warmup_steps,
            "lr_decay_steps": total_steps,
            "min_lr": 0.0,
        }


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Constant(_WarmUp):
    """The learning rate stays at `optim.lr` after the warm-up."""

    kind: Literal["constant"] = "constant"
    """Which schedule."""

    def scheduler_arguments(self, total_steps: int) -> dict[str, Any]:
        return super().scheduler_arguments(total_steps) | {"lr_decay_style": "constant"}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class _Decay(_WarmUp):
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the decay."""

    def scheduler_arguments(self, total_steps: int) -> dict[str, Any]:
        return super().scheduler_arguments(total_steps) | {"min_lr": self.min_lr}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Linear(_Decay):
    """A straight line from `optim.lr` to `min_lr` over the steps after the warm-up."""

    kind: Literal["linear"] = "linear"
    """Which schedule."""

    def scheduler_arguments(self, total_steps: int) -> dict[str, Any]:
        return super().scheduler_arguments(total_steps) | {"lr_decay_style": "linear"}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Cosine(_Decay):
    """Half a cosine from `optim.lr` to `min_lr` over the steps after the warm-up (Loshchilov & Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    """Which schedule."""

    def scheduler_arguments(self, total_steps: int) -> dict[str, Any]:
        return super().scheduler_arguments(total_steps) | {"lr_decay_style": "cosine"}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class InverseSquareRoot(_Decay):
    """`optim.lr` x sqrt(warmup_steps / step) after the warm-up, never below `min_lr` (Vaswani et al. 2017)."""

    kind: Literal["inverse_square_root"] = "inverse_square_root"
    """Which schedule."""

    def scheduler_arguments(self, total_steps: int) -> dict[str, Any]:
        return super().scheduler_arguments(total_steps) | {"lr_decay_style": "inverse-square-root"}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class WarmupStableDecay(_Decay):
    """Warm-up, a plateau at `optim.lr`, then a short decay to `min_lr` (MiniCPM, Hu et al. 2024)."""

    kind: Literal["wsd"] = "wsd"
    """Which schedule."""
    decay_steps: int = Field(gt=0)
    """Length of the final decay, in steps."""
    decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = "minus_sqrt"
    """Shape of the final decay, with t from 0 to 1 in it: 2^(1-t) - 1, 1 - t, half a cosine, or 1 - sqrt(t)."""

    def scheduler_arguments(self, total_steps: int) -> dict[str, Any]:
        return super().scheduler_arguments(total_steps) | {
            "lr_decay_style": "WSD",
            "wsd_decay_steps": self.decay_steps,
            "lr_wsd_decay_style": self.decay_style,
        }


Schedule = Annotated[Constant | Linear | Cosine | InverseSquareRoot | WarmupStableDecay, Field(discriminator="kind")]
