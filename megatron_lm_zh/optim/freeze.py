"""Training the new rows of an extended vocabulary alone: all other weights are held to the bit.

A frozen weight has gradient zero from the first step on and no weight decay. Adam's and SGD's moments of it are then
zero, too, and so is its update, exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor


@torch.no_grad()
def hold_body(model: list[Any], optimizer: MegatronOptimizer, first_new_row: int) -> None:
    """Makes the next update move only the rows from `first_new_row` on of the word embedding and the output layer.

    To be called when all gradients are reduced. The schedule sets the weight decay anew after each update.

    Args:
        model: the wrapped model chunks, whose gradients [rows, h] are in DDP's buffers.
        first_new_row: an id; each tensor-parallel rank holds its share of the rows.
    """
    for parameter in (parameter for chunk in model for parameter in chunk.parameters() if parameter.requires_grad):
        gradient: Tensor = parameter.main_grad
        if getattr(parameter, "is_embedding_or_output_parameter", False):
            above = first_new_row - parallel_state.get_tensor_model_parallel_rank() * len(gradient)
            gradient = gradient[: max(above, 0)]
        gradient.zero_()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
