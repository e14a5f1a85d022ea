"""Process groups: torch.distributed and megatron-core's parallel state, with time-outs, set up and taken down."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

from megatron_lm_zh import compat
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.stages import parse_layout
from megatron_lm_zh.runtime import generators
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.runtime.ranks import Ranks

SEED_STRIDE = 10_000  # more than megatron-core adds to a seed by itself (2718 + tensor-parallel rank)


@contextlib.contextmanager
def process_groups(config: Config, ranks: Ranks, device: Device, *, trace_dir: Path | None = None) -> Iterator[None]:
    """Joins the world of `ranks`, builds the groups of the layout and seeds every generator; leaves it all at the end.

    Args:
        trace_dir: where NCCL's flight recorder writes each rank's last collectives when one of them times out.
    """
    _record_collectives(trace_dir)
    timeout = timedelta(seconds=config.run.startup_timeout_s)
    dist.init_process_group(
        device.backend,
        init_method=f"tcp://{ranks.master_address}:{ranks.master_port}",
        rank=ranks.rank,
        world_size=ranks.world,
        timeout=timeout,
    )
    try:
        build_layout(config)
        yield
    finally:
        # megatron-core keeps what its layers report in module globals, with the groups of the world that ends here.
        compat.forget_layer_losses(moe_utils)
        MTPLossLoggingHelper.tracker.clear()
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def build_layout(config: Config) -> None:
    """Builds megatron-core's groups for the layout of `config` in the world that is up, and seeds every generator."""
    layout, levels = config.parallel, config.parallel.hierarchical_context_parallel_sizes
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context,
        hierarchical_context_parallel_sizes=list(levels) if levels else None,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        num_distributed_optimizer_instances=config.ddp.megatron.get("num_distributed_optimizer_instances", 1),
        get_embedding_ranks=partial(embedding_ranks, config),
        order=layout.order,
        distributed_timeout_minutes=max(1, config.run.startup_timeout_s // 60),
        create_gloo_process_groups=True,  # the distributed optimizer gathers its checkpoint over them
    )
    # One seed for all ranks of a tensor-parallel group, which megatron-core varies where they must differ; another one
    # for each pipeline stage and part of the batch, or the same dropout masks would fall on layers and tokens again.
    stage, stages = parallel_state.get_pipeline_model_parallel_rank(), layout.pipeline
    part = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    generators.seed(config.run.seed + SEED_STRIDE * (stage + stages * part))


def embedding_ranks(config: Config, pipeline: list[int]) -> list[int]:
    """Ranks of one pipeline whose copies of the word embedding share one gradient.

    Beside the first stage that is the last one where the output layer is tied to it, and the one of multi-token
    prediction. megatron-core takes the first and the last unasked, and with prediction on a stage of its own it would
    add the output layer's gradient to the embedding's.
    """
    model, layout = config.model, config.parallel.pipeline_model_parallel_layout
    if not model.mtp_num_layers or layout is None:
        return parallel_state.default_embedding_ranks(pipeline)
    stages = parse_layout(layout)
    holders = {number % len(pipeline) for number, stage in enumerate(stages) if "m" in stage} | {0}
    return [pipeline[stage] for stage in sorted(holders | ({len(pipeline) - 1} if model.tie_embeddings else set()))]


def steady(config: Config) -> None:
    """Shortens every group's time-out once the first step is done: from here on a silence is a hang."""
    parallel_state.update_pg_timeout(timedelta(seconds=config.run.step_timeout_s))


def _record_collectives(trace_dir: Path | None) -> None:
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    # The same switch under its new and its old name; each torch warns of the one it does not want.
    recent = compat.torch_version() >= (2, 10)
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE" if recent else "TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if trace_dir is not None:
        os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(trace_dir / "nccl_trace_rank_"))
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(trace_dir / "nccl_trace_rank_"))
