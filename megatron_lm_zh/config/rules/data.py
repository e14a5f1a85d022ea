"""Rules of what is read."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError


@rule("data.split")
def split_leaves_training_data(config: Config, world: int | None) -> UserError | None:
    """The first share of the split is what the model trains on."""
    if float(config.data.split.split(",")[0]) > 0:
        return None
    return UserError(f"data.split: {config.data.split!r} leaves nothing to train on", expected="text like 99,1,0")


RULES = (split_leaves_training_data,)
