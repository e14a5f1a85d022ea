"""Rules of what is read."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import needs, rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError


@rule("data.split")
def split_leaves_training_data(config: Config, world: int | None) -> UserError | None:
    """The first share of the split is what the model trains on."""
    if float(config.data.split.split(",")[0]) > 0:
        return None
    return UserError(f"data.split: {config.data.split!r} leaves nothing to train on", expected="text like 99,1,0")


@rule("data.valid", "data.test")
def loss_weights_are_of_training(config: Config, world: int | None) -> UserError | None:
    """Validation reports each source by itself, as it is; a weight of its loss would be ignored."""
    for name in ("valid", "test"):
        for number, source in enumerate(getattr(config.data, name)):
            if source.loss_weight != 1:
                what = f"data.{name}.{number}.loss_weight: {source.loss_weight:g} would be ignored"
                return UserError(what, mend="take it out; it belongs to sources of data.train")
    return None


@rule("data.reset_position_ids", "data.reset_attention_mask", "model.position_embedding_type")
def positions_can_be_reset(config: Config, world: int | None) -> UserError | None:
    """Only learned positions are looked up by number; rotations and biases count from place to place, and start again
    with a document only where documents are told apart."""
    learned = config.model.position_embedding_type == "learned_absolute"
    if not config.data.reset_position_ids or learned or config.data.reset_attention_mask:
        return None
    return needs("data.reset_position_ids: true", {"data.reset_attention_mask: true": False})


RULES = (split_leaves_training_data, loss_weights_are_of_training, positions_can_be_reset)
