"""Samples that a run jumps over."""

from __future__ import annotations

import pytest
from making import Numbers

from megatron_lm_zh.data.order.skip import Skipping


@pytest.mark.parametrize(
    "ranges", [(), ((0, 3),), ((2, 4), (4, 5), (9, 10)), ((8, 30),), ((1, 2), (40, 50)), ((0, 10),)]
)
def test_the_rest_moves_up(ranges: tuple[tuple[int, int], ...]) -> None:
    left = [n for n in range(10) if not any(first <= n < end for first, end in ranges)]
    skipping = Skipping(Numbers(10), ranges)
    assert len(skipping) == len(left)
    for index, number in enumerate(left):
        assert skipping.position(index) == number
        assert skipping[index].tolist() == [number]
        assert skipping.spans(index)[0].document == number
        assert skipping.loss_weight(index) == number
