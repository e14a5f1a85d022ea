"""Lets megatron-core run without a GPU: every name that must mean the CPU, redirected in one place.

Each point stands with its reason. `CpuAdapter` puts them in place and takes them away again, after which `torch` is as
before. It must never be active in a process that loads Hugging Face models: they then get uninitialised buffers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from megatron_lm_zh.runtime import fsdp, gloo, onednn

CPU = torch.device("cpu")

# Factories that megatron-core calls with a literal device="cuda" (optimizers, schedules, clipping, checkpoints).
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like", "ones_like")


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.partition(":")[0] == "cuda"


class _Stream:
    """Stands for a CUDA stream where there is only one order of execution."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: object = None) -> _Event:
        return _Event()


class _Event:
    """Stands for a CUDA event: whatever was queued before it is done already."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def record(self, stream: object = None) -> None: ...

    def wait(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


@contextlib.contextmanager
def _no_stream(stream: object) -> Iterator[None]:
    yield


def _nothing() -> Callable[..., None]:
    """A new function that does nothing: torch.compile's tables refuse one function under two names."""
    return lambda *args, **kwargs: None


def _not_compiled(function: Any = None, **options: object) -> Any:
    # Decorates megatron-core's small fused functions at import: compiling them takes longer on a CPU than it saves.
    return function if function is not None else (lambda decorated: decorated)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):  # context parallelism stages the numbers of its chunks for a copy to the GPU
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapped


def _tensor_to(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (CPU, *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original(self, *args, **kwargs)

    return to


def _tensor_type(original: Callable[..., Any]) -> Callable[..., Any]:
    # The optimizers sort parameters by `param.type() == "torch.cuda.FloatTensor"` and refuse any other string.
    @functools.wraps(original)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return original(self, *args, **kwargs)
        return original(self).replace("torch.", "torch.cuda.", 1)

    return type_


def _without_fp8(original: Callable[..., None]) -> Callable[..., None]:
    # Recomputation of a norm takes its own default, False, for a request for FP8, and asks Transformer Engine about it.
    @functools.wraps(original)
    def initialised(self: Any, fp8: Any = None) -> None:
        original(self, fp8=fp8 or None)

    return initialised


def _not_about_the_generator(record: logging.LogRecord) -> bool:
    return "CPU RNG state changed" not in record.getMessage()


def _get_rng_state(*args: object, **kwargs: object) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args: object, **kwargs: object) -> None:
    torch.set_rng_state(state)


class CpuAdapter:
    """Redirects what megatron-core asks of CUDA to the CPU; `install()` before megatron is imported."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    @property
    def installed(self) -> bool:
        """Whether the names are redirected now."""
        return bool(self._undo)

    def install(self) -> None:
        """Redirects the names of torch. Raises RuntimeError where CUDA is present: there it must never be used."""
        if torch.cuda.is_available():
            raise RuntimeError("the CPU adapter must not be installed where CUDA is present")
        if self.installed:
            return
        self._device_names()
        self._random_state()
        self._tensors()
        self._collectives()
        if onednn.is_faster():
            self._undo.append(onednn.OneDnnProducts().remove)

    def install_engine(self) -> None:
        """Redirects the names of megatron-core itself; call it once megatron.core has been imported."""
        random = importlib.import_module("megatron.core.tensor_parallel.random")
        # These two talk to the CUDA generator directly; dropout and initialisation draw from the CPU's here.
        self._set(random, "_get_cuda_rng_state", _get_rng_state)
        self._set(random, "_set_cuda_rng_state", _set_rng_state)
        # The tracker warns that the CPU generator moved inside its fork: here that is what a fork is for.
        logger = logging.getLogger(random.__name__)
        logger.addFilter(_not_about_the_generator)
        self._undo.append(lambda: logger.removeFilter(_not_about_the_generator))
        self._without_transformer_engine()
        fsdp.redirect(self._set)

    def remove(self) -> None:
        """Puts every name back."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> CpuAdapter:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _set(self, owner: Any, name: str, value: Any) -> None:
        missing = object()
        before = vars(owner).get(name, missing)  # what getattr finds may be inherited: then it is deleted again
        setattr(owner, name, value)
        if before is missing:
            self._undo.append(lambda: delattr(owner, name))
        else:
            self._undo.append(lambda: setattr(owner, name, before))

    def _device_names(self) -> None:
        cuda = torch.cuda
        self._set(cuda, "current_device", lambda: CPU)  # used as `device=torch.cuda.current_device()` throughout
        self._set(cuda, "device_count", lambda: 1)  # the checkpoint writer divides by it
        self._set(cuda, "set_device", _nothing())
        self._set(cuda, "synchronize", _nothing())
        self._set(cuda, "empty_cache", _nothing())
        self._set(cuda, "is_current_stream_capturing", lambda: False)  # no CUDA graphs here
        self._set(cuda, "Stream", _Stream)  # overlapped gradient reduction makes streams of its own
        self._set(cuda, "Event", _Event)
        self._set(cuda, "stream", _no_stream)
        self._set(cuda, "current_stream", lambda *args, **kwargs: _Stream())
        self._set(cuda, "default_stream", lambda *args, **kwargs: _Stream())

    def _random_state(self) -> None:
        # megatron-core's tracker forks the generator of the device: here the CPU's.
        for owner in (torch.cuda, torch.cuda.random):
            self._set(owner, "get_rng_state", lambda *args, **kwargs: torch.get_rng_state())
            self._set(owner, "set_rng_state", lambda state, *args, **kwargs: torch.set_rng_state(state))
            self._set(owner, "manual_seed", lambda seed: torch.default_generator.manual_seed(seed))

    def _tensors(self) -> None:
        self._set(torch, "compile", _not_compiled)
        for name in _FACTORIES:
            self._set(torch, name, _on_cpu(getattr(torch, name)))
        self._set(torch.Tensor, "to", _tensor_to(torch.Tensor.to))
        self._set(torch.Tensor, "type", _tensor_type(torch.Tensor.type))
        self._set(torch.Tensor, "cuda", lambda self, *args, **kwargs: self)
        self._set(torch.nn.Module, "cuda", lambda self, *args, **kwargs: self)

    def _collectives(self) -> None:
        self._set(dist, "all_to_all_single", gloo.int_splits(dist.all_to_all_single))
        # Expert-tensor-parallel ranks hold different numbers of tokens, and exchange them by these two.
        self._set(dist, "all_gather", gloo.uneven_gather(dist.all_gather))
        self._set(dist, "reduce_scatter", gloo.uneven_scatter(dist.reduce_scatter))

    def _without_transformer_engine(self) -> None:
        random = importlib.import_module("megatron.core.tensor_parallel.random")
        checkpoint = random.CheckpointWithoutOutput
        self._set(checkpoint, "__init__", _without_fp8(checkpoint.__init__))
        # Two modules of megatron-core 0.16 take Transformer Engine for present where only stand-ins for it are.
        moe = importlib.import_module("megatron.core.transformer.moe.moe_utils")
        if not hasattr(moe, "te_general_gemm"):
            self._set(moe, "te_general_gemm", None)  # the router's product reads it before it falls back to torch's
        latent = importlib.import_module("megatron.core.transformer.multi_latent_attention")
        if latent.HAVE_TE:
            self._set(latent, "HAVE_TE", False)  # else it asks isinstance() of a class that is none
