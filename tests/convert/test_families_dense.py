"""Dense families: what their tables refuse, what old files look like, and runs that begin with their weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_cases import DENSE, baichuan_logits
from family_models import IDS, make, megatron_logits
from hf_models import logits, read_json, same_bits, weights
from safetensors.torch import save_file
from support.pool import RankPool
from support.training import pretrain

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.hf_files import HFWeights
from megatron_lm_zh.convert.model_config import from_hf_config, to_hf_config
from megatron_lm_zh.convert.prefixed import with_prefix
from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import family, huggingface

STILL = ["optim.lr=1e-30", "optim.weight_decay=0", "train.steps=1", "schedule.warmup_steps=0"]
MOVING = ["optim.lr=0.01", "train.steps=3", "schedule.warmup_steps=0", "train.micro_batch_size=2"]
TP2_PP2 = ["parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true"]
STARTS = ("qwen2_window", "glm4_0414_tied", "baichuan2_13b", "gpt2")
"""Every op and every module that these families brought."""
OTHER_STARTS = ("llama_biases", "mistral_window", "qwen3_tied_window", "glm4", "baichuan", "internlm2")


def slow(*names: str) -> list[Any]:
    """Parameters that `make test` passes over."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def config_of(name: str, directory: Path, **changes: Any) -> tuple[str, dict[str, Any]]:
    """A case's family and its config.json."""
    case = DENSE[name]
    return case.family, read_json(make(case, directory) / "config.json") | changes


def overrides_of(model: Model) -> list[str]:
    """A run's overrides that give it this model."""
    keys = [row.ours for row in huggingface(model.family).config]
    values = {key: getattr(model, key) for key in ("family", "seq_length", *keys)} | {"seq_length": 32}
    plain = {
        key: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value for key, value in values.items()
    }
    return [f"model.{key}={json.dumps(value)}" for key, value in plain.items()]


@pytest.mark.dist
@pytest.mark.parametrize("name", [*STARTS, *slow(*OTHER_STARTS)])
def test_a_run_begins_with_exactly_those_weights(ranks: RankPool, tiny_run: Path, tmp_path: Path, name: str) -> None:
    key = "n_layer" if name == "gpt2" else "num_hidden_layers"
    case = dataclasses.replace(DENSE[name], options={**DENSE[name].options, key: 4, "vocab_size": 400})
    hf = make(case, tmp_path / "hf")
    model = from_hf_config(family(case.family), read_json(hf / "config.json"), "config.json")
    overrides = [*overrides_of(model), *STILL, *TP2_PP2]
    outcome = pretrain(ranks, tiny_run, *overrides, world=4, init_from=hf)
    assert (outcome.exit_code, outcome.error) == (0, "")
    assert f"first weights from {hf}" in outcome.out
    to_hf(tmp_path / "run", tmp_path / "back")
    assert same_bits(weights(tmp_path / "back"), weights(hf))


@pytest.mark.dist
@pytest.mark.parametrize("name", ["baichuan2_13b", *slow("gpt2")])
def test_it_trains_alike_at_every_layout(ranks: RankPool, tiny_run: Path, tmp_path: Path, name: str) -> None:
    case = DENSE[name]
    hf = make(dataclasses.replace(case, options={**case.options, "vocab_size": 400}), tmp_path / "hf")
    model = from_hf_config(family(case.family), read_json(hf / "config.json"), "config.json")
    still = ["model.attention_dropout=0", "model.hidden_dropout=0"] if name == "gpt2" else []
    found = []
    for world, layout in ((1, []), (2, ["parallel.tensor=2"])):
        run = tmp_path / f"run{world}"
        overrides = [*overrides_of(model), *still, *MOVING, *layout, f"run.dir={run}"]
        outcome = pretrain(ranks, tiny_run, *overrides, world=world)
        assert (outcome.exit_code, outcome.error) == (0, "")
        to_hf(run, run / "hf")
        found.append(weights(run / "hf"))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found.append({"loss": torch.tensor([row["lm_loss"] for row in rows if row["kind"] == "train"])})
    assert torch.allclose(found[1]["loss"], found[3]["loss"], atol=1e-5)
    assert found[1]["loss"][-1] < found[1]["loss"][0]
    worst = max((found[0][key] - found[2][key]).abs().max().item() for key in found[0])
    print(f"{name}: largest difference of a weight after 3 steps: {worst:.1e}")
    assert worst < 1e-3


@pytest.mark.dist
def test_gpt2_needs_its_own_gelu(ranks: RankPool, tmp_path: Path) -> None:
    hf = make(DENSE["gpt2"], tmp_path / "hf")
    from_hf(hf, tmp_path / "megatron")
    erf = ["model.family=gpt", "model.activation=gelu", "kernels.bias_activation_fusion=false"]
    ours, other = megatron_logits(ranks, tmp_path / "megatron", IDS, [[], erf])
    theirs = logits(hf, IDS)
    assert (ours - theirs).abs().max() <= 1e-5 < (other - theirs).abs().max()


@pytest.mark.dist
def test_a_scaled_row_of_the_output_layer_changes_nothing(ranks: RankPool, tmp_path: Path) -> None:
    hf = make(DENSE["baichuan2_13b"], tmp_path / "hf")
    state = weights(hf)
    before = baichuan_logits(hf, IDS)
    save_file(state | {"lm_head.weight": state["lm_head.weight"] * 3}, hf / "model.safetensors")
    from_hf(hf, tmp_path / "megatron")
    (ours,) = megatron_logits(ranks, tmp_path / "megatron", IDS)
    assert (ours - before).abs().max() <= 1e-5


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama-half-biased": ("llama", {"attention_bias": True}, "attention_bias and mlp_bias differ"),
    "glm-scaling": ("glm4", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
    "qwen3-bias": ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    "qwen2-mixed-layers": (
        "qwen2_window",
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        "a layer without the sliding window follows",
    ),
    "qwen2-window-off": ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window is off"),
    "internlm2-bias": ("internlm2", {"bias": True}, "bias is True"),
    "internlm2-dynamic": ("internlm2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is"),
    "gpt2-gelu": ("gpt2", {"activation_function": "gelu"}, "activation_function is 'gelu'; expected 'gelu_new'"),
    "gpt2-scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    "gpt2-dropouts": ("gpt2", {"embd_pdrop": 0.2}, "resid_pdrop and embd_pdrop differ"),
    "dynamic": ("qwen2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling of kind 'dynamic'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_family_cannot_say_is_refused(tmp_path: Path, name: str) -> None:
    case, changes, words = REFUSED[name]
    kind, config = config_of(case, tmp_path / "hf")
    if "rope_scaling" in changes:
        config.pop("rope_parameters", None)
    with pytest.raises(UserError, match=words):
        from_hf_config(family(kind), config | changes, "config.json")


UNSAID: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2-groups": ("gpt2", {"num_query_groups": 2}, "model.num_query_groups: 2"),
    "gpt2-heads": ("gpt2", {"kv_channels": 16}, "model.kv_channels: 16"),
    "baichuan-base": ("baichuan", {"rotary_base": 500000}, "model.rotary_base: 500000"),
    "baichuan-positions": ("baichuan", {"position_embedding_type": "none"}, "position_embedding_type: none"),
    "internlm2-heads": ("internlm2", {"kv_channels": 16}, "model.kv_channels: 16"),
    "qwen3-skips": ("qwen3", {"window_size": (4, 0), "window_attn_skip_freq": 2}, "a layer without the sliding window"),
    "llama-percent": ("llama", {"rotary_percent": 0.5}, "model.rotary_percent"),
    "mistral-norm-head": ("mistral", {"normalized_output": True}, "model.normalized_output"),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_config_json_cannot_say_is_refused(tmp_path: Path, name: str) -> None:
    case, changes, words = UNSAID[name]
    kind, config = config_of(case, tmp_path / "hf")
    model = from_hf_config(family(kind), config, "config.json")
    with pytest.raises(UserError, match=words):
        to_hf_config(family(kind), dataclasses.replace(model, **changes), torch.float32, {})


DEFAULTS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "mistral": ("mistral", ("sliding_window",), {"window_size": (4095, 0)}),
    "mistral-heads": ("mistral", ("head_dim",), {"kv_channels": 8}),
    "qwen2": ("qwen2", ("use_sliding_window", "layer_types"), {"window_size": None, "window_attn_skip_freq": None}),
    "qwen3": ("qwen3", ("head_dim",), {"kv_channels": 128}),
    "glm4": ("glm4", ("head_dim", "rope_parameters", "rms_norm_eps"), {"kv_channels": 128, "rotary_percent": 0.5}),
    "glm4_0414": (
        "glm4_0414",
        ("head_dim", "rope_parameters", "attention_bias"),
        {"kv_channels": 128, "rotary_percent": 0.5, "add_qkv_bias": True, "sandwich_norm": True},
    ),
    "gpt2": ("gpt2", ("n_inner", "tie_word_embeddings"), {"ffn_hidden_size": 192, "tie_embeddings": True}),
    "baichuan": ("baichuan", ("model_max_length",), {"position_embedding_type": "rope", "normalized_output": False}),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_missing_keys_mean_what_transformers_assumes(tmp_path: Path, name: str) -> None:
    case, gone, expected = DEFAULTS[name]
    kind, config = config_of(case, tmp_path / "hf")
    model = from_hf_config(family(kind), {key: config[key] for key in config if key not in gone}, "config.json")
    assert {key: getattr(model, key) for key in expected} == expected


def test_a_null_window_is_none(tmp_path: Path) -> None:
    kind, config = config_of("mistral", tmp_path / "hf", sliding_window=None)
    assert from_hf_config(family(kind), config, "config.json").window_size is None


@pytest.mark.parametrize(("vocab_size", "scaled"), [(125696, True), (64000, False)])
def test_baichuan_2_is_known_by_its_ids(tmp_path: Path, vocab_size: int, scaled: bool) -> None:
    kind, config = config_of("baichuan", tmp_path / "hf", vocab_size=vocab_size)
    model = from_hf_config(family(kind), config, "config.json")
    assert model.normalized_output is scaled
    assert to_hf_config(family(kind), model, torch.float32, {})["norm_head"] is scaled
    longer = dataclasses.replace(model, vocab_size=vocab_size + 1000)  # more ids change nothing
    again = from_hf_config(family(kind), to_hf_config(family(kind), longer, torch.float32, {}), "config.json")
    assert again == longer


def test_every_nth_layer_that_sees_everything_is_written_layer_by_layer(tmp_path: Path) -> None:
    kind, config = config_of("qwen2_window", tmp_path / "hf")
    model = from_hf_config(family(kind), config, "config.json")
    for value, types in ((None, "sss"), ((0, 0, 1), "ffs"), ((0, 0, 0), "fff"), (1, "fff")):
        changed = dataclasses.replace(model, window_attn_skip_freq=value)
        written = to_hf_config(family(kind), changed, torch.float32, {})
        assert "".join(one[0] for one in written["layer_types"]) == types
        assert written["max_window_layers"] == types.count("f")


def test_the_first_gpt2_has_no_prefix_and_masks_beside_its_weights(tmp_path: Path) -> None:
    hf = make(DENSE["gpt2"], tmp_path / "hf")
    plain = weights(hf)
    old = {name.removeprefix("transformer."): tensor for name, tensor in plain.items()}
    save_file(old, hf / "model.safetensors")
    source = with_prefix(HFWeights(hf), huggingface("gpt2").prefix)
    assert source.specs.keys() == plain.keys()
    assert all(torch.equal(source.read(name), tensor) for name, tensor in plain.items())
    save_file(plain, hf / "model.safetensors")
    assert isinstance(with_prefix(HFWeights(hf), "transformer."), HFWeights)
    assert isinstance(with_prefix(HFWeights(hf), ""), HFWeights)


def test_old_files_hold_what_follows_from_the_config(tmp_path: Path) -> None:
    hf = make(DENSE["gpt2"], tmp_path / "hf")
    plain = weights(hf)
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 96, 96) for layer in range(3)}
    save_file(plain | masks, hf / "model.safetensors")
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    assert same_bits(weights(tmp_path / "back"), plain)


def test_norms_behind_attention_and_mlp_are_not_left_out(tmp_path: Path) -> None:
    hf = make(DENSE["glm4_0414"], tmp_path / "hf")
    config = read_json(hf / "config.json") | {"model_type": "glm"}
    (hf / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="post_mlp_layernorm.weight and 5 more has no place"):
        from_hf(hf, tmp_path / "megatron")
    assert not (tmp_path / "megatron").exists()
