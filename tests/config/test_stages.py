"""Which layers a pipeline stage holds, in every way in which a config can say it."""

from __future__ import annotations

import pytest
from write_layouts import unchecked

from megatron_lm_zh.config.stages import layers_of_stages, parse_layout

LAYOUT = "parallel.pipeline_model_parallel_layout"
FIRST, LAST = "parallel.num_layers_in_first_pipeline_stage", "parallel.num_layers_in_last_pipeline_stage"
EMBEDDING = "parallel.account_for_embedding_in_pipeline_split=true"
LOSS = "parallel.account_for_loss_in_pipeline_split=true"


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("Et*3|(tt|)*2L", ["Ettt", "tt", "tt", "L"]),
        ("Ettt|(tt|)*2,m|L", ["Ettt", "tt", "tt", "m", "L"]),
        ("(ab)*3", ["ababab"]),
        ("(|t)*2", ["", "t", "t"]),
        ("E||t*12L", ["E", "", "t" * 12 + "L"]),
    ],
)
def test_a_layout_is_written_out(text: str, stages: list[str]) -> None:
    assert parse_layout(text) == stages


@pytest.mark.parametrize(
    ("layers", "pipeline", "virtual", "settings", "stages"),
    [
        (8, 1, 1, (), [8]),
        (8, 4, 1, (), [2, 2, 2, 2]),
        (8, 2, 2, (), [2, 2, 2, 2]),
        (8, 3, 1, (), []),
        (6, 2, 2, (), []),
        (8, 3, 1, (f"{FIRST}=2",), [2, 3, 3]),
        (8, 3, 1, (f"{LAST}=4",), [2, 2, 4]),
        (8, 3, 1, (f"{FIRST}=1", f"{LAST}=3"), [1, 4, 3]),
        (12, 3, 2, (f"{FIRST}=2", f"{LAST}=4"), [1, 3, 2, 1, 3, 2]),
        (12, 3, 2, (f"{FIRST}=1", f"{LAST}=5"), []),
        (8, 2, 1, (f"{FIRST}=3", f"{LAST}=5"), [3, 5]),
        (8, 2, 1, (f"{FIRST}=3", f"{LAST}=3"), []),
        (8, 2, 1, (f"{FIRST}=9",), []),
        (6, 2, 2, (EMBEDDING, LOSS), [1, 2, 2, 1]),
        (7, 4, 1, (LOSS,), [2, 2, 2, 1]),
        (2, 4, 1, (EMBEDDING, LOSS), [0, 1, 1, 0]),
        (8, 2, 2, (f"{LAYOUT}=E|ttt|tttt|tL",), [0, 3, 4, 1]),
        (8, 2, 2, (f"{LAYOUT}=E|ttt|ttt|tL",), []),
        (8, 2, 1, (f"{LAYOUT}=E|ttt|tttt|tL",), []),
    ],
)
def test_layers_of_stages(
    layers: int, pipeline: int, virtual: int, settings: tuple[str, ...], stages: list[int]
) -> None:
    sizes = (f"model.num_layers={layers}", f"parallel.pipeline={pipeline}", f"parallel.virtual_pipeline={virtual}")
    assert layers_of_stages(unchecked((*sizes, *settings))) == stages
