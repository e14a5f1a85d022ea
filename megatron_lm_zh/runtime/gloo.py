"""Collectives as megatron-core calls them on NCCL, on gloo: splits given as tensors, parts of different lengths."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor


def int_splits(original: Callable[..., Any]) -> Callable[..., Any]:
    """`all_to_all_single` that takes split sizes as tensors or arrays: gloo's binding wants lists of ints.

    The dispatcher of experts makes arrays of its counts only where it copies them from a GPU.
    """

    @functools.wraps(original)
    def all_to_all_single(
        output: Tensor,
        input: Tensor,  # noqa: A002  torch's own name for it
        output_split_sizes: Any = None,
        input_split_sizes: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return original(output, input, _ints(output_split_sizes), _ints(input_split_sizes), *args, **kwargs)

    return all_to_all_single


def uneven_gather(original: Callable[..., Any]) -> Callable[..., Any]:
    """`all_gather` of tensors with different first dimensions: gloo gathers equal ones, so they are padded."""

    @functools.wraps(original)
    def all_gather(tensor_list: list[Tensor], tensor: Tensor, group: Any = None, async_op: bool = False) -> Any:
        if _equal(tensor_list):
            return original(tensor_list, tensor, group=group, async_op=async_op)
        assert not async_op, "parts of different lengths are gathered at once"
        padded = _padded(tensor, max(map(len, tensor_list)))
        gathered = [padded.new_empty(padded.shape) for _ in tensor_list]
        original(gathered, padded, group=group)
        for part, whole in zip(tensor_list, gathered, strict=True):
            part.copy_(whole[: len(part)])
        return None

    return all_gather


def uneven_scatter(original: Callable[..., Any]) -> Callable[..., Any]:
    """`reduce_scatter` of tensors with different first dimensions, padded like `uneven_gather`'s."""

    @functools.wraps(original)
    def reduce_scatter(
        output: Tensor,
        input_list: list[Tensor],
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        if _equal(input_list):
            return original(output, input_list, op=op, group=group, async_op=async_op)
        assert not async_op, "parts of different lengths are scattered at once"
        longest = max(map(len, input_list))
        padded = _padded(output, longest)
        original(padded, [_padded(part, longest) for part in input_list], op=op, group=group)
        output.copy_(padded[: len(output)])
        return None

    return reduce_scatter


def _ints(sizes: Any) -> list[int] | None:
    if sizes is None:
        return None
    return [int(size) for size in (sizes.tolist() if hasattr(sizes, "tolist") else sizes)]


def _equal(tensors: Sequence[Tensor]) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1


def _padded(tensor: Tensor, length: int) -> Tensor:
    padded = tensor.new_zeros(length, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return padded
