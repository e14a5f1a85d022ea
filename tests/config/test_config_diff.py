"""What differs between two configs and which differences a resume must refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_lm_zh.config.diff import alters_result, alters_shape, config_diff
from megatron_lm_zh.config.fields import all_keys
from megatron_lm_zh.config.load import as_dict, load_config

Write = Callable[[], Path]


def test_no_difference(write: Write) -> None:
    config = load_config(write())
    assert config_diff(config, config) == []
    assert config_diff(as_dict(config), config) == []


def test_changes_name_key_values_and_effect(write: Write) -> None:
    old = load_config(write())
    overrides = [
        "parallel.tensor=2",
        "optim.lr=1e-3",
        "data.train.2.path=code",
        "model.num_layers=8",
        "data.valid=[{path: v}]",
    ]
    changes = {change.key: change for change in config_diff(old, load_config(write(), overrides))}
    assert {key: change.effect for key, change in changes.items()} == {
        "model.num_layers": "shape",
        "parallel.tensor": "harmless",
        "data.train.2.path": "result",
        "data.train.2.weight": "result",
        "data.valid": "harmless",
        "data.valid.0.path": "harmless",
        "data.valid.0.weight": "harmless",
        "optim.lr": "result",
    }
    assert str(changes["optim.lr"]) == "optim.lr: 0.0003 -> 0.001"
    assert changes["data.train.2.path"].old is None


def test_a_longer_run_alters_a_decay_and_not_a_constant(write: Write) -> None:
    for schedule, effect in (("cosine", "result"), ("constant", "harmless")):
        before = load_config(write(), [f"schedule={{kind: {schedule}}}"])
        after = load_config(write(), [f"schedule={{kind: {schedule}}}", "train.steps=200"])
        (change,) = config_diff(before, after)
        assert (change.key, change.effect) == ("train.steps", effect)
    decay = load_config(write(), ["schedule={kind: cosine}", "train.steps=200"])
    constant = load_config(write(), ["schedule={kind: constant}"])
    assert {change.effect for change in config_diff(decay, constant)} == {"result"}


def test_every_key_is_sorted_on_purpose() -> None:
    """A new key alters the result until somebody has thought about it and changes this list."""
    altering = {".".join(map(str, key.path)) for key in all_keys() if alters_result(".".join(map(str, key.path)))}
    assert {key for key in altering if not key.startswith(("model.", "optim.", "schedule."))} == {
        "run.seed",
        "precision.dtype",
        "precision.fp8",
        "data.tokenizer.type",
        "data.tokenizer.path",
        "data.train",
        "data.split",
        "train.steps",
        "train.tokens",
        "train.global_batch_size",
        "ddp.megatron",
    }
    harmless_model = {"model.recompute_granularity", "model.recompute_method", "model.recompute_num_layers"}
    assert not harmless_model & altering
    assert "optim.use_distributed_optimizer" in altering


@pytest.mark.parametrize(
    "key", ["model.hidden_size", "model.tie_embeddings", "optim.use_distributed_optimizer", "precision.dtype"]
)
def test_keys_that_no_checkpoint_outlives(key: str) -> None:
    assert alters_shape(key)
    assert alters_result(key)
    assert not alters_shape("optim.lr")
