"""What a comparison says of itself: what was made smaller, what stays as asked, where layouts differ by design."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from megatron_lm_zh.config.document import describe
from megatron_lm_zh.config.load import as_dict
from megatron_lm_zh.config.schema import Config

SECTIONS = ("model", "parallel", "precision", "kernels", "data", "train", "optim", "ddp", "schedule")
_WIDTH = 110


def changes(yours: Config, here: Config) -> Iterator[str]:
    """The values that differ, `yours -> here`, one paragraph a section."""
    before, after = as_dict(yours), as_dict(here)
    for section in SECTIONS:
        different = [
            f"{key} {_value(value)} -> {_value(after[section][key])}"
            for key, value in before[section].items()
            if value != after[section][key]
        ]
        yield from _paragraph(section, different)


def kept(yours: Config, here: Config) -> Iterator[str]:
    """What was asked for beyond the defaults and runs here as asked."""
    same = []
    for section in SECTIONS:
        asked, small = getattr(yours, section), getattr(here, section)
        for name, field in type(asked).__pydantic_fields__.items():
            value = getattr(asked, name)
            if field.is_required() or value != getattr(small, name) or (section == "data" and value is not True):
                continue
            if value != field.get_default(call_default_factory=True, validated_data=vars(asked)):
                same.append(name if value is True else f"{name} {_value(value)}")
    return _paragraph("as asked", same)


def by_design(config: Config, world: int) -> Iterator[str]:
    """Why this layout may differ from one rank although nothing is wrong, and what to compare instead: a note each."""
    for note in _reasons(config, world):
        yield textwrap.fill(note, _WIDTH, initial_indent="note: ", subsequent_indent="      ", break_on_hyphens=False)


def _reasons(config: Config, world: int) -> Iterator[str]:
    model, parallel = config.model, config.parallel
    if model.num_moe_experts is None:
        return
    splits_tokens = parallel.context > 1 or (parallel.tensor > 1 and parallel.sequence)
    if model.moe_expert_capacity_factor is not None and splits_tokens:
        yield (
            "an expert's capacity is a share of one rank's tokens, so other tokens are dropped where a sequence is "
            "divided; exact: model.moe_expert_capacity_factor=null, or so large that none is dropped"
        )
    if model.moe_expert_capacity_factor is not None and config.train.micro_batch_size > 1:
        yield (
            "sequences that begin with the same token tie for an expert's last place, and rounding decides which token "
            "is dropped; exact: train.micro_batch_size=1"
        )
    if model.moe_router_load_balancing_type == "sinkhorn" and splits_tokens:
        yield "Sinkhorn's assignment balances one rank's tokens, so it differs where a sequence is divided"
    if model.moe_router_load_balancing_type == "global_aux_loss" and config.data_parallel_size(world) > 1:
        yield (
            "global_aux_loss averages over the micro-batches seen so far, and replicas see several at once; "
            "exact: a layout without data parallelism, or model.moe_router_load_balancing_type=aux_loss"
        )
    yield (
        "a token whose best experts score alike to the last bit may go to another one: a jump of one step, to be "
        "told from an error by its not growing"
    )


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        text = str(list(value))
        return text if len(text) <= 30 else text[:20] + "...]"
    return value if isinstance(value, str) else describe(value)


def _paragraph(head: str, parts: list[str]) -> Iterator[str]:
    if parts:
        indent = f"  {head:<10}"
        yield textwrap.fill(
            ", ".join(parts), _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
        )
