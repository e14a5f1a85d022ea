"""Rows are what metrics.jsonl's readers rely on: names, order, digits, and the definition of bits per byte."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_lm_zh.observe.rows import ExpertsRow, TrainRow, ValidRow


def train_row(**changes: object) -> TrainRow:
    figures = {
        "step": 10,
        "lm_loss": 5.1,
        "grad_norm": 0.8,
        "lr": 3e-4,
        "tokens": 20480,
        "tokens_per_s": 9000.0,
        "step_time_s": 0.2,
        "attempt": 1,
        "memory_gb": 1.5,
    }
    return TrainRow(**(figures | changes))


def test_train_row_has_the_documented_names_in_order():
    row = train_row(mfu=0.4, extra={"time_data_s": 0.01}).to_json()
    documented = ["kind", "step", "lm_loss", "grad_norm", "lr", "tokens", "tokens_per_s", "step_time_s", "attempt"]
    assert list(row)[:9] == documented
    assert list(row)[9:] == ["memory_gb", "mfu", "time_data_s"]
    assert row["kind"] == "train"


def test_mfu_is_left_out_where_it_is_not_known():
    assert "mfu" not in train_row().to_json()


def test_a_step_that_was_skipped_has_no_gradient_norm():
    row = train_row(grad_norm=None, loss_scale=1024.0, skipped_steps=3).to_json()
    assert (row["grad_norm"], row["loss_scale"], row["skipped_steps"]) == (None, 1024.0, 3)
    assert not {"loss_scale", "skipped_steps"} & train_row().to_json().keys()


def test_the_experts_load_by_layer():
    row = ExpertsRow(step=20, load={3: [1.23456, 0.76544], 4: [1.0, 1.0]}).to_json()
    assert row == {"kind": "experts", "step": 20, "load": {"3": [1.2346, 0.7654], "4": [1.0, 1.0]}}


def test_extra_may_not_hide_a_named_figure():
    with pytest.raises(AssertionError, match="lm_loss"):
        train_row(extra={"lm_loss": 0.0}).to_json()


def test_losses_survive_json_bit_for_bit():
    loss = 0.1 + 0.2
    assert json.loads(json.dumps(train_row(lm_loss=loss).to_json()))["lm_loss"] == loss


def test_bits_come_from_total_nats_over_text_length():
    text = "学习 ok"
    row = ValidRow.from_totals(
        100, "zh", nats=8 * math.log(2), tokens=4, text_bytes=len(text.encode()), text_chars=len(text)
    )
    assert row.bits_per_byte == pytest.approx(8 / 9)
    assert row.bits_per_char == pytest.approx(8 / 5)
    assert row.lm_loss == pytest.approx(2 * math.log(2))
    assert row.ppl == pytest.approx(4.0)
    assert list(row.to_json()) == [
        "kind", "step", "source", "lm_loss", "ppl", "bits_per_byte", "bits_per_char", "tokens",
    ]  # fmt: skip


def test_test_rows_say_so():
    row = ValidRow.from_totals(9, "en", nats=1.0, tokens=1, text_bytes=1, text_chars=1, kind="test")
    assert row.to_json()["kind"] == "test"


def test_text_without_characters_and_a_diverged_loss_are_no_crash():
    row = ValidRow.from_totals(1, "x", nats=1e6, tokens=1, text_bytes=0, text_chars=0)
    assert row.bits_per_byte is None
    assert row.bits_per_char is None
    assert row.ppl == math.inf


def test_the_manual_explains_every_field():
    manual = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for row in (TrainRow, ValidRow):
        missing = [
            field.name
            for field in fields(row)
            if f"`{field.name}` |" not in manual and field.name not in ("kind", "extra")
        ]
        assert not missing
