"""Megatron-FSDP without a GPU: the few names of its own that say "cuda", redirected to the CPU."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

ADAPTER = "megatron.core.distributed.fsdp.mcore_fsdp_adapter"
WRAPPER = "megatron.core.distributed.fsdp.src.megatron_fsdp.megatron_fsdp"


class _CpuMesh(DeviceMesh):
    """The mesh of ranks, on the CPU whatever device it is asked for."""

    @staticmethod
    def from_group(group: Any, device_type: str, *args: Any, **kwargs: Any) -> DeviceMesh:
        """A mesh over process groups that there are already."""
        return DeviceMesh.from_group(group, "cpu", *args, **kwargs)


class _TorchOnCpu(types.ModuleType):
    """`torch`, whose every device is the CPU: Megatron-FSDP spells `cuda:{current_device()}` out."""

    device = staticmethod(lambda *args: torch.device("cpu"))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _Absent:
    """Stands where Transformer Engine's class would be asked for by isinstance()."""


def redirect(replace: Callable[[Any, str, Any], None]) -> None:
    """Redirects the names by `replace(owner, name, value)`; megatron.core must have been imported."""
    adapter, wrapper = importlib.import_module(ADAPTER), importlib.import_module(WRAPPER)
    replace(adapter, "DeviceMesh", _CpuMesh)
    replace(wrapper, "torch", _TorchOnCpu("torch"))
    if not isinstance(getattr(adapter, "TELinear", _Absent), type):  # a mock: isinstance() does not take it
        replace(adapter, "TELinear", _Absent)
