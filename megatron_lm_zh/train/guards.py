"""Guards that stop a run before it saves what is broken."""

from __future__ import annotations

import math

import torch.distributed as dist

from megatron_lm_zh.errors import NonFiniteError


def check_finite(what: str, value: float, *, step: int, mine: float | None = None) -> None:
    """Stops every rank when `value`, which all ranks hold alike, is NaN or infinite.

    Args:
        what: what the value is, for the message.
        step: number of the step.
        mine: this rank's own part of the value, to name the ranks it came from.

    Raises:
        NonFiniteError: naming the step, the value and the ranks.
    """
    if math.isfinite(value):
        return
    culprits: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(culprits, not math.isfinite(value if mine is None else mine))
    ranks = ", ".join(str(rank) for rank, broken in enumerate(culprits) if broken)
    raise NonFiniteError(
        f"the {what} became {value} at step {step} on rank {ranks}",
        mend="nothing was saved since the last checkpoint; look at this step's data, lower optim.lr or warm up longer",
    )


def check_overflow(scale: float, smallest: float, *, step: int) -> None:
    """Stops every rank when the gradient overflowed at a loss scale that will not become smaller.

    Raises:
        NonFiniteError: naming the step and the scale.
    """
    if scale > smallest:
        return
    raise NonFiniteError(
        f"the gradient overflowed in fp16 at step {step} under a loss scale of {scale:g}, which is as small as it gets",
        mend="lower precision.min_loss_scale (a fixed precision.loss_scale: remove it), or use precision.dtype=bf16",
    )
