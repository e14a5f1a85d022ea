"""Collectives on gloo that experts need: splits in any form, parts of different lengths, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist

LENGTHS = [3, 0, 1]  # rows of each rank; an expert may get no token at all


def part_of(rank: int) -> Any:
    import torch

    return torch.arange(LENGTHS[rank] * 2, dtype=torch.float32).reshape(-1, 2) + 100 * rank


def splits_are_taken_in_any_form(rank: int) -> None:
    import numpy as np
    import torch
    import torch.distributed as dist

    sent = torch.arange(3.0) + 10 * rank  # one number for each rank
    for form in (list, torch.tensor, np.array):
        ones = form([1, 1, 1])
        received = torch.empty(3)
        dist.all_to_all_single(received, sent, output_split_sizes=ones, input_split_sizes=ones)
        assert received.tolist() == [rank, 10.0 + rank, 20.0 + rank]
    received = torch.empty(3)
    dist.all_to_all_single(received, sent)
    assert received.tolist() == [rank, 10.0 + rank, 20.0 + rank]


def uneven_parts_are_gathered(rank: int) -> None:
    import torch
    import torch.distributed as dist

    parts = [torch.full((length, 2), -1.0) for length in LENGTHS]
    dist.all_gather(parts, part_of(rank))
    for other, part in enumerate(parts):
        assert torch.equal(part, part_of(other))


def uneven_parts_are_summed(rank: int) -> None:
    import torch
    import torch.distributed as dist

    mine = torch.full((LENGTHS[rank], 2), -1.0)
    dist.reduce_scatter(mine, [part_of(other) * (rank + 1) for other in range(3)])
    assert torch.equal(mine, part_of(rank) * (1 + 2 + 3))


def equal_parts_go_as_before(rank: int) -> None:
    import torch
    import torch.distributed as dist

    parts = [torch.empty(2) for _ in range(3)]
    work = dist.all_gather(parts, torch.full((2,), float(rank)), async_op=True)
    work.wait()
    assert [part[0].item() for part in parts] == [0, 1, 2]
    mine = torch.empty(2)
    dist.reduce_scatter(mine, [torch.full((2,), float(other)) for other in range(3)])
    assert mine.tolist() == [3.0 * rank] * 2


def engine_gathers_and_scatters_tokens(rank: int) -> None:
    import torch
    import torch.distributed as dist
    from megatron.core.tensor_parallel import mappings

    group = dist.group.WORLD
    tokens = part_of(rank).requires_grad_()
    gathered = mappings.gather_from_sequence_parallel_region(tokens, group=group, output_split_sizes=LENGTHS)
    assert torch.equal(gathered, torch.cat([part_of(other) for other in range(3)]))
    returned = mappings.reduce_scatter_to_sequence_parallel_region(gathered, group=group, input_split_sizes=LENGTHS)
    assert torch.equal(returned, 3 * part_of(rank))
    returned.backward(part_of(rank))
    assert torch.equal(tokens.grad, 3 * part_of(rank))


CHECKS = (
    splits_are_taken_in_any_form,
    uneven_parts_are_gathered,
    uneven_parts_are_summed,
    equal_parts_go_as_before,
    engine_gathers_and_scatters_tokens,
)


def check_in_world(ranks: Any, device: Any, name: str) -> None:
    """Runs in the pool."""
    import torch.distributed as dist

    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=ranks.world)
    try:
        globals()[name](ranks.rank)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_collective(check: Callable[[int], None], ranks: RankPool) -> None:
    ranks.run(3, check_in_world, check.__name__)
