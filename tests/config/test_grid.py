"""The layout's arithmetic and its picture: the same ranks and layers as megatron-core's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_config import TEXT

from megatron_lm_zh.config.grid import dense_grid, expert_grid, stages
from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.picture import axes, picture
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.sections.model import Model
from megatron_lm_zh.config.sections.parallel import Parallel


@pytest.fixture
def config(write: Callable[[str], Path]) -> Callable[..., Config]:
    """The small config with another layout and model; no rule is asked."""
    from dataclasses import replace

    loaded = load_config(write(TEXT))

    def make(model: dict[str, Any] | None = None, **layout: Any) -> Config:
        shape = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 64} | (model or {})
        return replace(loaded, model=Model(**shape), parallel=Parallel(**layout))

    return make


GRIDS = [
    # world, tensor, context, pipeline, expert, expert tensor
    (1, 1, 1, 1, 1, 1),
    (8, 2, 1, 2, 1, 1),
    (8, 2, 1, 2, 2, 1),
    (8, 1, 2, 2, 2, 2),
    (16, 2, 2, 2, 4, 2),
    (16, 4, 1, 1, 8, 1),
    (24, 2, 3, 2, 2, 3),
    (32, 2, 2, 1, 4, 4),
    (64, 2, 2, 4, 8, 2),
    (64, 8, 1, 2, 1, 4),
    (128, 1, 4, 4, 16, 2),
]


@pytest.mark.parametrize("order", ["tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"])
@pytest.mark.parametrize(("world", "tensor", "context", "pipeline", "expert", "expert_tensor"), GRIDS)
def test_groups_are_megatron_cores(
    order: str,
    world: int,
    tensor: int,
    context: int,
    pipeline: int,
    expert: int,
    expert_tensor: int,
    config: Callable[..., Config],
) -> None:
    from megatron.core.parallel_state import RankGenerator

    layout = config(
        {"num_moe_experts": 16},
        tensor=tensor,
        context=context,
        pipeline=pipeline,
        expert=expert,
        expert_tensor=expert_tensor,
        order=order,
    )
    data = world // (tensor * context * pipeline)
    generator = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=context, order=order)
    dense = dense_grid(layout, world)
    assert dense.world == world
    for token in ("tp", "cp", "dp", "pp", "dp-cp", "tp-cp", "tp-pp"):
        names = {"tp": "tensor", "cp": "context", "dp": "data", "pp": "pipeline"}
        assert dense.groups(*(names[part] for part in token.split("-"))) == generator.get_ranks(token), token

    data = world // (expert * expert_tensor * pipeline)
    generator = RankGenerator(tp=expert_tensor, ep=expert, dp=data, pp=pipeline, cp=1, order=order)
    experts = expert_grid(layout, world)
    for token in ("tp", "ep", "dp", "pp", "tp-ep"):
        names = {"tp": "expert tensor", "ep": "expert", "dp": "expert data", "pp": "pipeline"}
        assert experts.groups(*(names[part] for part in token.split("-"))) == generator.get_ranks(token), token


STAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "one stage": (4, {}),
    "even": (8, {"pipeline": 4}),
    "chunks": (16, {"pipeline": 4, "virtual_pipeline": 2}),
    "one layer a chunk": (12, {"pipeline": 2, "virtual_pipeline": 6}),
    "short first": (9, {"pipeline": 3, "num_layers_in_first_pipeline_stage": 1}),
    "short last": (61, {"pipeline": 16, "num_layers_in_last_pipeline_stage": 1}),
    "short first and last": (10, {
        "pipeline": 4, "num_layers_in_first_pipeline_stage": 3, "num_layers_in_last_pipeline_stage": 1,
    }),
    "only first and last": (7, {
        "pipeline": 2, "num_layers_in_first_pipeline_stage": 4, "num_layers_in_last_pipeline_stage": 3,
    }),
    "short first in chunks": (14, {"pipeline": 4, "virtual_pipeline": 2, "num_layers_in_first_pipeline_stage": 2}),
    "short last in chunks": (22, {
        "pipeline": 4, "virtual_pipeline": 2,
        "num_layers_in_first_pipeline_stage": 4, "num_layers_in_last_pipeline_stage": 2,
    }),
    "embedding counts": (7, {"pipeline": 4, "account_for_embedding_in_pipeline_split": True}),
    "loss counts": (7, {"pipeline": 2, "account_for_loss_in_pipeline_split": True}),
    "both count": (6, {
        "pipeline": 4, "account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True,
    }),
    "both count in chunks": (14, {
        "pipeline": 4, "virtual_pipeline": 2,
        "account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True,
    }),
    "spelled out": (7, {"pipeline": 4, "pipeline_model_parallel_layout": "Et*2|tt|t*3|L"}),
    "spelled out in chunks": (9, {
        "pipeline": 2, "virtual_pipeline": 3, "pipeline_model_parallel_layout": "Et|(tt|)*3,t|tL",
    }),
    "an empty stage": (4, {"pipeline": 4, "pipeline_model_parallel_layout": "E|(tt|)*2L"}),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_layers_of_stages_are_megatron_cores(
    name: str, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    from megatron_lm_zh.models.transformer_config import PIPELINE

    num_layers, layout = STAGES[name]
    ours = config({"num_layers": num_layers}, **layout)
    interleaved = ours.parallel.virtual_pipeline > 1
    chunks = ours.parallel.virtual_pipeline if interleaved else None
    fields = {key: value for key, value in layout.items() if key in PIPELINE}
    theirs = TransformerConfig(
        num_layers=num_layers, hidden_size=64, num_attention_heads=4, pipeline_dtype="bf16",
        pipeline_model_parallel_size=ours.parallel.pipeline, virtual_pipeline_model_parallel_size=chunks, **fields,
    )  # fmt: skip
    monkeypatch.setattr(parallel_state, "get_virtual_pipeline_model_parallel_world_size", lambda: chunks)
    for stage, held in enumerate(stages(ours)):
        monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda stage=stage: stage)
        for number, chunk in enumerate(held):
            vp_stage = number if interleaved else None
            count = get_num_layers_to_build(theirs, vp_stage=vp_stage, pp_rank=stage)
            first = get_transformer_layer_offset(theirs, vp_stage=vp_stage, pp_rank=stage)
            assert (len(chunk.layers), chunk.layers.start) == (count, first), (stage, number)
    flat = [held[number] for number in range(ours.parallel.virtual_pipeline) for held in stages(ours)]
    assert [chunk.embedding for chunk in flat] == [True] + [False] * (len(flat) - 1)
    assert [chunk.loss for chunk in flat] == [False] * (len(flat) - 1) + [True]


def test_predictions_stand_before_the_loss_or_where_they_are_spelled(config: Callable[..., Config]) -> None:
    model = {"family": "gpt", "mtp_num_layers": 1}
    assert [str(chunk) for (chunk,) in stages(config(model, pipeline=2))] == [
        "embedding, layers 0-1",
        "layers 2-3, MTP, loss",
    ]
    spelled = config(model, pipeline=4, pipeline_model_parallel_layout="Ett|tt|m|L")
    assert [str(chunk) for (chunk,) in stages(spelled)] == ["embedding, layers 0-1", "layers 2-3", "MTP", "loss"]


def test_the_picture_of_a_small_world(config: Callable[..., Config]) -> None:
    layout = config(tensor=2, pipeline=2, virtual_pipeline=2, sequence=True)
    assert list(picture(layout, [0, 0, 0, 0, 1, 1, 1, 1])) == [
        "8 ranks on 2 nodes: tensor 2 x data 2 x pipeline 2, sequence parallel, 2 chunks a stage",
        "  stage  holds                         data 0        data 1",
        "  0      embedding, layer 0 | layer 2  0-1 @ node 0  2-3 @ node 0",
        "  1      layer 1 | layer 3, loss       4-5 @ node 1  6-7 @ node 1",
        "  group     size  groups  first  lies",
        "  tensor    2     4       0-1    inside a node",
        "  data      2     4       0,2    inside a node",
        "  pipeline  2     4       0,4    across 2 nodes",
    ]


def test_the_picture_shows_parts_of_sequences_and_experts(config: Callable[..., Config]) -> None:
    layout = config({"num_moe_experts": 4}, tensor=2, context=2, expert=2, expert_tensor=2)
    assert list(picture(layout, [0, 0, 0, 0, 1, 1, 1, 1])) == [
        "8 ranks on 2 nodes: tensor 2 x context 2 x data 2; experts: expert tensor 2 x expert 2 x expert data 2",
        "  stage  holds                        data 0              data 1",
        "  0      embedding, layers 0-3, loss  0-1 | 2-3 @ node 0  4-5 | 6-7 @ node 1",
        "  experts  ranks of stage 0 that hold them in every MoE layer",
        "  0-1      0-1,4-5 @ nodes 0-1",
        "  2-3      2-3,6-7 @ nodes 0-1",
        "  group          size  groups  first  lies",
        "  tensor         2     4       0-1    inside a node",
        "  context        2     4       0,2    inside a node",
        "  data           2     4       0,4    across 2 nodes",
        "  expert tensor  2     4       0-1    inside a node",
        "  expert         2     4       0,2    inside a node",
        "  expert data    2     4       0,4    across 2 nodes",
    ]


def test_the_picture_of_a_large_world_shows_one_copy(config: Callable[..., Config]) -> None:
    layout = config({"num_moe_experts": 64}, tensor=8, pipeline=4, expert=32, expert_tensor=1)
    lines = list(picture(layout, [rank // 8 for rank in range(1024)]))
    words = [line.split() for line in lines]
    assert words[0][:5] == ["1,024", "ranks", "on", "128", "nodes:"]
    assert lines[1].endswith(" all copies")
    assert words[2][-8:] == ["0-7", "@", "node", "0", "0-255", "@", "nodes", "0-31"]
    assert words[7] == ["0-1", "0,32..224", "@", "nodes", "0,4..28"]
    assert words[8] == ["...", "and", "so", "on:", "32", "parts", "of", "2", "experts"]
    assert [" ".join(line) for line in words[9:]] == [
        "group size groups first lies",
        "tensor 8 128 0-7 inside a node",
        "data 32 32 0,8..248 across 32 nodes",
        "pipeline 4 256 0,256..768 across 4 nodes",
        "expert 32 32 0-31 across 4 nodes",
        "expert data 8 128 0,32..224 across 8 nodes",
    ]


def test_one_rank(config: Callable[..., Config]) -> None:
    assert list(picture(config(), [0])) == ["1 rank"]


def test_the_axes_in_one_line(config: Callable[..., Config]) -> None:
    assert axes(config(tensor=2, order="tp-cp-ep-pp-dp", pipeline=2), 8) == "tensor 2 x pipeline 2 x data 2"
