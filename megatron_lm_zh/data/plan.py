"""What a run will read of each source, from its config and the sources' sizes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT, PositiveInt
from megatron_lm_zh.config.document import read_document
from megatron_lm_zh.config.load import load_document, validated
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.sections.data import Data
from megatron_lm_zh.data.order.blend import Stage
from megatron_lm_zh.data.order.weights import (
    BlendPlan,
    BlendRow,
    SourceSize,
    Weighting,
    plan_blend,
    source_weights,
)


def plan_of(config: Config, tokens: Sequence[int], num_samples: int) -> BlendPlan:
    """The plan of a run.

    Args:
        tokens: of an epoch of each train source.
        num_samples: samples of the run.

    Raises:
        UserError: a source would be seen more often than it may.
    """
    data = config.data
    sizes = [
        SourceSize(name, count, source.max_epochs)
        for name, count, source in zip(data.names, tokens, data.train, strict=True)
    ]
    stages = stages_of(data, tokens, config.model.seq_length)
    return plan_blend(sizes, stages, num_samples=num_samples, seq_length=config.model.seq_length)


def stages_of(data: Data, tokens: Sequence[int], seq_length: int) -> tuple[Stage, ...]:
    """The stages of a config; the last one has no end."""
    given = [source.weight for source in data.train]
    weights = source_weights(data.weighting, given, tokens, data.temperature)
    if not data.stages:
        return (Stage(None, weights),)
    last = len(data.stages) - 1
    return tuple(
        Stage(
            samples=None if number == last or stage.tokens is None else -(-stage.tokens // seq_length),
            weights=weights
            if stage.weights is None
            else tuple(float(stage.weights.get(name, 0.0)) for name in data.names),
        )
        for number, stage in enumerate(data.stages)
    )


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TableSource:
    """One source of a table."""

    name: str
    """What it is called."""
    tokens: int = PositiveInt
    """Of one epoch."""
    weight: float = Field(default=1.0, gt=0)
    """Share in the blend; weights are normalised to sum to 1."""
    max_epochs: float | None = Field(default=None, gt=0)
    """How often it may be seen at most; null: as often as it takes."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class BlendTable:
    """A blend on paper: sources of known size, before there are datasets."""

    tokens: int = PositiveInt
    """Tokens of the run."""
    seq_length: int = Field(default=4096, gt=0)
    """Tokens of a sample."""
    weighting: Weighting = "given"
    """As `data.weighting`."""
    temperature: float = Field(default=1.0, gt=0)
    """As `data.temperature`."""
    sources: tuple[TableSource, ...] = Field(min_length=1)
    """What is mixed."""

    def plan(self) -> BlendPlan:
        """What a run of `tokens` reads of each source; errors as of `plan_of`."""
        sizes = [SourceSize(source.name, source.tokens, source.max_epochs) for source in self.sources]
        given, tokens = [source.weight for source in self.sources], [source.tokens for source in self.sources]
        weights = source_weights(self.weighting, given, tokens, self.temperature)
        stages = (Stage(-(-self.tokens // self.seq_length), weights),)
        return plan_blend(sizes, stages, seq_length=self.seq_length)


def read_table(path: str | Path, overrides: Sequence[str] = ()) -> BlendTable:
    """The table of a YAML file.

    Raises:
        UserErrors: all that is wrong with it.
    """
    return load_document(path, overrides, functools.partial(validated, BlendTable))


def is_table(path: str | Path) -> bool:
    """Whether a YAML file is a table and not a run's config."""
    return "sources" in read_document(path).values


def table_lines(plan: BlendPlan) -> Iterator[str]:
    """The plan as a table: a line a source, stage by stage where there are several, and the whole run."""
    rows = [*plan.rows, *plan.totals] if len(plan.stages) > 1 else plan.totals
    names = max(len("source"), *(len(row.source) for row in rows))
    yield f"{'stage':>5}  {'source':<{names}}  {'share':>8}  {'samples':>15}  {'tokens':>19}  {'epochs':>8}"
    for row in rows:
        yield f"{_stage(row):>5}  {row.source:<{names}}  {_figures(row)}"


def _stage(row: BlendRow) -> str:
    return "run" if row.stage < 0 else str(row.stage + 1)


def _figures(row: BlendRow) -> str:
    return f"{100 * row.share:7.3f}%  {row.samples:>15,}  {row.tokens:>19,}  {row.epochs:8.3f}"
