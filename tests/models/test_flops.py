"""Counts in closed form: equal to what the built model has, and to what is published of known models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool

from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.models.flops import active_parameters, flops_per_token, parameters

ROOT = Path(__file__).parents[2]
VOCAB = "model.vocab_size=401"
GPT = "model.family=gpt"
EXPERTS = ["model.num_moe_experts=4", "model.moe_ffn_hidden_size=96"]
MLA = [
    *("model.multi_latent_attention=true", "model.kv_lora_rank=24", "model.qk_head_dim=16"),
    *("model.qk_pos_emb_head_dim=8", "model.v_head_dim=12", "model.num_query_groups=4"),
]

ARCHITECTURES: dict[str, list[str]] = {
    "llama": [],
    "tied": ["model.tie_embeddings=true"],
    "multi-query": ["model.num_query_groups=1", "model.kv_channels=24"],
    "gpt-2": [
        *(GPT, "model.activation=gelu", "model.normalization=LayerNorm", "model.add_bias_linear=true"),
        *("model.position_embedding_type=learned_absolute", "model.num_query_groups=4"),
    ],
    "geglu-alibi": [GPT, "model.activation=geglu", "model.position_embedding_type=alibi"],
    "squared-relu": [GPT, "model.activation=squared_relu", "model.add_qkv_bias=true"],
    "qk-norm": [GPT, "model.qk_layernorm=true", "model.normalization=LayerNorm"],
    "sandwich": [GPT, "model.sandwich_norm=true", "model.normalization=LayerNorm", "model.mtp_num_layers=1"],
    "glm4_0414": ["model.family=glm4_0414"],
    "mixtral": ["model.family=mixtral", *EXPERTS],
    "expert-biases": [GPT, *EXPERTS, "model.add_bias_linear=true", "model.activation=gelu"],
    "shared-experts": [
        *(GPT, *EXPERTS, "model.moe_layer_freq=[0,1,0,1]", "model.moe_shared_expert_intermediate_size=48"),
        "model.moe_shared_expert_gate=true",
    ],
    "every-other-layer": [GPT, *EXPERTS, "model.moe_layer_freq=2"],
    "mla": [GPT, *MLA],
    "mla-normed": [GPT, *MLA, "model.q_lora_rank=40", "model.qk_layernorm=true"],
    "mtp": [GPT, "model.mtp_num_layers=2"],
    "deepseek": [
        *("model.family=deepseek_v3", *MLA, *EXPERTS, "model.q_lora_rank=40", "model.moe_layer_freq=[0,1,1,1]"),
        *("model.moe_shared_expert_intermediate_size=96", "model.mtp_num_layers=1", "model.tie_embeddings=true"),
    ],
}


def built_parameters(ranks: Any, device: Any, config: str, overrides: list[str]) -> int:
    """Runs in the pool: parameters of the model that megatron-core builds."""
    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.runtime.groups import process_groups

    loaded = load_config(config, overrides, world=1)
    with process_groups(loaded, ranks, device):
        return sum(parameter.numel() for parameter in build_gpt(loaded, device).parameters())


@pytest.mark.dist
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_the_built_model(name: str, ranks: RankPool, tiny_run: Path) -> None:
    overrides = [VOCAB, *ARCHITECTURES[name]]
    (built,) = ranks.run(1, built_parameters, str(tiny_run), overrides)
    assert parameters(load_config(tiny_run, overrides)) == built


@pytest.fixture
def loaded(tiny_run: Path) -> Callable[..., Any]:
    """The tiny config with overrides."""
    return lambda *overrides: load_config(tiny_run, [VOCAB, *overrides])


def test_experts_that_a_token_is_not_sent_to_are_not_active(loaded: Callable[..., Any]) -> None:
    dense, sparse = loaded(), loaded("model.family=mixtral", *EXPERTS)
    expert, router, layers = 3 * 64 * 96, 4 * 64, 4
    assert parameters(sparse) - active_parameters(sparse) == layers * 2 * expert
    assert active_parameters(dense) == parameters(dense)
    saved = layers * (3 * 64 * dense.model.ffn_hidden_size - 2 * expert - router)
    assert flops_per_token(dense) - flops_per_token(sparse) == 6 * saved


def test_a_prediction_layer_costs_a_layer_a_joint_and_an_output_layer(loaded: Callable[..., Any]) -> None:
    one, two = (flops_per_token(loaded(GPT, f"model.num_layers={layers}")) for layers in (1, 2))
    predicting = flops_per_token(loaded(GPT, "model.num_layers=1", "model.mtp_num_layers=1"))
    assert predicting - one == (two - one) + 6 * (2 * 64 * 64 + 512 * 64)


def test_attention_counts_the_positions_that_are_seen(loaded: Callable[..., Any]) -> None:
    scores = 6 * 2 * 64  # 2 products x 64 channels of all heads, a position, forward and backward
    causal = flops_per_token(loaded(GPT))
    assert causal - flops_per_token(loaded(GPT, "model.window_size=[31,0]")) == 0  # as long as the sequence
    one_of_two = flops_per_token(loaded(GPT, "model.window_size=[7,0]", "model.window_attn_skip_freq=2"))
    assert causal - one_of_two == 2 * scores * (32 / 2 - (8 - 8 * 8 / 64))


def test_a_dense_layer_by_hand(loaded: Callable[..., Any]) -> None:
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 192
    assert parameters(loaded()) == 2 * 512 * 64 + 4 * (layer + 2 * 64) + 64
    assert flops_per_token(loaded()) == 6 * (4 * layer + 512 * 64) + 4 * 6 * 32 * 64


UNSTAGED = [
    *("parallel.pipeline=1", "parallel.virtual_pipeline=1", "parallel.pipeline_model_parallel_layout=null"),
    "parallel.microbatch_group_size_per_vp_stage=null",
]
PUBLISHED = [
    # The number of weights in Hugging Face's files; the rest of each name is the config's.
    ("13b", [], 13_015_864_320, 13_015_864_320),  # meta-llama/Llama-2-13b-hf
    ("70b", ["model.vocab_size=32000"], 68_976_648_192, 68_976_648_192),  # meta-llama/Llama-2-70b-hf
    ("70b", [], 70_553_706_496, 70_553_706_496),  # meta-llama/Llama-3.1-70B
    ("8x7b", [], 46_702_792_704, 12_879_925_248),  # mistralai/Mixtral-8x7B-v0.1; "12.9B parameters per token"
    # deepseek-ai/DeepSeek-V3: 671,026,419,200 with 58 x 256 expert biases, which are no parameters; "37B activated"
    ("deepseek_v3", ["model.mtp_num_layers=null", *UNSTAGED], 671_026_404_352, 37_552_282_624),
    ("qwen3_30b_a3b", [], 30_532_122_624, 3_353_032_704),  # Qwen/Qwen3-30B-A3B; "3.3B activated"
]


@pytest.mark.parametrize(("name", "overrides", "total", "active"), PUBLISHED)
def test_shipped_configs_have_the_published_sizes(name: str, overrides: list[str], total: int, active: int) -> None:
    config = load_config(ROOT / "examples" / "configs" / f"{name}.yaml", overrides)
    assert (parameters(config), active_parameters(config)) == (total, active)
