"""Rules of the network's shape and of activation recompute."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import divisors_of, multiples_around, rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError


@rule("model.num_query_groups", "model.num_attention_heads")
def query_groups_divide_heads(config: Config, world: int | None) -> UserError | None:
    """In grouped-query attention every key/value head serves the same number of query heads."""
    groups, heads = config.model.num_query_groups, config.model.num_attention_heads
    if heads % groups == 0:
        return None
    what = f"model.num_query_groups: {groups} does not divide num_attention_heads={heads}"
    return UserError(what, expected=f"one of {', '.join(map(str, divisors_of(heads)))}")


@rule("model.hidden_size", "model.num_attention_heads", "model.kv_channels")
def heads_divide_hidden_size(config: Config, world: int | None) -> UserError | None:
    """hidden_size / num_attention_heads, the default of kv_channels, must not have been rounded down."""
    model = config.model
    if model.hidden_size % model.num_attention_heads == 0:
        return None
    if model.kv_channels != model.hidden_size // model.num_attention_heads:
        return None  # set on purpose
    what = f"model.hidden_size: {model.hidden_size} is no multiple of num_attention_heads={model.num_attention_heads}"
    mend = f"nearest: {multiples_around(model.hidden_size, model.num_attention_heads)}"
    return UserError(what, mend=mend)


@rule("model.kv_channels", "model.hidden_size", "model.num_attention_heads")
def head_channels_are_even(config: Config, world: int | None) -> UserError | None:
    """Rotary position embedding turns the channels of a head in pairs."""
    channels = config.model.kv_channels
    if channels % 2 == 0:
        return None
    size = f"hidden_size={config.model.hidden_size} / num_attention_heads={config.model.num_attention_heads}"
    what = f"model.kv_channels: {channels} is odd (its default is {size})"
    return UserError(what, expected="an even number", mend=f"nearest: {multiples_around(channels, 2)}")


@rule("model.seq_length", "model.max_position_embeddings")
def sequences_fit_positions(config: Config, world: int | None) -> UserError | None:
    """The exported model must claim to take the sequences that it was trained on."""
    length, longest = config.model.seq_length, config.model.max_position_embeddings
    if length <= longest:
        return None
    what = f"model.seq_length: {length} is more than max_position_embeddings={longest}"
    return UserError(what, mend=f"set model.max_position_embeddings to {length} or more, or leave it out")


@rule("model.recompute_granularity", "model.recompute_method", "model.recompute_num_layers")
def full_recompute_says_what(config: Config, world: int | None) -> UserError | None:
    """Full recompute needs to know which layers; selective recompute has no choice of layers."""
    model = config.model
    given = [name for name in ("recompute_method", "recompute_num_layers") if getattr(model, name) is not None]
    if model.recompute_granularity == "full":
        if len(given) == 2:
            return None
        mend = "set model.recompute_method: uniform and model.recompute_num_layers: 1"
        return UserError("model.recompute_granularity: full needs recompute_method and recompute_num_layers", mend=mend)
    if not given:
        return None
    what = f"model.{given[0]}: goes with recompute_granularity: full only"
    return UserError(what, mend=f"set recompute_granularity: full, or remove {' and '.join(given)}")


@rule(
    "model.recompute_num_layers",
    "model.recompute_method",
    "model.recompute_granularity",
    "model.num_layers",
    "parallel.pipeline",
)
def recompute_fits_stage(config: Config, world: int | None) -> UserError | None:
    """Recompute works inside one pipeline stage: uniform chunks must fill it, a block must fit into it."""
    model, chunk = config.model, config.model.recompute_num_layers
    if model.recompute_granularity != "full" or chunk is None or model.num_layers % config.parallel.pipeline:
        return None
    stage = model.num_layers // config.parallel.pipeline
    if model.recompute_method == "uniform" and stage % chunk:
        what = f"model.recompute_num_layers: chunks of {chunk} layers do not fill a stage of {stage}"
        return UserError(what, expected=f"one of {', '.join(map(str, divisors_of(stage)))}")
    if chunk > stage:
        what = f"model.recompute_num_layers: {chunk} is more than the {stage} layers of a stage"
        return UserError(what, expected=f"at most {stage}")
    return None


RULES = (
    query_groups_divide_heads,
    heads_divide_hidden_size,
    head_channels_are_even,
    sequences_fit_positions,
    full_recompute_says_what,
    recompute_fits_stage,
)
