"""Layers built from our specs: the checkpoint's names, and the same losses and gradients under every layout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.pool import RankPool
from torch import Tensor

from megatron_lm_zh import compat

pytestmark = pytest.mark.dist

LENGTH, ROWS, VOCABULARY = 16, 2, 24

LATENT = {
    "multi_latent_attention": True,
    "kv_lora_rank": 8,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 6,
    "qk_layernorm": True,
    "rotary_scaling_factor": 4.0,
    "original_max_position_embeddings": 8,
    "mscale_all_dim": 1.0,
    "apply_rope_fusion": False,
}
EXPERTS = {
    "num_moe_experts": 4,
    "moe_layer_freq": [1, 0],
    "moe_token_dispatcher_type": "alltoall",
    "add_bias_linear": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "grouped-qk-norm": {"num_query_groups": 2, "qk_layernorm": True},
    "layer-norm-window": {"normalization": "LayerNorm", "window_size": (3, 0), "window_attn_skip_freq": 2},
    "sandwich": {"sandwich": True},
    "sandwich-biases": {"sandwich": True, "normalization": "LayerNorm", "add_bias_linear": True, "mtp_num_layers": 1},
    "sandwich-latent": {**LATENT, "q_lora_rank": 8, "sandwich": True},
    "partial-rope": {"rotary_percent": 0.5, "num_query_groups": 2},
    "interleaved-rope": {"rotary_interleaved": True, "apply_rope_fusion": False},
    "alibi": {"alibi": True},
    "yarn": {"yarn": True, "apply_rope_fusion": False},
    "latent": {**LATENT, "q_lora_rank": 8},
    "latent-without-query-latent": {**LATENT, "q_lora_rank": None, "rope_type": "rope"},
    "next-tokens": {"mtp_num_layers": 1},
    "documents": {"bounds": [0, 5, 6, 21, 32]},
    "documents-latent": {**LATENT, "q_lora_rank": 8, "bounds": [0, 16, 19, 32]},
}
ONE_RANK: dict[str, dict[str, Any]] = {"experts": EXPERTS, "experts-latent": {**EXPERTS, **LATENT, "q_lora_rank": 8}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, {"tensor_model_parallel_size": 2}),
    "tp2-sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "cp2": (2, {"context_parallel_size": 2, "cp_comm_type": "all_gather"}),
}


def gradients(ranks: Any, device: Any, layout: dict[str, Any]) -> dict[str, tuple[float, dict[str, list[Any]]]]:
    """Runs in the pool: every model's mean loss and this rank's parts of its gradients."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=ranks.world)
    sizes = {key: value for key, value in layout.items() if key.endswith("parallel_size")}
    parallel_state.initialize_model_parallel(**sizes)
    models = MODELS if layout else MODELS | ONE_RANK
    try:
        return {name: _gradients(device, dict(options), layout) for name, options in models.items()}
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _gradients(device: Any, options: dict[str, Any], layout: dict[str, Any]) -> tuple[float, dict[str, list[Any]]]:
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads

    batch, packed = _batch(options.pop("bounds", None))
    chunk, wrapped = _model(device, options, layout)
    losses = wrapped(batch["tokens"], batch["positions"], None, labels=batch["labels"], packed_seq_params=packed)
    loss = losses.sum() / (LENGTH * ROWS)
    loss.backward()
    finalize_model_grads([wrapped])
    loss = loss.detach()
    dist.all_reduce(loss, group=parallel_state.get_context_parallel_group())
    return float(loss), _parts(chunk)


def _model(device: Any, options: dict[str, Any], layout: dict[str, Any]) -> tuple[Any, Any]:
    """A GPTModel of two layers, and the same wrapped in megatron-core's DistributedDataParallel."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt import GPTModel
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    from megatron_lm_zh.config.sections.rope_scaling import YarnScaling
    from megatron_lm_zh.models.rope import set_yarn, use_as_fused_rope
    from megatron_lm_zh.models.spec import Own, block_spec, mtp_spec

    model_parallel_cuda_manual_seed(0)
    use_as_fused_rope()
    yarn = options.pop("yarn", False)
    own = Own(alibi=options.pop("alibi", False), sandwich_norm=options.pop("sandwich", False))
    arguments = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "ffn_hidden_size": 48,
        "gated_linear_unit": True,
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "apply_rope_fusion": True,
        "calculate_per_token_loss": True,
        "transformer_impl": "local",
        "bias_dropout_fusion": False,
        "gradient_accumulation_fusion": False,
    }
    rotary_percent = options.pop("rotary_percent", 1.0)
    kind = MLATransformerConfig if "multi_latent_attention" in options else TransformerConfig
    config = kind(**(arguments | options | layout))
    if yarn:
        set_yarn(config, YarnScaling(factor=4.0, original_max_position_embeddings=8))
    gpt = GPTModel(
        config=config,
        transformer_layer_spec=block_spec(config, device, own),
        mtp_block_spec=mtp_spec(config, device, own),
        vocab_size=VOCABULARY,
        max_sequence_length=LENGTH,
        position_embedding_type="none" if own.alibi else "yarn" if yarn else "rope",
        rotary_percent=rotary_percent,
    )
    _draw(gpt)
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    return gpt, DistributedDataParallel(config, ddp, gpt)


def _draw(gpt: Any) -> None:
    """The same weights under every layout, norms and biases included."""
    from megatron_lm_zh.models.initialise import sharded_tensors

    for tensor in sharded_tensors(gpt):
        generator = torch.Generator().manual_seed(sum(map(ord, tensor.key)))
        whole = 0.2 * torch.randn(tensor.global_shape, generator=generator)
        part = whole[_place(tensor.global_offset, tensor.data)]
        with torch.no_grad():
            tensor.data.copy_(part + 1 if part.dim() == 1 else part)


def _place(offset: tuple[int, ...], part: Tensor) -> tuple[int | slice, ...]:
    """Where a part lies in the whole; what the name adds in front of its own axes (the expert) is one number each."""
    added = len(offset) - part.dim()
    within = (slice(start, start + size) for start, size in zip(offset[added:], part.shape, strict=True))
    return (*offset[:added], *within)


def _batch(bounds: list[int] | None) -> tuple[dict[str, Tensor], Any]:
    from megatron.core import parallel_state
    from megatron.core.utils import get_batch_on_this_cp_rank

    from megatron_lm_zh.models.documents import packed_documents

    generator = torch.Generator().manual_seed(1)
    stream = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    positions = torch.arange(LENGTH).expand(ROWS, -1)
    batch = {"tokens": stream[:, :-1], "labels": stream[:, 1:], "positions": positions}
    packed, group = None, parallel_state.get_context_parallel_group()
    if bounds is not None:
        batch = {key: value.reshape(1, -1) for key, value in batch.items()}
        packed = packed_documents(torch.tensor(bounds, dtype=torch.int32), context_parallel=group.size() > 1)
    cut = compat.cut_by_sequence(get_batch_on_this_cp_rank)
    return cut({key: value.contiguous() for key, value in batch.items()}, cp_group=group), packed


def _parts(gpt: Any) -> dict[str, list[Any]]:
    """Every gradient's global shape, this rank's place in it and its part; the gradients take the weights' place."""
    from megatron_lm_zh.models.initialise import sharded_tensors

    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.copy_(parameter.main_grad)
    return {
        f"{tensor.key}@{tensor.global_offset}": [tensor.key, tensor.global_shape, tensor.global_offset, +tensor.data]
        for tensor in sharded_tensors(gpt)
    }


def assembled(answers: list[dict[str, list[Any]]]) -> dict[str, Tensor]:
    """Whole gradients by name."""
    found: dict[str, Tensor] = {}
    for answer in answers:
        for key, shape, offset, part in answer.values():
            whole = found.setdefault(key, torch.full(shape, torch.nan))
            whole[_place(offset, part)] = part
    return found


@pytest.fixture(scope="module")
def measured(ranks: RankPool) -> Callable[[str], list[Any]]:
    """What the ranks of a layout found; `one-rank` is a layout too."""

    @functools.cache
    def run(layout: str) -> list[Any]:
        world, options = LAYOUTS.get(layout, (1, {}))
        return ranks.run(world, gradients, options)

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_do_not_depend_on_the_layout(name: str, layout: str, measured: Callable[[str], list[Any]]) -> None:
    if "mtp_num_layers" in MODELS[name] and layout == "cp2" and compat.megatron_core_version() >= (0, 17):
        pytest.skip("megatron-core 0.19 weighs the tokens of the multi-token loss by each context-parallel rank's own")
    ((loss, parts),) = [answer[name] for answer in measured("one-rank")]
    answers = [answer[name] for answer in measured(layout)]
    assert all(abs(other - loss) < 1e-5 for other, _ in answers)
    expected, found = assembled([parts]), assembled([parts for _, parts in answers])
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.abs().max() > 1e-6, key
        torch.testing.assert_close(
            found[key], gradient, atol=2e-6, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


STAGES: dict[str, tuple[dict[str, Any], list[list[str]]]] = {
    "even": ({}, [["MdM"], ["dMd"]]),
    "short-first-stage": ({"num_layers_in_first_pipeline_stage": 1}, [["M"], ["dMdMd"]]),
    "interleaved": ({"virtual_pipeline_model_parallel_size": 3}, [["M", "M", "M"], ["d", "d", "d"]]),
    "layout": ({"pipeline_model_parallel_layout": "Ettt|tt|t|L"}, [["MdM", "d"], ["dM", ""]]),
}
"""Name of the division: what it sets, and for each of two ranks the layers of its chunks, M with experts, d without."""


def layers_of_chunks(ranks: Any, device: Any, options: dict[str, Any], chunks: int) -> list[str]:
    """Runs in the pool: the layers of this rank's chunks."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_lm_zh.models.spec import block_spec

    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=2)
    virtual = chunks if chunks > 1 else None
    parallel_state.initialize_model_parallel(1, 2, virtual_pipeline_model_parallel_size=virtual)
    try:
        config = TransformerConfig(
            num_layers=6,
            hidden_size=32,
            num_attention_heads=4,
            num_moe_experts=2,
            moe_layer_freq=2,
            add_bias_linear=False,
            pipeline_model_parallel_size=2,
            pipeline_dtype=torch.float32,
            **options,
        )
        found = []
        for chunk in range(chunks):
            layers = block_spec(config, device, vp_stage=chunk if virtual else None).layer_specs
            expert = [compat.module_of_spec(layer.submodules.mlp) is MoELayer for layer in layers]
            found.append("".join("M" if it else "d" for it in expert))
        return found
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_its_own_layers(name: str, ranks: RankPool) -> None:
    options, expected = STAGES[name]
    assert ranks.run(2, layers_of_chunks, options, len(expected[0])) == expected


def packed_and_alone(ranks: Any, device: Any, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Runs in the pool: the losses of packed documents, and of each of them in a sequence of its own, in fp64."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    try:
        bounds = [0, 5, 6, 16, 32]
        batch, packed = _batch(bounds)
        gpt, _ = _model(device, dict(options), {})

        def losses(rows: slice, packed: Any = None) -> Tensor:
            part = {key: value[:, rows] for key, value in batch.items()}
            found: Tensor = gpt(
                part["tokens"], part["positions"], None, labels=part["labels"], packed_seq_params=packed
            )
            return found[0].double()

        with torch.no_grad():
            each = [losses(slice(*ends)) for ends in zip(bounds[:-1], bounds[1:], strict=True)]
            return losses(slice(None), packed), torch.cat(each)
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["grouped-qk-norm", "layer-norm-window", "alibi", "yarn", "latent"])
def test_a_packed_document_has_the_loss_that_it_has_alone(name: str, ranks: RankPool) -> None:
    ((packed, alone),) = ranks.run(1, packed_and_alone, MODELS[name])
    torch.testing.assert_close(packed, alone, atol=2e-6, rtol=0)
    assert abs(packed.mean() - alone.mean()) <= 1e-6


def test_a_checkpoint_has_the_names_of_transformer_engines_layers(measured: Callable[[str], list[Any]]) -> None:
    (answer,) = measured("one-rank")

    def norms(model: str) -> set[str]:
        names = {key.partition("@")[0] for key in answer[model][1]}
        return {
            name.removeprefix("decoder.").removeprefix("layers.0.")
            for name in names
            if "norm" in name and ".1." not in name
        }

    assert norms("grouped-qk-norm") == {
        "self_attention.linear_qkv.layer_norm_weight",
        "self_attention.q_layernorm.weight",
        "self_attention.k_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight",
        "final_layernorm.weight",
    }
    assert norms("sandwich") == {
        "self_attention.linear_qkv.layer_norm_weight",
        "self_attention.linear_proj.post_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight",
        "mlp.linear_fc2.post_layernorm.weight",
        "final_layernorm.weight",
    }
    assert norms("latent") == {
        "input_layernorm.weight",
        "self_attention.linear_q_up_proj.layer_norm_weight",
        "self_attention.linear_kv_up_proj.layer_norm_weight",
        "mlp.linear_fc1.layer_norm_weight",
        "final_layernorm.weight",
    }
    assert {"input_layernorm.weight", "pre_mlp_layernorm.weight"} <= norms("experts-latent")
    assert {"self_attention.linear_qkv.layer_norm_weight", "pre_mlp_layernorm.weight"} <= norms("experts")
