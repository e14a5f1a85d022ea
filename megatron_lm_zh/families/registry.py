"""Which families there are: a new one is one file beside this one and one entry here."""

from __future__ import annotations

from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.families.base import Family
from megatron_lm_zh.families.llama import LLAMA

FAMILIES: tuple[Family, ...] = (LLAMA,)


def family(name: str) -> Family:
    """The family called `name` in `model.family`; UserError names the known ones."""
    for candidate in FAMILIES:
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in FAMILIES]
    close = nearest(name, names)
    mend = f"did you mean {close}?" if close else ""
    raise UserError(f"no model family {name!r}", expected=f"one of {', '.join(names)}", mend=mend)


def family_of(model_type: str) -> Family:
    """The family whose Hugging Face config.json says `model_type`; UserError names the known types."""
    for candidate in FAMILIES:
        if candidate.model_type == model_type:
            return candidate
    known = ", ".join(candidate.model_type for candidate in FAMILIES)
    raise UserError(f"no family converts model_type {model_type!r}", expected=f"one of {known}")
