"""AdamW with its step in the parameter group, for machines without Transformer Engine or Apex.

torch keeps one step tensor a parameter. megatron-core's distributed optimizer restores it wrongly (one shared tensor, 0
instead of the step, no error); with the step in the group, as Apex and Transformer Engine have it, it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import megatron.core.optimizer as megatron_optimizer
import torch
from megatron.core.optimizer import distrib_optimizer
from torch.optim.adamw import adamw

from megatron_lm_zh import compat


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay Adam (Loshchilov & Hutter 2019), bit for bit torch.optim.AdamW(fused=True).

    The signature is that of Apex's FusedAdam, as whose replacement megatron-core takes it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        if not adam_w_mode or capturable:
            raise ValueError("only decoupled weight decay is implemented, and no capture in CUDA graphs")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            step = group.get("step", 0)
            params = [p for p in group["params"] if p.grad is not None]
            states = [self._state_of(p) for p in params]
            if params:
                adamw(
                    params,
                    [p.grad for p in params],
                    [s["exp_avg"] for s in states],
                    [s["exp_avg_sq"] for s in states],
                    [],
                    [torch.tensor(float(step), device=p.device) for p in params],
                    fused=True,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
            group["step"] = step + 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads moments and step; megatron-core calls it with tensors that still ask for gradients."""
        with torch.no_grad():
            super().load_state_dict(state_dict)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def use_as_fused_adam() -> None:
    """Gives megatron-core this AdamW where it found neither Transformer Engine's nor Apex's fused Adam."""
    if compat.has_transformer_engine() or compat.has_apex():
        return
    megatron_optimizer.Adam = AdamW
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = AdamW
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True
