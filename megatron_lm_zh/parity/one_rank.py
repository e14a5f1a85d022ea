"""The same training on one rank: what a layout is measured against."""

from __future__ import annotations

from dataclasses import replace

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.sections.optim import Ddp
from megatron_lm_zh.config.sections.parallel import Parallel


def alone(config: Config) -> Config:
    """`config` on one rank: whatever divides the work or trades memory for time is off, the mathematics stays.

    Micro-batches have the same size and the global batch the same samples, so the one rank does more of them in a row.
    """
    return replace(
        config,
        parallel=Parallel(),
        ddp=Ddp(),
        optim=replace(config.optim, use_distributed_optimizer=False),
        model=replace(
            config.model,
            recompute_granularity=None,
            recompute_modules=("core_attn",),
            recompute_method=None,
            recompute_num_layers=None,
            distribute_saved_activations=False,
            fine_grained_activation_offloading=False,
            offload_modules=(),
            cuda_graph_impl="none",
            moe_shared_expert_overlap=False,
        ),
    )
