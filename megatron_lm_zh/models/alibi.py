"""Attention with linear biases (Press et al. 2022), carried by a few more channels of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

DIGIT = 256  # integers below it are exact in bf16


def slopes(heads: int) -> list[float]:
    """The slope of every head: a geometric series for powers of two, else filled up from that of the next power."""
    power = 1 << (heads.bit_length() - 1)
    series = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return series + between[: heads - power]


def with_alibi(query: Tensor, key: Tensor, head_slopes: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries and keys whose scaled product is that of the given ones plus slope * (key's position - last position).

    The bias of ALiBi is -slope * (query's position - key's position), and a softmax does not see what is added to a
    whole row: the query's position may be left out. What remains is a product of one number of the head and one of the
    key. Each is split into two that are exact in 16 bits, so that fused kernels need no [n, s, s] bias.

    Args:
        query: [b, n, sq, d].
        key: [b, g, sk, d] of consecutive positions.
        head_slopes: [n], fp32.
        scale: what the product of queries and keys is multiplied by.

    Returns:
        [b, n, sq, d + 4] and [b, g, sk, d + 4].
    """
    position = torch.arange(key.shape[2] - 1, -1, -1, device=key.device)
    coarse, fine = -(position // DIGIT) * DIGIT, -(position % DIGIT)
    wanted = head_slopes / scale
    rounded = wanted.to(query.dtype)
    rest = (wanted - rounded).to(query.dtype)
    of_heads = torch.stack((rounded, rounded, rest, rest), dim=-1)[:, None, :]
    of_keys = torch.stack((coarse, fine, coarse, fine), dim=-1).to(key.dtype)
    query = torch.cat((query, of_heads.expand(*query.shape[:3], 4)), dim=-1)
    return query, torch.cat((key, of_keys.expand(*key.shape[:3], 4)), dim=-1)
