"""This rank's random generators: python's, numpy's, torch's, megatron-core's, seeded, saved and restored together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel


def seed(value: int) -> None:
    """Seeds every generator from one number; megatron-core's differ from rank to rank where they must."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
    tensor_parallel.model_parallel_cuda_manual_seed(value, force_reset_rng=True)


def get_state() -> dict[str, Any]:
    """The state of every generator."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def set_state(state: dict[str, Any]) -> None:
    """Restores what `get_state` gave."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
