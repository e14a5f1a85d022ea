"""Which layers each pipeline stage holds, in the order in which a token passes them."""

from __future__ import annotations

import re

from megatron_lm_zh.config.schema import Config

STAGE_KEYS = (
    "model.num_layers",
    "parallel.pipeline",
    "parallel.virtual_pipeline",
    "parallel.pipeline_model_parallel_layout",
    "parallel.num_layers_in_first_pipeline_stage",
    "parallel.num_layers_in_last_pipeline_stage",
    "parallel.account_for_embedding_in_pipeline_split",
    "parallel.account_for_loss_in_pipeline_split",
)
"""Keys that `layers_of_stages` reads."""


def parse_layout(text: str) -> list[str]:
    """The stages of a `pipeline_model_parallel_layout`, written out: `Et*3|(tt|)*2L` is [Ettt, tt, tt, L].

    The grammar is megatron-core's: commas say nothing, `(...)*n` repeats a group without inner ones, `x*n` a letter.
    """
    text = text.replace(",", "")
    for pattern in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        text = re.sub(pattern, lambda found: found.group(1) * int(found.group(2)), text)
    return text.split("|")


def layers_of_stages(config: Config) -> list[int]:
    """Decoder layers of each of the pipeline x virtual_pipeline stages; [] where they cannot be divided so.

    Stage i stands on pipeline rank i % pipeline, as its chunk i // pipeline.
    """
    layers, layout = config.model.num_layers, config.parallel.pipeline_model_parallel_layout
    ranks, chunks = config.parallel.pipeline, config.parallel.virtual_pipeline
    first = config.parallel.num_layers_in_first_pipeline_stage
    last = config.parallel.num_layers_in_last_pipeline_stage
    embedding = config.parallel.account_for_embedding_in_pipeline_split
    loss = config.parallel.account_for_loss_in_pipeline_split
    if layout is not None:
        found = [stage.count("t") for stage in parse_layout(layout)]
        return found if sum(found) == layers and len(found) == ranks * chunks else []
    of_ranks = _uneven(layers, ranks, first, last) if first or last else _even(layers + embedding + loss, ranks)
    if not of_ranks or any(count % chunks for count in of_ranks):
        return []
    stages = [count // chunks for count in of_ranks] * chunks
    stages[0] -= embedding
    stages[-1] -= loss
    return stages if min(stages) >= 0 else []


def _even(layers: int, ranks: int) -> list[int]:
    return [] if layers % ranks else [layers // ranks] * ranks


def _uneven(layers: int, ranks: int, first: int | None, last: int | None) -> list[int]:
    """Layers of each rank where the first or the last has a number of its own; [] where the others do not come out."""
    between = ranks - (first is not None) - (last is not None)
    left = layers - (first or 0) - (last or 0)
    if left < 0 or between < 0 or bool(left) != bool(between) or (between and left % between):
        return []
    middle = [left // between] * between if between else []
    return [*([] if first is None else [first]), *middle, *([] if last is None else [last])]
