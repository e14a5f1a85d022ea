"""Types of the extension that csrc/indices.cpp becomes."""

import numpy as np
from numpy.typing import NDArray

def build_sample_idx_int32(
    lengths: NDArray[np.int32], documents: NDArray[np.int32], seq_length: int, extra_tokens: int = 1
) -> NDArray[np.int32]: ...
def build_sample_idx_int64(
    lengths: NDArray[np.int32], documents: NDArray[np.int32], seq_length: int, extra_tokens: int = 1
) -> NDArray[np.int64]: ...
def build_blending_indices(weights: NDArray[np.float64], size: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]: ...
