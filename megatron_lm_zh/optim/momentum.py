"""Lets the momentum of SGD be restored from a checkpoint, which megatron-core leaves undone."""

from __future__ import annotations

import torch
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer


def restorable(optimizer: MegatronOptimizer) -> MegatronOptimizer:
    """The optimizer, whose SGD parts know how to allocate the state that a checkpoint is loaded into.

    megatron-core calls `init_state_fn` to do so, and gives SGD none: loading then fails.
    """
    parts = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    for part in parts:
        if part.init_state_fn is None and part.optimizer is not None and "momentum" in part.optimizer.defaults:
            part.init_state_fn = _zero_momentum
    return optimizer


def _zero_momentum(optimizer: torch.optim.Optimizer, config: object = None) -> None:
    """Momentum 0, which gives the same first step as no momentum yet (there is no dampening)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["momentum"] and not optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.data)
