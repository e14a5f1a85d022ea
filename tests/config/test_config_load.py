"""Loading: strict types, overrides, and every mistake at once in one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_config import TEXT

from megatron_lm_zh.config.load import load_config, to_yaml
from megatron_lm_zh.config.schedules import Constant, Cosine
from megatron_lm_zh.config.sections.data import Source
from megatron_lm_zh.errors import UserErrors

Complaints = Callable[..., list[str]]
Write = Callable[..., Path]


def test_loads_with_derived_defaults(write: Write) -> None:
    config = load_config(write())
    assert config.optim.lr == 3e-4
    assert config.model.kv_channels == 16
    assert config.model.ffn_hidden_size == 192
    assert config.model.max_position_embeddings == 64
    assert config.data.train == (Source(path="zh_text_document", weight=3.0), Source(path="en_text_document"))
    assert config.schedule == Cosine(warmup_steps=10)
    assert config.total_steps == 100


def test_resolved_yaml_loads_to_an_equal_config(write: Write) -> None:
    overrides = [
        "profile.steps=[5, 8]",
        "run.name='1e5'",
        "model.megatron.qk_clip_alpha=0.3",
        "schedule={kind: wsd, decay_steps: 9}",
    ]
    config = load_config(write(), overrides)
    assert load_config(write(to_yaml(config))) == config


def test_every_mistake_is_reported_at_once_in_file_order(complaints: Complaints) -> None:
    text = (
        TEXT.replace("num_layers", "num_layer")
        .replace("dtype: fp32", "dtype: fp64")
        .replace("type: SentencePiece", "type: sentencepiece")
        .replace("steps: 100", "steps: 1e2")
        .replace("lr: 3e-4", "lr: fast")
        .replace("path: en_text", "pat: en_text")
    )
    text += "modle: 1\n"
    lines = complaints(text)
    assert [line.split("; expected")[0] for line in lines] == [
        "run.yaml:3: model.num_layers: missing",
        "run.yaml:4: model.num_layer: unknown key",
        "run.yaml:10: precision.dtype: found 'fp64'",
        "run.yaml:12: data.tokenizer.type: found 'sentencepiece'",
        "run.yaml:15: data.train.1.path: missing",
        "run.yaml:15: data.train.1.pat: unknown key",
        "run.yaml:17: train.steps: found 100.0",
        "run.yaml:21: optim.lr: found 'fast'",
        "run.yaml:25: modle: unknown key",
    ]
    assert "expected one of family, num_layers, hidden_size" in lines[1]
    assert lines[1].endswith("did you mean num_layers?")
    assert lines[3].endswith("did you mean SentencePiece?")
    assert lines[6].endswith("write 100")
    assert "expected number > 0 (Peak learning rate)" in lines[7]
    assert lines[8].endswith("did you mean model?")


def test_rules_are_reported_beside_a_wrong_key(complaints: Complaints) -> None:
    lines = complaints(TEXT.replace("warmup_steps: 10", "warmup_steps: 100\n  min_rl: 1"), ("parallel.tensor=3",))
    assert len(lines) == 5
    assert lines[0].startswith("run.yaml:24: schedule.warmup_steps: 100 fills the run of 100 steps")
    assert lines[1].startswith("run.yaml:25: schedule.min_rl: unknown key")
    assert all(line.startswith("override parallel.tensor=3: parallel.tensor: 3 does not divide") for line in lines[2:])


def test_a_rule_that_reads_a_wrong_key_is_not_asked(complaints: Complaints) -> None:
    assert len(complaints(overrides=("parallel.tensor=three", "parallel.sequence=true"))) == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.hidden_size=64.5", "found 64.5; expected integer > 0"),
        ("model.hidden_size=0", "found 0; expected integer > 0"),
        ("model.hidden_size='64'", "found '64'; expected integer"),
        ("model.tie_embeddings=1", "found 1; expected true or false"),
        ("optim.lr=.inf", "found inf; expected number > 0"),
        ("optim.adam_beta1=1", "expected number >= 0 and < 1"),
        ("data.split=90,10", "data.split: found '90,10'; expected text like '99,1,0'"),
        (
            "data.train=[]",
            "data.train: has 0 items; expected list of {path, name?, weight?, loss_weight?, max_epochs?}",
        ),
        ("profile.steps=[1]", "profile.steps.1: missing"),
        ("profile.steps=[1, 2, 3]", "profile.steps: has 3 items"),
        (
            "schedule.kind=cosin",
            "expected one of constant, linear, cosine, inverse_square_root, wsd; did you mean cosine?",
        ),
        ("schedule={warmup_steps: 3}", "schedule.kind: missing; expected one of constant"),
        ("schedule={kind: constant, min_lr: 0.1}", "schedule.min_lr: unknown key; expected one of warmup_steps, "),
        ("schedule=7", "schedule: found 7; expected a section"),
        ("model.rope_scaling=7", "model.rope_scaling: found 7; expected a section with kind, factor"),
        (
            "model.rope_scaling={kind: yrn}",
            "model.rope_scaling.kind: found 'yrn'; expected one of linear, llama3, yarn",
        ),
        ("model.rope_scaling={factor: 2}", "model.rope_scaling.kind: missing; expected one of linear, llama3, yarn"),
        ("model.rope_scaling={kind: linear}", "model.rope_scaling.factor: missing; expected number > 0"),
        (
            "model.rope_scaling={kind: linear, factor: 2, beta_fast: 3}",
            "model.rope_scaling.beta_fast: unknown key; expected one of kind, factor",
        ),
        ("model.rope_scaling={kind: linear, factor: x}", "model.rope_scaling.factor: found 'x'; expected number > 0"),
        ("train.rampup_batch_size=[1, 2]", "train.rampup_batch_size.2: missing"),
        ("model=[]", "model: found a list; expected a section with family, num_layers"),
        ("precision.dtype=null", "precision.dtype: missing; expected one of fp32, bf16"),
        ("optim", "not an override; expected key=value"),
        ("optim..lr=1", "not an override"),
        ("optim.lr.x=1", "optim.lr is 0.0003 and has no key 'x'"),
        ("data.train.5.path=x", "data.train is a list and has no item '5'; expected an index from 0 to 2"),
        ("data.train.first=x", "data.train is a list and has no item 'first'"),
        ("optim.lr=[1", "not valid YAML"),
    ],
)
def test_one_wrong_override_is_one_line(complaints: Complaints, override: str, words: str) -> None:
    (line,) = complaints(overrides=(override,))
    assert line.startswith(f"override {override[:35]}")
    assert words in line


def test_overrides_win_in_order(write: Write) -> None:
    overrides = [
        "data.train.0.path=a=b",
        "data.train.2.path=c",
        "optim.lr=1e-3",
        "optim.lr=2e-3",
        "schedule={kind: constant}",
    ]
    config = load_config(write(), [*overrides, "precision=null", "train.steps=null", "train.tokens=1_000_000"])
    assert [source.path for source in config.data.train] == ["a=b", "en_text_document", "c"]
    assert config.optim.lr == 2e-3
    assert config.schedule == Constant()
    assert config.precision.dtype == "bf16"  # an empty section has its defaults
    assert config.total_steps == -(-1_000_000 // (8 * 64))


def test_an_empty_section_asks_for_its_keys(complaints: Complaints) -> None:
    lines = complaints(TEXT.replace("optim:\n  lr: 3e-4\n", "optim:\n  # lr: 3e-4\n"))
    assert lines == ["run.yaml:20: optim.lr: missing; expected number > 0 (Peak learning rate)"]


def test_the_error_is_a_user_error_with_exit_code_2(write: Write) -> None:
    with pytest.raises(UserErrors) as caught:
        load_config(write("run: {}\n"))
    assert caught.value.exit_code == 2
