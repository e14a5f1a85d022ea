"""Where the rows that Megatron-FSDP left on a rank lie in the checkpoint's tensors."""

from __future__ import annotations

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_lm_zh.models.fsdp import Part, local


@pytest.fixture
def up() -> Part:
    """The lower half of a [6, 2] parameter: rows 3 to 5 of it are rows 9 to 11 of a [12, 2] tensor, on DP rank 1."""
    tensor = ShardedTensor.from_rank_offsets("up", torch.zeros(3, 2), (0, 3, 4), replica_id=(0, 0, 1))
    return Part(tensor.without_data(), start=6)


def test_rows_are_placed_in_the_whole_tensor(up: Part) -> None:
    held = torch.arange(4.0, 12.0)  # elements 4 to 11: one row of the other half, then all of this one
    rows = up.rows(slice(4, 12), held, "optimizer.state.exp_avg.")
    assert rows is not None and rows.key == "optimizer.state.exp_avg.up"
    assert (rows.global_offset, rows.local_shape, rows.global_shape) == ((9, 0), (3, 2), (12, 2))
    assert rows.data.flatten().tolist() == [6, 7, 8, 9, 10, 11]
    assert rows.data.data_ptr() == held[2:].data_ptr(), "what is loaded must land in the parameter"
    assert rows.replica_id == (0, 0, 0) and rows.axis_fragmentations is None


def test_a_rank_may_hold_some_rows_or_none(up: Part) -> None:
    rows = up.rows(slice(8, 10), torch.tensor([8.0, 9.0]).bfloat16())
    assert rows is not None and rows.global_offset == (10, 0) and rows.dtype == torch.bfloat16
    assert up.rows(slice(0, 6), torch.zeros(6)) is None
    with pytest.raises(AssertionError, match="rows are never cut"):
        up.rows(slice(7, 10), torch.zeros(3))


def test_local_leaves_plain_tensors_alone() -> None:
    tensor = torch.ones(2)
    assert local(tensor) is tensor
