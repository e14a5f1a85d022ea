"""Config to model: megatron-core's GPTModel and DistributedDataParallel for this rank, one of each a model chunk."""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_lm_zh.config import passthrough
from megatron_lm_zh.config.schema import Config, Model
from megatron_lm_zh.config.sections.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from megatron_lm_zh.models.fsdp import FullySharded
from megatron_lm_zh.models.initialise import initialise
from megatron_lm_zh.models.loss import cross_entropy, hide_padding
from megatron_lm_zh.models.output import normalize_rows
from megatron_lm_zh.models.precision import gradient_arguments
from megatron_lm_zh.models.rope import scale_as_llama3, set_yarn, use_as_fused_rope
from megatron_lm_zh.models.spec import Own, block_spec, mtp_spec
from megatron_lm_zh.models.transformer_config import transformer_config
from megatron_lm_zh.runtime.device import Device


def ddp_config(config: Config) -> DistributedDataParallelConfig:
    """megatron-core's config of the gradient reduction."""
    arguments: dict[str, Any] = gradient_arguments(config) | {
        "overlap_grad_reduce": config.ddp.overlap_grad_reduce,
        "overlap_param_gather": config.ddp.overlap_param_gather,
        "use_distributed_optimizer": config.optim.use_distributed_optimizer,
        "check_for_nan_in_grad": False,  # train/guards.py does it, with the step's number
    }
    if config.ddp.use_megatron_fsdp:
        arguments |= {
            "use_megatron_fsdp": True,
            "data_parallel_sharding_strategy": config.ddp.data_parallel_sharding_strategy,
        }
    return DistributedDataParallelConfig(
        **(arguments | passthrough.arguments(DistributedDataParallelConfig, config.ddp.megatron))
    )


class Gpt(GPTModel):
    """megatron-core's GPTModel, with our loss where megatron-core's fused one does not run.

    Args:
        true_vocab_size: ids that there are; `vocab_size` counts the rows of the embedding, which are more.
        z_loss_coeff: weight of the z-loss in the gradient; the loss is given without it.
    """

    def __init__(self, *, true_vocab_size: int, z_loss_coeff: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.true_vocab_size = true_vocab_size
        self.z_loss_coeff = z_loss_coeff

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Losses [b, s] of labels [b, s] under this rank's logits [s, b, v / t]."""
        logits = hide_padding(logits, self.true_vocab_size, self.pg_collection.tp)
        if self.config.cross_entropy_loss_fusion:
            return super().compute_language_model_loss(labels, logits)
        return cross_entropy(logits, labels.t(), self.pg_collection.tp, self.z_loss_coeff).t().contiguous()


def build_chunks(config: Config, device: Device) -> list[GPTModel]:
    """This rank's model chunks, initialised the same whatever the layout; config.model.vocab_size must be set."""
    use_as_fused_rope()
    megatron = transformer_config(config, device)
    if isinstance(config.model.rope_scaling, YarnScaling) and not config.model.multi_latent_attention:
        set_yarn(megatron, config.model.rope_scaling)
    interleaved = config.parallel.virtual_pipeline > 1
    stages: list[int | None] = [*range(config.parallel.virtual_pipeline)] if interleaved else [None]
    return [_chunk(config, megatron, device, stage) for stage in stages]


def build_gpt(config: Config, device: Device) -> GPTModel:
    """This rank's model where it is one chunk, as it is without a virtual pipeline."""
    (chunk,) = build_chunks(config, device)
    return chunk


def _chunk(config: Config, megatron: TransformerConfig, device: Device, vp_stage: int | None) -> GPTModel:
    """One model chunk; `vp_stage` is its number on this rank, None without a virtual pipeline."""
    model, scaling = config.model, config.model.rope_scaling
    assert model.vocab_size is not None
    position = {"ignore_virtual": False, "vp_stage": vp_stage}
    own = Own.of(model)
    gpt = Gpt(
        true_vocab_size=model.vocab_size,
        z_loss_coeff=config.train.z_loss_coeff,
        config=megatron,
        transformer_layer_spec=block_spec(megatron, device, own, vp_stage=vp_stage),
        mtp_block_spec=mtp_spec(megatron, device, own, vp_stage=vp_stage),
        vocab_size=padded_vocab_size(config),
        max_sequence_length=model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**position),
        post_process=parallel_state.is_pipeline_last_stage(**position),
        parallel_output=True,
        share_embeddings_and_output_weights=model.tie_embeddings,
        position_embedding_type=_position_embedding(model),
        rotary_base=model.rotary_base,
        rotary_percent=model.rotary_percent,
        seq_len_interpolation_factor=scaling.factor if isinstance(scaling, LinearScaling) else None,
        vp_stage=vp_stage,
    ).to(device.torch_device)
    if isinstance(scaling, Llama3Scaling):
        scale_as_llama3(gpt.rotary_pos_emb, scaling)
    if model.normalized_output and gpt.post_process:
        normalize_rows(gpt.output_layer)
    initialise(gpt, seed=config.run.seed, std=model.init_method_std, num_layers=model.num_layers)
    return gpt


def _position_embedding(model: Model) -> str:
    """megatron-core's name of the positions: ALiBi is in the attention, and MLA makes its rotary embedding itself."""
    if model.position_embedding_type == "alibi":
        return "none"
    yarn = isinstance(model.rope_scaling, YarnScaling) and not model.multi_latent_attention
    return "yarn" if yarn else model.position_embedding_type


def build_model(config: Config, device: Device) -> list[DistributedDataParallel]:
    """The model of this rank wrapped for training: one entry a model chunk, as megatron-core's schedules take it."""
    wrapped = []
    for number, chunk in enumerate(build_chunks(config, device)):
        megatron = chunk.config
        half = megatron.bf16 or megatron.fp16
        arguments: dict[str, Any] = {
            "config": megatron,
            "ddp_config": ddp_config(config),
            "module": Float16Module(megatron, chunk) if half else chunk,
            "disable_bucketing": number > 0,  # the later chunks' gradients hide nothing behind them
        }
        if config.ddp.use_megatron_fsdp:
            wrapped.append(FullySharded(device=device.torch_device, **arguments))
        else:
            wrapped.append(DistributedDataParallel(**arguments))
            wrapped[-1].broadcast_params()
    return wrapped


def padded_vocab_size(config: Config) -> int:
    """Rows of the embedding: the vocabulary rounded up to a multiple that does not depend on the layout."""
    assert config.model.vocab_size is not None
    multiple = config.model.make_vocab_size_divisible_by
    return -(-config.model.vocab_size // multiple) * multiple
