"""Batch-size ramp-up: megatron-core's arithmetic, and steps, samples and tokens that fit together."""

from __future__ import annotations

import pytest

from megatron_lm_zh.config.batch_ramp import BatchSizes

# Sizes that rise evenly, GPT-3's ramp, one increment only, samples that no increment divides, a ramp of one step.
RAMPS = [
    BatchSizes(8, (2, 2, 30)),
    BatchSizes(1536, (16, 16, 58_593)),
    BatchSizes(64, (32, 32, 1000)),
    BatchSizes(70, (7, 9, 1001)),
    BatchSizes(6, (2, 4, 1)),
]


@pytest.mark.parametrize("sizes", RAMPS, ids=str)
def test_sizes_are_megatron_cores(sizes: BatchSizes) -> None:
    from megatron.core import num_microbatches_calculator as calculators

    if not hasattr(calculators, "RampupBatchsizeNumMicroBatchesCalculator"):
        pytest.skip("this megatron-core has no calculator of ramps any more; 0.16 has")
    assert sizes.ramp is not None
    start, increment, samples = sizes.ramp
    theirs = calculators.RampupBatchsizeNumMicroBatchesCalculator(
        sizes.final, 1, 1, False, 1, start, increment, samples
    )
    for consumed in range(0, samples + 4, max(1, samples // 500)):
        theirs.update(consumed, consistency_check=True)
        assert sizes.at(consumed) == theirs.get_current_global_batch_size(), consumed


@pytest.mark.parametrize("sizes", RAMPS, ids=str)
def test_steps_and_samples_fit_together(sizes: BatchSizes) -> None:
    consumed, seen = 0, []
    for step in range(200):
        assert sizes.consumed_by(step) == consumed
        assert sizes.steps_for(consumed) == step
        assert sizes.steps_for(consumed + 1) == step + 1
        seen.append(sizes.at(consumed))
        consumed += seen[-1]
    assert seen == sorted(seen)
    assert set(seen) <= set(sizes.sizes())


def test_sizes_by_hand() -> None:
    sizes = BatchSizes(8, (2, 2, 30))  # 10 samples to an increment
    assert [sizes.at(consumed) for consumed in (0, 8, 10, 18, 22, 26, 30, 31, 1000)] == [2, 2, 4, 4, 6, 6, 8, 8, 8]
    assert [sizes.consumed_by(step) for step in range(11)] == [0, 2, 4, 6, 8, 10, 14, 18, 22, 28, 34]
    assert [sizes.last_whole_step(6, available) for available in (5, 6, 7, 9, 10, 30, 34, 50)] == [
        6, 6, 6, 8, 10, 28, 34, 50,
    ]  # fmt: skip


def test_without_a_ramp_every_step_is_alike() -> None:
    sizes = BatchSizes(8)
    assert sizes.sizes() == [8]
    assert sizes.consumed_by(5) == 40
    assert [sizes.steps_for(samples) for samples in (0, 1, 8, 9)] == [0, 1, 1, 2]


@pytest.mark.parametrize("ramp", [(8, 2, 30), (9, 2, 30), (2, 4, 30), (2, 0, 30), (2, 2, 0), (-2, 2, 30), (0, 2, 30)])
def test_a_ramp_that_does_not_rise_in_whole_increments_counts_as_none(ramp: tuple[int, int, int]) -> None:
    sizes = BatchSizes(8, ramp)
    assert not sizes.legal
    assert sizes.consumed_by(3) == 24
    assert sizes.sizes() == [8]
