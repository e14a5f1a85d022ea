"""fp32 matrix products through oneDNN on AMD processors, where torch's MKL leaves more than half the speed unused."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

# Below this many multiplications the way through python costs more than the faster kernel saves.
_SMALLEST = 2**22


def is_faster() -> bool:
    """Whether oneDNN's fp32 product beats MKL's here: measured on AMD with AVX-512, 165 to 245 GFLOP/s against 105."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()
    return amd and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


class OneDnnProducts:
    """Puts oneDNN in the place of torch's CPU kernel for `mm`; `remove()` puts torch's back."""

    def __init__(self) -> None:
        self._library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an operator of torch is replaced is what we want
            self._library.impl("mm", _mm, "CPU")

    def remove(self) -> None:
        """Puts torch's own kernel back."""
        self._library._destroy()


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] times b [k, n]."""
    if a.dtype is b.dtype is torch.float32 and a.numel() * b.shape[1] >= _SMALLEST:
        if not a.is_contiguous() and b.numel() < a.numel():
            return _product(b.t(), a.t()).t()  # the left factor is made contiguous: let it be the smaller one
        return _product(a, b)
    return torch.addmm(a.new_empty(()), a, b, beta=0)  # torch's own mm, by its other name


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
