"""What a config may need of the machine, each a function that says in words what is lacking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_lm_zh import compat
from megatron_lm_zh.runtime.device import Device

OPTIONAL_MODULES = ("deep_ep", "einops", "fused_weight_gradient_mlp_cuda")


@dataclass(frozen=True)
class Software:
    """What kernels come from; () is the version of what is absent."""

    transformer_engine: tuple[int, ...] = ()
    cuda: tuple[int, ...] = ()
    """The CUDA that torch was built with."""
    modules: frozenset[str] = frozenset()
    """Which of OPTIONAL_MODULES can be imported."""
    muon: bool = False
    """Whether the installed megatron-core finds a Muon that it can use."""


def installed() -> Software:
    """What this machine has."""
    return Software(
        compat.transformer_engine_version(),
        tuple(int(number) for number in (torch.version.cuda or "").split(".") if number),
        frozenset(name for name in OPTIONAL_MODULES if compat.has_module(name)),
        compat.has_muon(),
    )


@dataclass(frozen=True)
class Machine:
    """A device and the software around it."""

    device: Device
    software: Software

    @property
    def name(self) -> str:
        """The device as a person knows it, with its compute capability."""
        if self.device.capability is None:
            return self.device.name
        return f"{self.device.name} (compute capability {'.'.join(map(str, self.device.capability))})"


Need = Callable[[Machine], str | None]
"""What a machine lacks, in words; None where it lacks nothing."""


def gpu(machine: Machine) -> str | None:
    """A CUDA device."""
    return None if machine.device.kind == "cuda" else "a GPU"


def transformer_engine(*at_least: int) -> Need:
    """Transformer Engine on a GPU, from a version on."""
    version = f" {'.'.join(map(str, at_least))} or newer" if at_least else ""

    def need(machine: Machine) -> str | None:
        if machine.device.transformer_engine and machine.software.transformer_engine >= at_least:
            return None
        return gpu(machine) or f"Transformer Engine{version} (mlzh doctor says how to get it)"

    return need


def capability(at_least: tuple[int, int], below: tuple[int, int] | None = None) -> Need:
    """A GPU of some generations."""
    words = f"compute capability {at_least[0]}.{at_least[1]} or higher"
    if below is not None:
        words += f" and below {below[0]}.{below[1]}"

    def need(machine: Machine) -> str | None:
        has = machine.device.capability
        if has is not None and at_least <= has and (below is None or has < below):
            return None
        return gpu(machine) or words

    return need


def cuda(*at_least: int) -> Need:
    """A torch built for a CUDA version or a newer one."""
    words = f"a torch built with CUDA {'.'.join(map(str, at_least))} or newer"
    return lambda machine: None if machine.software.cuda >= at_least else words


def module(name: str) -> Need:
    """A Python module on a GPU machine."""
    return lambda machine: gpu(machine) or (None if name in machine.software.modules else f"the package {name}")


def muon(machine: Machine) -> str | None:
    """A Muon that the installed megatron-core can use."""
    return None if machine.software.muon else "megatron-core 0.19 and emerging-optimizers 0.2 or newer"


def other_layers(machine: Machine) -> str | None:
    """Layers that are not Transformer Engine's."""
    return "layers other than Transformer Engine's" if machine.device.transformer_engine else None


def separate_softmax(machine: Machine) -> str | None:
    """An attention that computes its scores apart from its softmax: this system has none."""
    return "an attention with a separate softmax"


def either(*needs: Need) -> Need:
    """One of several things."""

    def need(machine: Machine) -> str | None:
        lacking = [words for need in needs if (words := need(machine))]
        return " or ".join(dict.fromkeys(lacking)) if len(lacking) == len(needs) else None

    return need


def all_of(*needs: Need) -> Need:
    """All of several things; the first that is lacking is named."""
    return lambda machine: next((words for need in needs if (words := need(machine))), None)
