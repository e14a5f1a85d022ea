"""A picture of the layout in words: which rank holds what, on which node, and which groups talk across nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_lm_zh.config.grid import Grid, dense_grid, expert_grid, stages
from megatron_lm_zh.config.schema import Config

SMALL_WORLD = 16  # up to here every rank is shown, beyond it the first copy of the model
_SHOWN = 4  # numbers of an uneven list before it is cut short

Rows = list[tuple[str, ...]]


def axes(config: Config, world: int) -> str:
    """The sizes of all axes that are not 1 in one line, e.g. `tensor 2 x data 4 x pipeline 2`."""
    layout = config.parallel
    text = _product(dense_grid(config, world)) + ", sequence parallel" * layout.sequence
    if layout.virtual_pipeline > 1:
        text += f", {layout.virtual_pipeline} chunks a stage"
    if config.model.num_moe_experts is not None:
        text += f"; experts: {_product(expert_grid(config, world))}"
    return text


def picture(config: Config, nodes: Sequence[int]) -> Iterator[str]:
    """The layout, line by line; `nodes` has the node of every rank."""
    world = len(nodes)
    dense = dense_grid(config, world)
    if world == 1:
        yield "1 rank"
        return
    yield f"{_count(world, 'rank')} on {_count(len(set(nodes)), 'node')}: {axes(config, world)}"
    yield from _table(_stage_rows(config, dense, nodes))
    if config.model.num_moe_experts is not None:
        yield from _table(_expert_rows(config, expert_grid(config, world), nodes))
    yield from _table(_group_rows(config, world, nodes))


def _stage_rows(config: Config, grid: Grid, nodes: Sequence[int]) -> Rows:
    """A row a pipeline stage: what it holds, and the ranks of each copy of it, `|` between the parts of a sequence."""
    small = len(nodes) <= SMALL_WORLD
    shown = range(grid.size("data") if small else 1)
    rows: Rows = [("stage", "holds", *(f"data {copy}" for copy in shown), *["all copies"] * (not small))]
    for number, chunks in enumerate(stages(config)):
        ranks = [rank for rank in range(grid.world) if grid.coordinates(rank)["pipeline"] == number]
        cells = []
        for copy in shown:
            mine = [rank for rank in ranks if grid.coordinates(rank)["data"] == copy]
            parts = [mine[first : first + grid.size("tensor")] for first in range(0, len(mine), grid.size("tensor"))]
            cells.append(f"{' | '.join(map(_numbers, parts))} @ {_on(mine, nodes)}")
        if not small:
            cells.append(f"{_numbers(ranks)} @ {_on(ranks, nodes)}")
        rows.append((str(number), " | ".join(map(str, chunks)), *cells))
    return rows


def _expert_rows(config: Config, grid: Grid, nodes: Sequence[int]) -> Rows:
    """A row for each part of the experts: which they are, and the ranks of the first stage that hold them."""
    assert config.model.num_moe_experts is not None
    parts = grid.size("expert")
    each = config.model.num_moe_experts // parts
    rows: Rows = [("experts", "ranks of stage 0 that hold them in every MoE layer")]
    for part in range(parts if parts <= SMALL_WORLD else 1):
        places = ((rank, grid.coordinates(rank)) for rank in range(grid.world))
        mine = [rank for rank, place in places if place["expert"] == part and place["pipeline"] == 0]
        rows.append((_numbers(range(part * each, (part + 1) * each)), f"{_numbers(mine)} @ {_on(mine, nodes)}"))
    if parts > SMALL_WORLD:
        rows.append(("...", f"and so on: {parts} parts of {_count(each, 'expert')}"))
    return rows


def _group_rows(config: Config, world: int, nodes: Sequence[int]) -> Rows:
    """A row a kind of group: its size, how many there are, the first of them, and how many nodes one lies on."""
    dense = dense_grid(config, world)
    kinds = [(name, dense) for name, _ in dense.axes]
    if config.model.num_moe_experts is not None:
        experts = expert_grid(config, world)
        kinds += [(name, experts) for name, _ in experts.axes if name != "pipeline"]
    rows: Rows = [("group", "size", "groups", "first", "lies")]
    for name, grid in kinds:
        groups = grid.groups(name)
        if len(groups[0]) == 1:
            continue
        most = max(len({nodes[rank] for rank in group}) for group in groups)
        lies = "inside a node" if most == 1 else f"across {most} nodes"
        rows.append((name, f"{len(groups[0]):,}", f"{len(groups):,}", _numbers(groups[0]), lies))
    return rows if len(rows) > 1 else []


def _product(grid: Grid) -> str:
    return " x ".join(f"{name} {size:,}" for name, size in grid.axes if size > 1) or "one rank"


def _on(ranks: Sequence[int], nodes: Sequence[int]) -> str:
    """The nodes that ranks are on, e.g. `node 0` or `nodes 0-3`."""
    on = sorted({nodes[rank] for rank in ranks})
    return f"node{'s' if len(on) > 1 else ''} {_numbers(on)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _numbers(numbers: Sequence[int]) -> str:
    """Rising numbers in short: `0-7`, `0,8..56`, `0-1,8-9`; what has no pattern is cut off after a few."""
    runs = _runs(numbers)
    if len(runs) <= 2 or len(runs) <= _SHOWN and len(runs) < len(numbers):
        return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
    steps = {after - before for before, after in zip(numbers, numbers[1:], strict=False)}
    if len(steps) == 1:
        return f"{numbers[0]},{numbers[1]}..{numbers[-1]}"
    shown = ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs[:_SHOWN])
    return f"{shown}..{runs[-1][-1]}"


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _table(rows: Rows) -> Iterator[str]:
    """Rows whose columns stand under each other, indented."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
