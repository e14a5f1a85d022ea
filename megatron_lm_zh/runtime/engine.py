"""Makes megatron-core importable on this device, quietly; call `prepare` before anything that imports megatron."""

from __future__ import annotations

import importlib
import logging
import warnings

import torch

from megatron_lm_zh.runtime import device as devices
from megatron_lm_zh.runtime.cpu import CpuAdapter
from megatron_lm_zh.runtime.device import Device

# Loggers of megatron-core that repeat at every import or call what one line of ours says once.
_CHATTY = ("megatron.core", "torch.distributed.checkpoint")

_adapter = CpuAdapter()


def prepare(local_rank: int = 0, *, deterministic: bool = False) -> Device:
    """Detects the device, adapts megatron-core to it and imports it; returns the device.

    Args:
        local_rank: which of this machine's processes this is (and so which GPU it takes).
        deterministic: ask for deterministic kernels.
    """
    if deterministic:
        devices.make_deterministic()
    device = devices.detect(local_rank)
    if device.kind == "cpu":
        _adapter.install()
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"megatron\.core|torch\.distributed|torch\.jit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("megatron.core")
    if device.kind == "cpu":
        _adapter.install_engine()
    return device


def release() -> None:
    """Takes the CPU adapter away again: `torch` is then as it was before `prepare`."""
    _adapter.remove()


def threads(count: int) -> None:
    """Sets the number of CPU threads that one operation of this process uses."""
    torch.set_num_threads(count)
