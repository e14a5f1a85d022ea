"""Every cross-field rule is broken once, says how to mend it, and reads the keys that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_lm_zh.config.fields import find
from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.rules import RULES, check, rules_reading
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserErrors

FP8 = ("precision.dtype=bf16", "precision.fp8=hybrid")
FULL = ("model.recompute_granularity=full", "model.recompute_method=uniform")
SEVEN_STEPS = ("train.steps=null", "train.tokens=3500", "schedule.warmup_steps=7")

# Rule, overrides of the small config, world, words of the message.
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [
    (
        "model_copies_fill_world",
        ("parallel.tensor=2", "parallel.pipeline=4", "train.global_batch_size=12"),
        12,
        "tensor=2 x pipeline=4 = 8 does not divide 12 ranks; "
        "nearest: tensor=1 pipeline=4 (data=3), or tensor=2 pipeline=2 (data=3)",
    ),
    (
        "tensor_divides_heads",
        ("parallel.tensor=8",),
        None,
        "8 does not divide num_attention_heads=4; expected a divisor of 4",
    ),
    ("tensor_divides_query_groups", ("parallel.tensor=4",), None, "or set model.num_query_groups to 4"),
    (
        "tensor_divides_ffn",
        ("parallel.tensor=2", "model.ffn_hidden_size=191"),
        None,
        "set model.ffn_hidden_size to 190 or 192",
    ),
    (
        "tensor_divides_vocabulary",
        ("parallel.tensor=2", "model.make_vocab_size_divisible_by=1"),
        None,
        "make_vocab_size_divisible_by=1; expected a divisor of 1; or set model.make_vocab_size_divisible_by to 2",
    ),
    (
        "pipeline_divides_layers",
        ("parallel.pipeline=3",),
        None,
        "3 does not divide num_layers=4; expected one of 1, 2, 4",
    ),
    ("sequence_needs_tensor", ("parallel.sequence=true",), None, "needs tensor parallelism"),
    (
        "tensor_divides_sequence",
        ("parallel.sequence=true", "parallel.tensor=2", "model.seq_length=63"),
        None,
        "set model.seq_length to 62 or 64",
    ),
    ("micro_batches_fill_global_batch", (), 3, "8 is no multiple of micro_batch_size=2 x data=3 = 6; nearest: 6 or 12"),
    ("one_run_length", ("train.tokens=100000",), None, "both are set; expected exactly one"),
    ("one_run_length", ("train.steps=null",), None, "neither is set"),
    ("profile_steps_are_ordered", ("profile.steps=[8, 5]",), None, "found [8, 5]; expected [first, last]"),
    ("profile_steps_are_in_the_run", ("profile.steps=[99, 101]",), None, "step 101 lies beyond the run's 100 steps"),
    (
        "query_groups_divide_heads",
        ("model.num_query_groups=3",),
        None,
        "3 does not divide num_attention_heads=4; expected one of 1, 2, 4",
    ),
    (
        "heads_divide_hidden_size",
        ("model.hidden_size=66",),
        None,
        "66 is no multiple of num_attention_heads=4; nearest: 64 or 68",
    ),
    ("head_channels_are_even", ("model.kv_channels=15",), None, "15 is odd"),
    (
        "sequences_fit_positions",
        ("model.max_position_embeddings=32",),
        None,
        "64 is more than max_position_embeddings=32",
    ),
    ("full_recompute_says_what", ("model.recompute_granularity=full",), None, "set model.recompute_method: uniform"),
    (
        "full_recompute_says_what",
        ("model.recompute_granularity=selective", "model.recompute_num_layers=1"),
        None,
        "model.recompute_num_layers: goes with recompute_granularity: full only",
    ),
    (
        "recompute_fits_stage",
        (*FULL, "model.recompute_num_layers=3"),
        None,
        "chunks of 3 layers do not fill a stage of 4",
    ),
    (
        "recompute_fits_stage",
        (*FULL, "model.recompute_method=block", "model.recompute_num_layers=3", "parallel.pipeline=2"),
        None,
        "3 is more than the 2 layers of a stage",
    ),
    ("fp8_needs_bf16", ("precision.fp8=hybrid",), None, "needs precision.dtype: bf16, found fp32"),
    (
        "fp8_matrices_are_aligned",
        (*FP8, "model.ffn_hidden_size=200"),
        None,
        "ffn_hidden_size / tensor = 200; expected multiples of 16",
    ),
    ("min_lr_is_below_lr", ("schedule.min_lr=1e-3",), None, "0.001 is more than optim.lr=0.0003"),
    (
        "warmup_ends_in_the_run",
        ("schedule.warmup_steps=100",),
        None,
        "100 fills the run of 100 steps; expected at most 99",
    ),
    ("warmup_ends_in_the_run", SEVEN_STEPS, None, "7 fills the run of 7 steps"),
    (
        "decay_follows_warmup",
        ("schedule={kind: wsd, warmup_steps: 10, decay_steps: 91}",),
        None,
        "warmup_steps=10 + decay_steps=91 is more than the run's 100 steps; expected at most 90",
    ),
    (
        "param_gather_has_shards",
        ("ddp.overlap_param_gather=true",),
        None,
        "needs optim.use_distributed_optimizer: true and ddp.overlap_grad_reduce: true",
    ),
    ("split_leaves_training_data", ("data.split=0,1,1",), None, "'0,1,1' leaves nothing to train on"),
]

BY_TOKENS = (
    "train.steps=null",
    "train.tokens=100000",
    "schedule={kind: wsd, warmup_steps: 10, decay_steps: 20}",
    "profile.steps=[1, 100]",
)
LEGAL: list[tuple[tuple[str, ...], int | None]] = [
    (("parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true"), 16),
    ((*FP8, *FULL, "model.recompute_num_layers=2", "parallel.pipeline=2"), 4),
    (("schedule={kind: wsd, warmup_steps: 10, decay_steps: 90}", "profile.steps=[1, 100]"), None),
    (("model.kv_channels=32", "model.hidden_size=66", "model.recompute_granularity=selective"), 1),
    (("ddp.overlap_param_gather=true", "ddp.overlap_grad_reduce=true", "optim.use_distributed_optimizer=true"), 2),
    (("train.steps=1", "schedule.warmup_steps=0"), None),
]


@pytest.mark.parametrize(("name", "overrides", "world", "words"), BROKEN)
def test_broken_rule_is_one_line(
    write: Callable[[], Path], name: str, overrides: tuple[str, ...], world: int | None, words: str
) -> None:
    with pytest.raises(UserErrors) as caught:
        load_config(write(), overrides, world=world)
    lines = str(caught.value).splitlines()
    assert any(words in line for line in lines), lines
    by_name = {rule.name: rule for rule in RULES}
    assert name in by_name


def test_every_rule_is_broken_by_some_test() -> None:
    assert {rule.name for rule in RULES} == {name for name, *_ in BROKEN}


@pytest.mark.parametrize(("overrides", "world"), LEGAL)
def test_legal_configs_pass(write: Callable[[], Path], overrides: tuple[str, ...], world: int | None) -> None:
    assert check(load_config(write(), overrides, world=world), world) == []


@pytest.mark.parametrize("world", [16 * 8, 128 * 8])
def test_nearest_layouts_are_legal(write: Callable[[], Path], world: int) -> None:
    with pytest.raises(UserErrors) as caught:
        load_config(
            write(), ["parallel.tensor=2", "parallel.pipeline=3", f"train.global_batch_size={world * 2}"], world=world
        )
    offered = str(caught.value).split("nearest: ")[1].splitlines()[0].split(", or ")
    assert len(offered) == 2
    for layout in offered:
        sizes = dict(word.strip("()").split("=") for word in layout.split())
        assert int(sizes["tensor"]) * int(sizes["pipeline"]) * int(sizes["data"]) == world
        chosen = [f"parallel.tensor={sizes['tensor']}", f"parallel.pipeline={sizes['pipeline']}"]
        load_config(write(), [*chosen, f"train.global_batch_size={world * 2}"], world=world)


class _Recorder:
    """Stands for a config and notes which of its keys are read."""

    def __init__(self, value: Any, path: str, seen: set[str]) -> None:
        self._value, self._path, self._seen = value, path, seen

    @property
    def __class__(self) -> type:  # isinstance() in a rule sees the schedule's own class
        return type(self._value)

    def __getattr__(self, name: str) -> Any:
        prop = getattr(type(self._value), name, None)
        if isinstance(prop, property):
            return prop.fget(self)  # type: ignore[misc]
        value = getattr(self._value, name)
        path = f"{self._path}.{name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            return _Recorder(value, path, self._seen)
        self._seen.add(path)
        return value


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_says_which_keys_it_reads(write: Callable[[], Path], rule: Any) -> None:
    seen: set[str] = set()
    for overrides, world in [*LEGAL, ((), 3), (BY_TOKENS, 24)]:
        try:
            config = load_config(write(), overrides)
        except UserErrors:
            continue
        rule.check(_Recorder(config, "", seen), world)
    broken = [(overrides, world) for name, overrides, world, _ in BROKEN if name == rule.name]
    for overrides, world in broken:
        rule.check(_Recorder(_unchecked(write(), overrides), "", seen), world)
    assert seen == set(rule.reads)
    assert rule.reason
    assert all(find(tuple(key.split("."))) for key in rule.reads)


def _unchecked(path: Path, overrides: tuple[str, ...]) -> Config:
    """A config that breaks rules but not the schema."""
    from megatron_lm_zh.config.document import read_document
    from megatron_lm_zh.config.load import _build
    from megatron_lm_zh.config.overrides import apply_overrides

    document = read_document(path)
    assert apply_overrides(document, overrides) == []
    config, problems = _build(document.values, document)
    assert config is not None, problems
    return config


def test_rules_reading_a_key_or_a_section() -> None:
    assert [rule.name for rule in rules_reading("data.split")] == ["split_leaves_training_data"]
    assert {rule.name for rule in rules_reading("precision")} == {"fp8_needs_bf16", "fp8_matrices_are_aligned"}
    assert rules_reading("log") == []
