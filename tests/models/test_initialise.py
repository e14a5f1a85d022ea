"""Initial weights of experts, latent attention, multi-token prediction and uneven stages under every layout."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist

STD = 0.05
LAYERS = 4
EXPERTS = {
    "num_moe_experts": 4,
    "moe_ffn_hidden_size": 24,
    "moe_layer_freq": [0, 1, 1, 1],
    "moe_shared_expert_intermediate_size": 32,
    "moe_router_enable_expert_bias": True,
    "moe_router_score_function": "sigmoid",
    "moe_router_load_balancing_type": "none",
}
LATENT = {
    "multi_latent_attention": True,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 12,
    "qk_layernorm": True,
}
AHEAD = {"mtp_num_layers": 1}
PLAIN = {"add_bias_linear": True, "position": "learned_absolute"}

CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "experts-ep2": (2, {"expert": 2}, EXPERTS),
    "experts-tp2-etp2-ep2": (4, {"tensor": 2, "expert": 2, "expert_tensor": 2}, EXPERTS),
    "experts-tp2-ep2": (2, {"tensor": 2, "expert": 2, "expert_tensor": 1}, EXPERTS),
    "experts-pp2-ep2-vpp2": (4, {"pipeline": 2, "virtual": 2, "expert": 2}, EXPERTS),
    "latent-tp2": (2, {"tensor": 2}, LATENT),
    "latent-experts-mtp-pp2-ep2": (4, {"pipeline": 2, "expert": 2}, LATENT | EXPERTS | AHEAD),
    "mtp-uneven-stages": (2, {"pipeline": 2, "layout": "Et|tt|t|mL"}, AHEAD),
    "biases-positions-tp2": (2, {"tensor": 2}, PLAIN),
}


def initialised_shards(ranks: Any, device: Any, layout: dict[str, Any], model: dict[str, Any]) -> list[Any]:
    """Runs in the pool: (key, global shape, offset, values) of every shard of this rank."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=ranks.world)
    try:
        return shards_of(device, layout, dict(model))
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def shards_of(device: Any, layout: dict[str, Any], model: dict[str, Any]) -> list[Any]:
    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    from megatron_lm_zh.models.initialise import initialise, sharded_tensors
    from megatron_lm_zh.models.spec import block_spec, mtp_spec

    tensor, pipeline, expert = (layout.get(name, 1) for name in ("tensor", "pipeline", "expert"))
    position = model.pop("position", "rope")
    config = (MLATransformerConfig if "multi_latent_attention" in model else TransformerConfig)(
        **{
            "num_layers": LAYERS,
            "hidden_size": 48,
            "num_attention_heads": 4,
            "ffn_hidden_size": 64,
            "gated_linear_unit": True,
            "activation_func": torch.nn.functional.silu,
            "normalization": "RMSNorm",
            "add_bias_linear": False,
            "tensor_model_parallel_size": tensor,
            "pipeline_model_parallel_size": pipeline,
            "virtual_pipeline_model_parallel_size": layout.get("virtual"),
            "pipeline_model_parallel_layout": layout.get("layout"),
            "expert_model_parallel_size": expert,
            "expert_tensor_parallel_size": layout.get("expert_tensor", tensor),
            "pipeline_dtype": torch.float32,
        }
        | model
    )
    chunks = config.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=chunks,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=layout.get("expert_tensor", tensor),
    )
    tensor_parallel.model_parallel_cuda_manual_seed(parallel_state.get_data_parallel_rank(), force_reset_rng=True)
    found = []
    for chunk in range(chunks) if chunks else (None,):
        gpt = GPTModel(
            config=config,
            transformer_layer_spec=block_spec(config, device, vp_stage=chunk),
            mtp_block_spec=mtp_spec(config, device, vp_stage=chunk),
            vocab_size=80,
            max_sequence_length=40,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=chunk),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=chunk),
            position_embedding_type=position,
            vp_stage=chunk,
        )
        initialise(gpt, seed=3, std=STD, num_layers=LAYERS, embedding_std=2 * STD)
        for shard in sharded_tensors(gpt):
            found.append((shard.key, shard.global_shape, shard.global_offset, shard.data.detach().numpy().copy()))
    return found


def full_weights(pool: RankPool, world: int, layout: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Every tensor of the model put together from the ranks' shards; replicas must be equal."""
    import numpy as np

    full: dict[str, Any] = {}
    for shards in pool.run(world, initialised_shards, layout, model):
        for key, shape, offset, data in shards:
            whole = full.setdefault(key, np.full(shape, np.nan, dtype=np.float32))
            data = data.reshape((1,) * (len(shape) - data.ndim) + data.shape)
            place = tuple(slice(first, first + size) for first, size in zip(offset, data.shape, strict=True))
            assert np.isnan(whole[place]).all() or np.array_equal(whole[place], data), key
            whole[place] = data
    assert not [key for key, whole in full.items() if np.isnan(whole).any()]
    return full


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_one_rank(name: str, ranks: RankPool) -> None:
    import numpy as np

    world, layout, model = CASES[name]
    expected, found = full_weights(ranks, 1, {}, model), full_weights(ranks, world, layout, model)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not np.array_equal(expected[key], found[key])] == []


def test_each_has_its_standard_deviation(ranks: RankPool) -> None:
    import numpy as np

    weights = full_weights(ranks, 1, {}, LATENT | EXPERTS | AHEAD | PLAIN | {"add_bias_linear": False})
    into_residual = set()
    for key, tensor in weights.items():
        if tensor.ndim == 1:
            assert np.array_equal(tensor, np.full_like(tensor, "norm" in key)), key
            continue
        std = STD
        if key.startswith("embedding."):
            std = 2 * STD
        elif key.endswith(("linear_proj.weight", "linear_fc2.weight")):
            into_residual.add(key.partition("layers.")[2].partition(".")[2])
            std = STD / np.sqrt(2 * LAYERS)
        for matrix in tensor if tensor.ndim == 3 else [tensor]:
            assert matrix.std() == pytest.approx(std, rel=0.12), key
    assert into_residual == {
        "self_attention.linear_proj.weight",
        "mlp.linear_fc2.weight",
        "mlp.experts.experts.linear_fc2.weight",
        "mlp.shared_experts.linear_fc2.weight",
        "transformer_layer.self_attention.linear_proj.weight",
        "transformer_layer.mlp.experts.experts.linear_fc2.weight",
        "transformer_layer.mlp.shared_experts.linear_fc2.weight",
    }
    experts = weights["decoder.layers.1.mlp.experts.experts.linear_fc1.weight"]
    assert len({expert.tobytes() for expert in experts}) == EXPERTS["num_moe_experts"], "no two experts are alike"


def missed_matrix(ranks: Any, device: Any) -> str:
    """Runs in the pool: what initialise says of a model whose checkpoint leaves a matrix out."""
    from megatron_lm_zh.models import initialise

    usual = initialise.sharded_tensors
    initialise.sharded_tensors = lambda model: [  # type: ignore[assignment]
        tensor for tensor in usual(model) if "router" not in tensor.key
    ]
    try:
        initialised_shards(ranks, device, {}, EXPERTS)
    except AssertionError as error:
        return str(error)
    finally:
        initialise.sharded_tensors = usual
    return ""


def test_a_matrix_that_is_not_drawn_is_noticed(ranks: RankPool) -> None:
    (message,) = ranks.run(1, missed_matrix)
    assert "decoder.layers.1.mlp.router.weight" in message
