"""SwiGLU for the local layer spec: reads gate and up where they lie and writes both gradients in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_up)
        to_gate, to_up = result.chunk(2, dim=-1)
        torch.mul(gradient, silu(gate), out=to_up)
        torch.ops.aten.silu_backward(gradient * up, gate, grad_input=to_gate)
        return result


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020) of [s, b, 2f], where the first f channels are the gate: [s, b, f]."""
    return _SwiGlu.apply(gate_and_up)
