"""Which keys a rank's queries see: documents, context parallelism and windows as runs of keys instead of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import tensor_parallel
from torch import Tensor
from torch.distributed import ProcessGroup

WINDOW_ROWS = 512
"""Fewest queries of a span under a sliding window: narrower spans would cost more calls than they save scores."""


@dataclass(frozen=True)
class Span:
    """Consecutive queries and the keys that they see: the last query sees the last key, each one before it one less."""

    queries: slice
    """Rows among this rank's queries."""
    keys: slice
    """Positions in the whole sequence."""


def chunks(length: int, rank: int, ranks: int) -> list[range]:
    """The positions of a sequence of `length` that one context-parallel rank holds, in the order of its rows.

    megatron-core cuts a sequence into twice as many chunks as there are ranks and gives rank r the chunks r and
    2 * ranks - 1 - r, so that each has as many keys to see (`megatron.core.utils.get_batch_on_this_cp_rank`).
    """
    if ranks == 1:
        return [range(length)]
    assert length % (2 * ranks) == 0, f"a sequence of {length} cannot be cut into {2 * ranks} equal chunks"
    size = length // (2 * ranks)
    return [range(chunk * size, (chunk + 1) * size) for chunk in (rank, 2 * ranks - 1 - rank)]


def spans(held: Sequence[range], bounds: Sequence[int], window: int | None = None) -> list[Span]:
    """Cuts this rank's queries so that each part sees one run of keys, whose end is the part's own.

    Args:
        held: positions of this rank's queries, from `chunks`.
        bounds: first position of every document, and the end of the last, e.g. [0, 3, 8].
        window: how many keys before itself a query sees; None for all of its document.
    """
    assert bounds[0] == 0 and all(chunk.stop <= bounds[-1] for chunk in held), "documents must cover the sequence"
    found, row = [], 0
    for chunk in held:
        for first, end in zip(bounds[:-1], bounds[1:], strict=True):
            start, stop = max(first, chunk.start), min(end, chunk.stop)
            rows = max(window, WINDOW_ROWS) if window is not None else max(1, stop - start)
            for begin in range(start, stop, rows):
                last = min(begin + rows, stop)
                oldest = first if window is None else max(first, begin - window)
                offset = row - chunk.start
                found.append(Span(slice(offset + begin, offset + last), slice(oldest, last)))
        row += len(chunk)
    return found


def whole_sequence(x: Tensor, group: ProcessGroup) -> Tensor:
    """Gathers what context-parallel ranks hold and puts its chunks in order; the gradient is summed back to each.

    Args:
        x: [s / c, b, ...], this rank's chunks.
        group: the c context-parallel ranks.

    Returns:
        [s, b, ...].
    """
    ranks = group.size()
    if ranks == 1:
        return x
    gathered = tensor_parallel.gather_from_sequence_parallel_region(x, group=group)
    # Chunk c < ranks is the first one of rank c; the others are second ones, of the ranks counted from the end.
    order = [2 * c if c < ranks else 2 * (2 * ranks - 1 - c) + 1 for c in range(2 * ranks)]
    parts = gathered.unflatten(0, (2 * ranks, -1))
    return parts.index_select(0, torch.tensor(order, device=x.device)).flatten(0, 1)
