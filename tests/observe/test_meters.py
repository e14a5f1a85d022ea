"""Meters with a clock that the test holds."""

from __future__ import annotations

import pytest

from megatron_lm_zh.observe.meters import PEAK_FLOPS, Throughput, Timeline, mfu, peak_flops


class Clock:
    """A clock that stands until told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_throughput_is_of_the_interval_since_the_last_report():
    clock = Clock()
    meter = Throughput(tokens=5000, clock=clock)
    for seconds, tokens in ((3.0, 5500), (1.0, 7000)):  # the batch grows
        clock.now += seconds
        meter.step(tokens)
    assert meter.report().tokens_per_s == pytest.approx(500.0)
    clock.now += 0.25
    meter.step(8000)
    speed = meter.report()
    assert speed.tokens_per_s == pytest.approx(4000.0)
    assert speed.step_time_s == pytest.approx(0.25)


def test_evaluation_and_saving_do_not_slow_the_figures():
    clock = Clock()
    meter = Throughput(clock=clock)
    clock.now += 2.0
    meter.step(10)
    with pytest.raises(RuntimeError), meter.paused():
        clock.now += 60.0
        raise RuntimeError
    assert meter.report().step_time_s == pytest.approx(2.0)
    clock.now += 1.0
    meter.step(10)
    assert meter.report().step_time_s == pytest.approx(1.0)


def test_a_report_without_a_step_is_our_mistake_and_a_standing_clock_is_not():
    meter = Throughput(clock=Clock())
    with pytest.raises(AssertionError):
        meter.report()
    meter.step(10)
    assert meter.report().tokens_per_s > 0


def test_timeline_adds_up_by_name_and_starts_anew():
    clock = Clock()
    timeline = Timeline(clock)
    for seconds in (0.5, 0.25):
        with timeline.span("data"):
            clock.now += seconds
    with timeline.span("optimizer"):
        clock.now += 2.0
    assert timeline.drain() == {"time_data_s": 0.75, "time_optimizer_s": 2.0}
    assert timeline.drain() == {}


def test_mfu():
    assert mfu(flops_per_token=6e9, tokens_per_s=1e6, gpus=16, peak_flops=1e15) == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("name", "bf16", "fp8"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, None),
        ("NVIDIA A100 80GB PCIe", 312e12, None),
        ("NVIDIA H100 80GB HBM3", 989e12, 1979e12),
        ("NVIDIA H100 PCIe", 756e12, 1513e12),
        ("NVIDIA H100 NVL", 835e12, 1671e12),
        ("NVIDIA H200", 989e12, 1979e12),
        ("NVIDIA H800", 989e12, 1979e12),
        ("NVIDIA H800 PCIe", 756e12, 1513e12),
        ("NVIDIA B200", 2250e12, 4500e12),
        ("NVIDIA GeForce RTX 4090", None, None),
        ("cpu", None, None),
    ],
)
def test_peaks_by_device_name(name: str, bf16: float | None, fp8: float | None):
    assert peak_flops(name, "bf16") == bf16
    assert peak_flops(name, "fp8") == fp8
    assert peak_flops(name, "fp16") == bf16
    assert peak_flops(name, "fp32") is None
    assert peak_flops(name, "fp4") == (9000e12 if "B200" in name else None)


def test_no_entry_of_the_table_is_hidden_by_an_earlier_one():
    for needed in PEAK_FLOPS:
        assert peak_flops(" ".join(needed), "bf16") == PEAK_FLOPS[needed]["bf16"]
