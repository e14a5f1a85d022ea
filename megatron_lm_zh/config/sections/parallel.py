"""The `parallel` section: how a model and its batch are divided over the ranks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Parallel:
    """The layout. Data parallelism is what is left: world / (tensor x context x pipeline)."""

    tensor: int = Field(default=1, gt=0)
    """Tensor-parallel size: ranks that share each layer's matrices. Keep it inside a node."""
    sequence: bool = False
    """Sequence parallelism: norms and dropout are split along the sequence over the tensor-parallel ranks."""
    pipeline: int = Field(default=1, gt=0)
    """Pipeline-parallel size: ranks that each hold a run of consecutive layers."""
    virtual_pipeline: int = Field(default=1, gt=0)
    """Model chunks of a pipeline rank (interleaved schedule, Narayanan et al. 2021): a smaller bubble, more traffic."""
    microbatch_group_size_per_vp_stage: int | None = Field(default=None, gt=0)
    """Interleaved schedule: micro-batches that pass one chunk in a row. Default: pipeline."""
    pipeline_model_parallel_layout: str | None = None
    """Stages spelled out, `|` between them: E embedding, t layer, m MTP, L loss; e.g. `Et*3|(tt|)*6t*3L`."""
    num_layers_in_first_pipeline_stage: int | None = Field(default=None, gt=0)
    """Layers of the first stage, where it is to hold another number than the stages between."""
    num_layers_in_last_pipeline_stage: int | None = Field(default=None, gt=0)
    """Layers of the last stage, likewise."""
    account_for_embedding_in_pipeline_split: bool = False
    """Count the embedding as a layer when layers are divided over the stages."""
    account_for_loss_in_pipeline_split: bool = False
    """Count the output layer and loss as a layer when layers are divided over the stages."""
    context: int = Field(default=1, gt=0)
    """Context-parallel size: ranks that share each sequence, attention included (for long sequences)."""
    cp_comm_type: Literal["all_gather", "p2p", "a2a", "a2a+p2p"] = "all_gather"
    """How context-parallel ranks exchange keys and values: gathered at once (any device), or through Transformer Engine
    in a ring (p2p), by heads (a2a), or both."""
    hierarchical_context_parallel_sizes: tuple[int, ...] | None = None
    """With a2a+p2p: sizes of the two levels, the inner (a2a) first; their product is `context`."""
    expert: int = Field(default=1, gt=0)
    """Expert-parallel size: ranks over which experts are spread, taken from data, context and tensor parallelism."""
    expert_tensor: int = Field(default_factory=lambda parallel: parallel.get("tensor", 1), gt=0)
    """Ranks that share each expert's matrices. Default: tensor."""
    order: Literal["tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"] = "tp-cp-ep-dp-pp"
    """Which ranks are neighbours: the first axis varies fastest. Keep what talks most inside a node."""
    overlap_p2p_comm: bool = True
    """Interleaved schedule: send to the next stage while computing. With two stages it is what keeps sends apart."""
    tp_comm_overlap: bool = False
    """Overlap tensor-parallel communication with matrix multiplications (Transformer Engine's user buffers)."""
