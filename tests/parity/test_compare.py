"""The verdict on two recordings of the same steps."""

from __future__ import annotations

import math

import pytest

from megatron_lm_zh.parity.compare import StepRecord, compare


def records(*steps: tuple[float, float | None]) -> list[StepRecord]:
    return [StepRecord(number, loss, norm) for number, (loss, norm) in enumerate(steps, start=1)]


@pytest.mark.parametrize(
    ("layout", "dtype", "agrees"),
    [
        (records((2.0, 1.0), (1.9, 1.1)), "fp32", True),
        (records((2.0, 1.0), (1.9 + 9e-6, 1.1)), "fp32", True),
        (records((2.0, 1.0), (1.9 + 2e-5, 1.1)), "fp32", False),
        (records((2.0, 1.0), (1.9, 1.1 * 1.002)), "fp32", False),
        (records((2.0, 1.0), (1.9 + 9e-3, 1.1 * 1.02)), "bf16", True),
        (records((2.0, 1.0), (1.9 + 2e-2, 1.1)), "bf16", False),
        (records((2.0, 1.0), (1.9, None)), "fp16", False),
    ],
)
def test_verdict(layout: list[StepRecord], dtype: str, agrees: bool) -> None:
    comparison = compare(records((2.0, 1.0), (1.9, 1.1)), layout, dtype)
    assert comparison.agrees == agrees
    assert ("agrees with" in comparison.lines()[-1]) == agrees
    assert len(comparison.lines()) == 4
    assert comparison.to_json()["agrees"] == agrees


def test_overflows_at_the_same_step_agree() -> None:
    both = records((2.0, None), (1.9, 1.1))
    comparison = compare(both, both, "fp16")
    assert comparison.agrees and comparison.norm_difference == 0
    assert "overflow" in comparison.lines()[1]
    assert comparison.weakest_norm == 1.1


def test_an_overflow_in_one_world_alone_is_infinitely_far() -> None:
    comparison = compare(records((2.0, None)), records((2.0, 1.0)), "fp16")
    assert math.isinf(comparison.norm_difference)
