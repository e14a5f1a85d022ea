"""Which ranks of a pipeline share the word embedding's gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist

CONFIG = Path(__file__).parents[2] / "examples/parity/deepseek.yaml"
APART = ("parallel.pipeline=4", "parallel.pipeline_model_parallel_layout=Et|ttt|m|L")


def ranks_of(ranks: Any, device: Any, overrides: tuple[str, ...], pipeline: list[int]) -> list[int]:
    """Runs on the pool's rank, which has megatron-core imported."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.runtime.groups import embedding_ranks

    return embedding_ranks(load_config(CONFIG, overrides), pipeline)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("parallel.pipeline=4",), [3, 15]),
        (APART, [3, 11]),
        (("parallel.pipeline=4", "parallel.pipeline_model_parallel_layout=Et|t|t|tmL"), [3, 15]),
    ],
    ids=["prediction-with-the-loss", "prediction-on-its-own-stage", "spelled-out"],
)
def test_holders_of_the_embedding(ranks: RankPool, overrides: tuple[str, ...], expected: list[int]) -> None:
    assert ranks.run(1, ranks_of, overrides, [3, 7, 11, 15]) == [expected]
