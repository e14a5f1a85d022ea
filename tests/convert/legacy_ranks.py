"""What a rank of the pool does for the tests of Megatron-LM's own checkpoints: saves its model as Megatron-LM does."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch

CONFIG = """
run: {{dir: {run}}}
model: {{num_layers: 4, hidden_size: 64, num_attention_heads: 4, ffn_hidden_size: 96,
  seq_length: 64, vocab_size: {vocab}, {model}}}
parallel: {{{parallel}}}
precision: {{dtype: fp32}}
data: {{tokenizer: {{type: HuggingFace, path: {run}/gone}}, train: [{{path: {run}/none}}]}}
train: {{steps: 5, global_batch_size: 4}}
optim: {{lr: 0.01}}
"""
DEEPSEEK = (
    "family: deepseek_v3, num_moe_experts: 4, moe_ffn_hidden_size: 32, moe_layer_freq: [0, 1, 1, 1], "
    "moe_shared_expert_intermediate_size: 32, num_query_groups: 4, q_lora_rank: 32, kv_lora_rank: 16, qk_head_dim: 8, "
    "qk_pos_emb_head_dim: 8, v_head_dim: 8"
)


def save_ranks(ranks: Any, device: Any, config_file: str, output: str, homogeneous: bool) -> None:
    """Runs in the pool: builds a random model, the same at every layout, and saves it.

    Args:
        output: gets mp_rank_* directories; or, where `homogeneous`, a torch_dist checkpoint of stacked layers.
    """
    from megatron.core import dist_checkpointing, parallel_state

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_chunks
    from megatron_lm_zh.runtime.groups import process_groups

    config = load_config(config_file, world=ranks.world)
    with process_groups(config, ranks, device):
        chunks = build_chunks(config, device)
        for chunk in chunks:
            draw_vectors(chunk)
        if homogeneous:
            state = {f"model{n}": chunk.sharded_state_dict() for n, chunk in enumerate(chunks)}
            args = arguments_of(config)
            dist_checkpointing.save({**state, "args": args, "iteration": 7, "checkpoint_version": 3.0}, output)
            return
        experts = config.model.num_moe_experts is not None
        # as in Megatron-LM: with experts, the ranks that hold the same of them as another do not write
        if parallel_state.get_expert_data_parallel_rank() if experts else parallel_state.get_data_parallel_rank():
            return
        name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
        if config.parallel.pipeline > 1:
            name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
        if config.parallel.expert > 1:
            name += f"_{parallel_state.get_expert_model_parallel_rank():03d}"
        directory = Path(output) / name
        directory.mkdir(parents=True)
        states = [chunk.state_dict_for_save_checkpoint() for chunk in chunks]
        models = {"model": states[0]} if len(states) == 1 else {f"model{n}": state for n, state in enumerate(states)}
        saved = {"args": arguments_of(config), "checkpoint_version": 3.0, "iteration": 7, **models}
        saved |= {"optimizer": {"state": torch.zeros(5)}, "rng_state": [{"random_rng_state": (3, (1, 2), None)}]}
        torch.save(saved, directory / "model_optim_rng.pt")


def draw_vectors(model: Any) -> None:
    """Gives norms and biases numbers that follow from their global names."""
    from megatron_lm_zh.models.initialise import sharded_tensors

    with torch.no_grad():
        for shard in sharded_tensors(model):
            if len(shard.global_shape) - shard.prepend_axis_num == 1 and shard.data is not None:
                seed = int.from_bytes(hashlib.sha256(shard.key.encode()).digest()[:6], "little")
                whole = torch.randn(shard.global_shape, generator=torch.Generator().manual_seed(seed))
                shard.data.copy_(whole[shard.global_slice()].reshape(shard.data.shape))


def arguments_of(config: Any) -> argparse.Namespace:
    """The arguments with which Megatron-LM trains this model, an enumeration and a function among them."""
    from megatron.core.transformer.enums import AttnBackend

    model, parallel = config.model, config.parallel
    same = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "kv_channels", "seq_length")
    same += ("max_position_embeddings", "normalization", "add_bias_linear", "add_qkv_bias", "qk_layernorm")
    same += ("position_embedding_type", "mtp_num_layers", "init_method_std", "attention_dropout", "hidden_dropout")
    same += ("rotary_base", "rotary_percent", "multi_latent_attention", "q_lora_rank", "kv_lora_rank", "qk_head_dim")
    same += ("qk_pos_emb_head_dim", "v_head_dim", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size")
    same += ("moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax", "vocab_size")
    frequency = model.moe_layer_freq
    return argparse.Namespace(
        **{name: getattr(model, name) for name in same},
        num_experts=model.num_moe_experts,
        moe_layer_freq=frequency if isinstance(frequency, int) else list(frequency),
        group_query_attention=model.num_query_groups < model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        untie_embeddings_and_output_weights=not model.tie_embeddings,
        swiglu=model.activation == "swiglu",
        norm_epsilon=model.layernorm_epsilon,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        params_dtype=torch.float32,
        attention_backend=AttnBackend.auto,
        rope_type="rope",
        a_function=torch.nn.functional.gelu,
    )
