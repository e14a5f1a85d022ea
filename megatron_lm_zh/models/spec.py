"""The layer specs: Transformer Engine's where the device has it, else megatron-core's local ones with our modules."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention, TENorm, TERowParallelLinear
from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec,
)
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionBlockSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_lm_zh import compat
from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.models.attention import AlibiCoreAttention, SdpaCoreAttention
from megatron_lm_zh.models.latent_attention import LatentSelfAttention
from megatron_lm_zh.models.norm import NORMS
from megatron_lm_zh.models.router import BestExpertRouter
from megatron_lm_zh.models.sandwich import sandwiched
from megatron_lm_zh.runtime.device import Device


@dataclass(frozen=True)
class Own:
    """What a network's layers have that megatron-core's config has no words for."""

    alibi: bool = False
    sandwich_norm: bool = False
    group_score: str = "sum"

    @classmethod
    def of(cls, model: Model) -> Own:
        """That of a model section."""
        alibi = model.position_embedding_type == "alibi"
        return cls(alibi, model.sandwich_norm, model.moe_router_group_score)


PLAIN = Own()


def block_spec(
    config: TransformerConfig,
    device: Device,
    own: Own = PLAIN,
    *,
    vp_stage: int | None = None,
    pp_rank: int | None = None,
) -> TransformerBlockSubmodules:
    """The spec of the layers of this pipeline stage and of the final norm.

    Whatever the device, a checkpoint has Transformer Engine's parameter names.
    """
    block = get_gpt_decoder_block_spec(config, **_options(config, device), vp_stage=vp_stage, pp_rank=pp_rank)  # type: ignore[no-untyped-call]
    swaps = _swaps(config, device, own)
    layers = [_adapted(layer, config, device, swaps) for layer in block.layer_specs]
    return replace(block, layer_specs=layers, layer_norm=_swapped(block.layer_norm, swaps))


def mtp_spec(
    config: TransformerConfig,
    device: Device,
    own: Own = PLAIN,
    *,
    vp_stage: int | None = None,
    pp_rank: int | None = None,
) -> MultiTokenPredictionBlockSubmodules | None:
    """The spec of the multi-token prediction layers of this pipeline stage; None where it has none."""
    if not config.mtp_num_layers:
        return None
    swaps = _swaps(config, device, own)
    # They are built as the decoder's last layer is, which need not be on this stage.
    last = _adapted(get_gpt_decoder_layer_specs(config, **_options(config, device))[-1], config, device, swaps)
    block = get_gpt_mtp_block_spec(
        config, last, use_transformer_engine=device.transformer_engine, vp_stage=vp_stage, pp_rank=pp_rank
    )
    return _swapped(block, swaps)  # type: ignore[no-any-return]


def _options(config: TransformerConfig, device: Device) -> dict[str, Any]:
    return {
        "use_transformer_engine": device.transformer_engine,
        "normalization": config.normalization,
        "qk_l2_norm": config.qk_l2_norm,
    }


def _swaps(config: TransformerConfig, device: Device, own: Own) -> dict[Any, type]:
    """Which of megatron-core's modules make way for which of ours."""
    if device.transformer_engine:
        linear, norm = TERowParallelLinear, TENorm
        swaps: dict[Any, type] = {TEDotProductAttention: AlibiCoreAttention} if own.alibi else {}
    else:
        linear, norm = RowParallelLinear, NORMS[config.normalization]
        swaps = {
            DotProductAttention: AlibiCoreAttention if own.alibi else SdpaCoreAttention,
            WrappedTorchNorm: norm,
            FusedLayerNorm: norm,
            MLASelfAttention: LatentSelfAttention,
        }
    if own.sandwich_norm:
        swaps[linear] = sandwiched(linear, norm)
    if own.group_score == "max" and config.moe_router_group_topk:
        swaps[TopKRouter] = BestExpertRouter
    return swaps


def _swapped(spec: Any, swaps: dict[Any, type]) -> Any:
    """A copy of a spec in which the swaps were made, however deep in it they stand."""
    if isinstance(spec, type):
        return swaps.get(spec, spec)
    if isinstance(spec, list):
        return [_swapped(item, swaps) for item in spec]
    if isinstance(spec, partial):  # as megatron-core 0.19 says what builds a layer's parts
        return partial(spec.func, *spec.args, **{name: _swapped(item, swaps) for name, item in spec.keywords.items()})
    if is_dataclass(spec):
        return replace(spec, **{field.name: _swapped(getattr(spec, field.name), swaps) for field in fields(spec)})  # type: ignore[type-var]
    return spec


def _adapted(layer: ModuleSpec, config: TransformerConfig, device: Device, swaps: dict[Any, type]) -> ModuleSpec:
    """A layer with our modules and, where its norms are modules of their own, with the checkpoint's names for them."""
    layer = _swapped(layer, swaps)
    if config.multi_latent_attention and config.q_lora_rank is None:
        layer = _without_query_norm(layer)
    if device.transformer_engine:
        return layer
    # Transformer Engine fuses a norm into the linear layer after it, but not into the experts of a MoE.
    names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if config.multi_latent_attention:
        names = {
            "self_attention.q_layernorm.": "self_attention.linear_q_up_proj.layer_norm_",
            "self_attention.kv_layernorm.": "self_attention.linear_kv_up_proj.layer_norm_",
        }
    if compat.module_of_spec(layer.submodules.mlp) is not MoELayer:
        names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    return replace(layer, submodules=replace(layer.submodules, sharded_state_dict_keys_map=names))


def _without_query_norm(layer: ModuleSpec) -> ModuleSpec:
    """A layer whose queries come from no latent: qk_layernorm is then about the keys' alone (DeepSeek-V2-Lite)."""
    attention = layer.submodules.self_attention
    attention = replace(attention, submodules=replace(attention.submodules, q_layernorm=IdentityOp))
    return replace(layer, submodules=replace(layer.submodules, self_attention=attention))
