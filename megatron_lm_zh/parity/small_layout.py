"""The layout cut to a laptop's size: every axis that was there still is, and uneven stages stay uneven."""

from __future__ import annotations

from dataclasses import replace

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.sections.parallel import Parallel
from megatron_lm_zh.config.stages import layers_of_stages, parse_layout
from megatron_lm_zh.runtime.device import Device

FEWEST_LAYERS = 4
UNEVEN_STAGES = 3
"""Stages that show a first one, a last one and one between them."""


def small_layout(config: Config, device: Device) -> tuple[Parallel, int]:
    """The `parallel` section at the smallest sizes that are still parallel, and the layers that its stages hold."""
    asked = config.parallel
    small = replace(
        asked,
        tensor=min(asked.tensor, 2),
        context=min(asked.context, 2),
        expert=min(asked.expert, 2),
        expert_tensor=min(asked.expert_tensor, 2),
        pipeline=min(asked.pipeline, UNEVEN_STAGES if _needs_a_middle(asked) else 2),
        virtual_pipeline=min(asked.virtual_pipeline, 2),
        hierarchical_context_parallel_sizes=None,
    )
    group = asked.microbatch_group_size_per_vp_stage
    if group is not None:
        small = replace(
            small, microbatch_group_size_per_vp_stage=small.pipeline * (1 if group <= asked.pipeline else 2)
        )
    if not device.transformer_engine:
        small = replace(small, cp_comm_type="all_gather", tp_comm_overlap=False)
    elif asked.cp_comm_type == "a2a+p2p":
        small = replace(small, cp_comm_type="p2p")  # two levels need four ranks
    if asked.pipeline_model_parallel_layout is not None:
        return _spelled_out(config, small)
    if asked.num_layers_in_first_pipeline_stage or asked.num_layers_in_last_pipeline_stage:
        return _uneven(config, small)
    stages = small.pipeline * small.virtual_pipeline
    beside = asked.account_for_embedding_in_pipeline_split + asked.account_for_loss_in_pipeline_split
    return small, -(-(FEWEST_LAYERS + beside) // stages) * stages - beside


def _needs_a_middle(asked: Parallel) -> bool:
    if asked.pipeline_model_parallel_layout is not None:
        return "m" in asked.pipeline_model_parallel_layout.rpartition("|")[0]  # MTP on a stage of its own
    return bool(asked.num_layers_in_first_pipeline_stage and asked.num_layers_in_last_pipeline_stage)


def _uneven(config: Config, small: Parallel) -> tuple[Parallel, int]:
    """First and last stages smaller or larger than the others, as they were."""
    asked, chunks = config.parallel, small.virtual_pipeline
    counts = layers_of_stages(config)
    of_ranks = [sum(counts[rank :: asked.pipeline]) for rank in range(asked.pipeline)]
    first, last = asked.num_layers_in_first_pipeline_stage, asked.num_layers_in_last_pipeline_stage
    usual = of_ranks[1 if first is not None else 0]

    def like(count: int | None) -> int | None:
        return None if count is None else chunks * (2 + (count > usual) - (count < usual))

    small = replace(small, num_layers_in_first_pipeline_stage=like(first), num_layers_in_last_pipeline_stage=like(last))
    own = [count for count in (like(first), like(last)) if count is not None]
    return small, sum(own) + 2 * chunks * (small.pipeline - len(own))


def _spelled_out(config: Config, small: Parallel) -> tuple[Parallel, int]:
    """A layout string with fewer and shorter stages: empty ones stay empty, short ones shorter than the others."""
    assert config.parallel.pipeline_model_parallel_layout is not None
    asked = parse_layout(config.parallel.pipeline_model_parallel_layout)
    count = small.pipeline * small.virtual_pipeline
    chosen = [asked[round(stage * (len(asked) - 1) / (count - 1))] for stage in range(count)]
    if small.pipeline == UNEVEN_STAGES:
        chosen[-2] = asked[-2]
    longest = max(stage.count("t") for stage in chosen)
    predictors = "m" * min(config.model.mtp_num_layers or 0, 2)
    stages = []
    for stage in chosen:
        layers = 0 if "t" not in stage else 2 if stage.count("t") == longest else 1
        stages.append("E" * ("E" in stage) + "t" * layers + predictors * ("m" in stage) + "L" * ("L" in stage))
    layout = "|".join(stages)
    return replace(small, pipeline_model_parallel_layout=layout), layout.count("t")
