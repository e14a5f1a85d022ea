"""Checkpoints of Megatron-Bridge, whose model stands in a run_config.yaml, export as the same weights and config."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bridge_files import as_bridge, nested, run_config
from hf_models import make_tokenizer, mlzh, read_json, same_bits, weights
from legacy_ranks import CONFIG, DEEPSEEK, save_ranks
from support.pool import RankPool

from megatron_lm_zh.cli.main import main_for_arguments
from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.inspect import inspect
from megatron_lm_zh.convert.legacy.arguments import families_for, values_of
from megatron_lm_zh.convert.legacy.find import Asked, find_plain
from megatron_lm_zh.convert.legacy.run_config import read_run_config
from megatron_lm_zh.convert.to_hf import ToHF
from megatron_lm_zh.convert.verify import Side, compare_weights
from megatron_lm_zh.errors import UserError

BRIDGE = "megatron.bridge.models."
GPT = BRIDGE + "gpt_provider.GPTModelProvider"
CASES: dict[str, tuple[str, int, str, Callable[[Model], dict[str, Any]]]] = {
    "llama": (
        "family: llama, num_query_groups: 2, tie_embeddings: true, rotary_base: 500000, "
        "max_position_embeddings: 262144, rope_scaling: {kind: llama3, factor: 32.0}",
        1,
        "",
        lambda model: run_config(
            model,
            BRIDGE + "llama.llama_provider.Llama31ModelProvider",
            scale_factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            old_context_len=8192,
        ),
    ),
    "qwen3_moe": (
        "family: qwen3_moe, num_query_groups: 2, num_moe_experts: 4, moe_ffn_hidden_size: 32",
        2,
        "tensor: 2, sequence: true, expert: 2, expert_tensor: 1",
        lambda model: run_config(model, GPT),
    ),
    "deepseek_v3": (
        DEEPSEEK,
        1,
        "",
        lambda model: nested(
            run_config(model, BRIDGE + "gpt.model_config.BridgeGPTModelConfig", moe_router_pre_softmax=True)
        ),
    ),
}


@pytest.fixture(scope="module")
def checkpoints(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each model as Megatron-Bridge saves it, with the config that trained it beside."""
    found = {}
    for name, (model, world, parallel, make) in CASES.items():
        root = tmp_path_factory.mktemp("bridge") / name
        checkpoint = root / "iter_0000007"
        checkpoint.mkdir(parents=True)
        (root / "config.yaml").write_text(CONFIG.format(run=root, vocab=400, model=model, parallel=parallel))
        ranks.run(world, save_ranks, str(root / "config.yaml"), str(checkpoint), True)
        found[name] = as_bridge(checkpoint, make(load_config(root / "config.yaml", world=world).model))
    return found


def export(checkpoint: Path, target: Path, asked: Asked) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config.json."""
    ToHF(checkpoint, asked).run(target)
    return weights(target), read_json(target / "config.json")


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_the_export_is_that_of_the_config_that_trained(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = checkpoints[name]
    tensors, config = export(checkpoint, tmp_path / "hf", Asked())
    expected, expected_config = export(
        checkpoint, tmp_path / "expected", Asked(config=checkpoint.parent / "config.yaml")
    )
    assert same_bits(tensors, expected)
    differing = {key for key in config.keys() | expected_config.keys() if config.get(key) != expected_config.get(key)}
    assert differing <= {"bos_token_id", "eos_token_id"} and config["model_type"] == name
    assert tensors["model.embed_tokens.weight"].shape[0] == 400


@pytest.mark.dist
def test_tokenizer_and_special_tokens_come_along(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = tmp_path / "save" / "iter_0000007"
    shutil.copytree(checkpoints["llama"], checkpoint)
    tokenizer = make_tokenizer(checkpoint / "tokenizer")
    config = yaml.safe_load((checkpoint / "run_config.yaml").read_text())
    ToHF(checkpoint).run(tmp_path / "one")
    assert read_json(tmp_path / "one" / "config.json")["eos_token_id"] == 2
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer/tokenizer.json").read_bytes()

    del config["model"]["generation_config"]
    (checkpoint / "run_config.yaml").write_text(yaml.safe_dump(config))
    torch.save({"step": torch.tensor(7, dtype=torch.int32)}, checkpoint.parent / "latest_train_state.pt")
    assert find_plain(checkpoint.parent) == checkpoint
    ToHF(checkpoint.parent).run(tmp_path / "two")
    assert read_json(tmp_path / "two" / "config.json")["eos_token_id"] == tokenizer.eos_token_id


@pytest.mark.dist
def test_inspect(checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(checkpoints["deepseek_v3"], values=True)
    assert (found.kind, found.family, found.layers) == ("Megatron-Bridge, torch_dist", "deepseek_v3", 4)
    assert (found.vocab_size, found.padded_vocab_size, found.step, found.problems) == (400, 512, 7, [])
    assert found.layout == {"tensor": 2, "pipeline": 2, "context": 1} and not found.has_optimizer
    export(checkpoints["deepseek_v3"], tmp_path / "hf", Asked())
    assert found.parameters == inspect(tmp_path / "hf").parameters
    broken = shutil.copytree(checkpoints["llama"], tmp_path / "broken")
    (broken / "run_config.yaml").write_text("model: [")
    assert main_for_arguments(["convert", "inspect", str(broken)]) == 1
    assert "problem: " in capsys.readouterr().out


@pytest.mark.dist
def test_verify(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = checkpoints["qwen3_moe"]
    export(checkpoint, tmp_path / "hf", Asked())
    report = compare_weights(Side(checkpoint), Side(tmp_path / "hf"), tolerance=0.0, workers=2)
    assert report.agrees and report.compared == len(weights(tmp_path / "hf"))
    command = ["convert", "verify", str(tmp_path / "hf"), str(tmp_path / "hf"), "--weights-only"]
    assert main_for_arguments(command) == 0
    assert main_for_arguments([*command, "--family", "llama"]) == 2


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_export(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    export(checkpoints[name], tmp_path / "hf", Asked())
    done = mlzh("convert", "verify", checkpoints[name], tmp_path / "hf")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "argmax the same at 100.00 %" in done.stdout


def written(directory: Path, config: Any) -> Path:
    """A directory with this run_config.yaml."""
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    (directory / "run_config.yaml").write_text(text)
    return directory


def values(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Keys of our model section that a run_config.yaml means."""
    found = read_run_config(written(directory, config))
    assert found is not None
    return values_of(found.arguments, "here")


LLAMA = Model(num_layers=16, hidden_size=2048, num_attention_heads=32, num_query_groups=8, seq_length=4096)
LATENT = Model(
    family="deepseek_v2",
    num_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    seq_length=4096,
    num_moe_experts=4,
    moe_shared_expert_intermediate_size=32,
)
YARN = {"kind": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
MEANINGS: dict[str, tuple[Model, dict[str, Any], dict[str, Any]]] = {
    "llama 3.1, a later version": (
        LLAMA,
        {"rope_scaling": True, "rope_scaling_factor": 8.0},
        {"rope_scaling": {"kind": "llama3", "factor": 8.0}, "activation": "swiglu", "max_position_embeddings": 65536},
    ),
    "interpolated": (LLAMA, {"seq_len_interpolation_factor": 4}, {"rope_scaling": {"kind": "linear", "factor": 4.0}}),
    "yarn": (
        LLAMA,
        {
            "position_embedding_type": "yarn",
            "yarn_rotary_scaling_factor": 4.0,
            "yarn_original_max_position_embeddings": 32768,
            "yarn_mscale": None,
            "yarn_correction_range_round_to_int": False,
        },
        {
            "position_embedding_type": "rope",
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "kind": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "truncate": False,
            },
        },
    ),
    "yarn of latent attention": (
        LATENT,
        {"rotary_scaling_factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "max_position_embeddings": 4096}
        | {"beta_fast": 32, "beta_slow": 1},
        {"rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "max_position_embeddings": 163840},
    ),
    "yarn without mscales": (
        LATENT,
        {"rotary_scaling_factor": 40, "mscale": 1.0, "mscale_all_dim": 0.0, "original_max_position_embeddings": 4096}
        | {"beta_fast": 32, "beta_slow": 1},
        {"rope_scaling": YARN},
    ),
    "one group": (LATENT, {"moe_router_num_groups": 1, "moe_router_group_topk": 1}, {"moe_router_num_groups": None}),
    "groups": (
        LATENT,
        {"moe_router_num_groups": 2, "moe_router_group_topk": 1},
        {"moe_router_num_groups": 2, "moe_router_group_score": "sum"},
    ),
    "squared relu": (
        LLAMA,
        {"activation_func": {"_target_": "megatron.core.activations.squared_relu"}, "gated_linear_unit": False},
        {"activation": "squared_relu"},
    ),
    "gelu, not fused": (
        LLAMA,
        {"activation_func": {"_target_": "torch._C._nn.gelu"}, "gated_linear_unit": False}
        | {"bias_activation_fusion": False},
        {"activation": "gelu"},
    ),
    "what megatron-core fills in": (
        LLAMA,
        {"ffn_hidden_size": None, "num_query_groups": None, "kv_channels": None, "mtp_num_layers": 0},
        {"ffn_hidden_size": 8192, "num_query_groups": 32, "kv_channels": None, "mtp_num_layers": None},
    ),
    "a longer claim": (LLAMA, {"max_position_embeddings": 40960}, {"max_position_embeddings": 40960}),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_what_keys_mean(name: str, tmp_path: Path) -> None:
    model, changes, expected = MEANINGS[name]
    config = run_config(model, GPT)
    config["model"] |= changes
    found = values(tmp_path, config)
    assert {key: found.get(key) for key in expected} == expected


def test_a_deepseek_v2_of_megatron_core_is_refused_where_its_groups_are_sums(tmp_path: Path) -> None:
    def family_of(**changes: Any) -> set[str]:
        config = run_config(LATENT, GPT)
        config["model"] |= {"moe_ffn_hidden_size": 32, "rotary_scaling_factor": 1.0, **changes}
        return set(families_for(values(tmp_path, config), set(), 131, 256, "here", "deepseek_v2"))

    assert family_of(moe_router_num_groups=2, moe_router_group_topk=2) == {"deepseek_v2"}
    with pytest.raises(UserError, match=r"moe_router_group_score: sum, of 2 experts; DeepSeek-V2 takes the best one"):
        family_of(moe_router_num_groups=2, moe_router_group_topk=1)


def test_a_sigmoid_knows_no_softmax(tmp_path: Path) -> None:
    model = dataclasses.replace(LATENT, moe_router_score_function="sigmoid", moe_router_pre_softmax=True)
    assert "moe_router_pre_softmax" not in values(tmp_path, run_config(model, GPT))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"activation_func": {"_target_": "torch.nn.functional.relu"}}, r"model\.activation_func is .*relu"),
    "gated gelu": ({"activation_func": "gelu"}, r"gated_linear_unit True; expected silu"),
    "missing": ({"num_layers": None}, r"no model\.num_layers"),
    "known key": ({"layernorm_zero_centered_gamma": True}, r"model\.layernorm_zero_centered_gamma is True"),
    "unknown key": ({"final_logit_softcapping": 30.0}, r"model\.final_logit_softcapping is 30\.0"),
    "quantized": ({"restore_modelopt_state": True}, r"model\.restore_modelopt_state is True"),
    "yarn": ({"position_embedding_type": "yarn"}, r"yarn without yarn_rotary_scaling_factor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_model_section_can_say_is_refused(name: str, tmp_path: Path) -> None:
    changes, words = REFUSED[name]
    config = run_config(LLAMA, GPT)
    config["model"] |= changes
    with pytest.raises(UserError, match=words) as raised:
        values(tmp_path, config)
    assert "\n" not in str(raised.value)


UNREADABLE = {
    "broken": ("model: {num_layers: [1\n", r"run_config\.yaml:\d+: not plain YAML"),
    "object": ("model: !!python/object/apply:os.system ['touch ran']\n", r"run_config\.yaml:1: not plain YAML.*python"),
    "list": ("- model\n", "no mapping"),
    "no model": ("train: {train_iters: 5}\n", "no model section"),
    "adapters": ("peft: {dim: 8}\nmodel: {}\n", "adapters alone; merge them"),
    "date": ("model: {seq_length: 2001-99-99}\n", "unreadable"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, words = UNREADABLE[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as raised:
        read_run_config(written(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.dist
def test_the_user_is_asked_where_the_file_does_not_say_it(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = shutil.copytree(checkpoints["llama"], tmp_path / "iter_0000007")
    config = yaml.safe_load((checkpoint / "run_config.yaml").read_text())

    def opening(asked: Asked = Asked(), **changes: Any) -> str:  # noqa: B008
        written(checkpoint, config | {"model": config["model"] | changes})
        return ToHF(checkpoint, asked).model.family

    with pytest.raises(UserError, match=r"may be of llama, .* name one: --family"):
        opening(_target_=GPT)
    assert opening(Asked(family="llama"), _target_=GPT) == "llama"
    with pytest.raises(UserError, match=r"model\._target_: GemmaModelProvider may build more .* --family"):
        opening(_target_=BRIDGE + "gemma.gemma_provider.GemmaModelProvider")
    assert opening(Asked(family="llama"), _target_="my.code.MyProvider") == "llama"
    with pytest.raises(UserError, match="how many of the 512 rows .* --vocab-size"):
        opening(vocab_size=None)
    with pytest.raises(UserError, match="the embedding has 512 rows; expected 600 or more"):
        opening(vocab_size=600)
    with pytest.raises(UserError, match="no family has this model"):
        opening(num_layers="4")
    assert opening(Asked(config=checkpoints["llama"].parent / "config.yaml"), qk_l2_norm=True) == "llama"


def test_arguments_of_megatron_lm_are_refused_by_their_flags() -> None:
    with pytest.raises(UserError, match=r"--softmax-type is 'learnable'; expected 'vanilla'"):
        values_of(argparse.Namespace(softmax_type="learnable"), "here")
    with pytest.raises(UserError, match=r"--moe-router-load-balancing-type is sinkhorn"):
        values_of(argparse.Namespace(num_experts=4, moe_router_load_balancing_type="sinkhorn"), "here")
    scaled = {"multi_latent_attention": True, "rope_type": "rope", "rotary_scaling_factor": 40, "mscale_all_dim": 1.0}
    with pytest.raises(UserError, match="its attention scores are scaled"):
        values_of(argparse.Namespace(num_attention_heads=4, **scaled), "here")
