"""Rules of context parallelism: how ranks share a sequence."""

from __future__ import annotations

import math

from megatron_lm_zh.config.rules.rule import divisors_of, multiples_around, needs, rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

LEVELS = "parallel.hierarchical_context_parallel_sizes"


@rule("parallel.context", "model.seq_length")
def context_divides_sequence(config: Config, world: int | None) -> UserError | None:
    """Each rank holds two chunks of a sequence, one from its start and one from its end, so that causal attention costs
    all ranks the same."""
    context, length = config.parallel.context, config.model.seq_length
    if context == 1 or length % (2 * context) == 0:
        return None
    what = f"parallel.context: 2 x context={context} = {2 * context} does not divide seq_length={length}"
    return UserError(what, mend=f"set model.seq_length to {multiples_around(length, 2 * context)}")


@rule(
    "parallel.cp_comm_type",
    "parallel.context",
    "parallel.tensor",
    LEVELS,
    "model.num_attention_heads",
    "model.num_query_groups",
    "model.multi_latent_attention",
)
def exchanged_heads_divide(config: Config, world: int | None) -> UserError | None:
    """All-to-all context parallelism gives each rank whole heads of the whole sequence, after tensor parallelism took
    its part of them."""
    parallel, model = config.parallel, config.model
    levels = parallel.hierarchical_context_parallel_sizes
    if parallel.context == 1 or not parallel.cp_comm_type.startswith("a2a"):
        return None
    ranks = levels[0] if levels and parallel.cp_comm_type == "a2a+p2p" else parallel.context
    heads = model.num_attention_heads if model.multi_latent_attention else model.num_query_groups
    divided = math.gcd(heads, model.num_attention_heads)
    if divided % (parallel.tensor * ranks) == 0:
        return None
    what = (
        f"parallel.cp_comm_type: {parallel.cp_comm_type} needs tensor={parallel.tensor} x {ranks} ranks to divide"
        f" num_attention_heads={model.num_attention_heads} and num_query_groups={heads}"
    )
    legal = [size for size in divisors_of(divided) if size % parallel.tensor == 0]
    largest = max(legal, default=parallel.tensor) // parallel.tensor
    return UserError(what, expected=f"at most {largest} ranks to exchange heads", mend="or set cp_comm_type: p2p")


@rule("parallel.cp_comm_type", LEVELS, "parallel.context")
def two_level_exchange_has_levels(config: Config, world: int | None) -> UserError | None:
    """a2a+p2p exchanges heads inside a node and goes round a ring between nodes; it must know how large a node is."""
    parallel = config.parallel
    if parallel.cp_comm_type != "a2a+p2p" or parallel.context == 1 or parallel.hierarchical_context_parallel_sizes:
        return None
    return UserError(f"parallel.cp_comm_type: a2a+p2p needs {LEVELS}", mend=f"set it to {_levels(parallel.context)}")


@rule(LEVELS, "parallel.cp_comm_type")
def levels_are_of_the_two_level_exchange(config: Config, world: int | None) -> UserError | None:
    """No other exchange reads the sizes of the levels."""
    parallel = config.parallel
    if parallel.hierarchical_context_parallel_sizes is None or parallel.cp_comm_type == "a2a+p2p":
        return None
    return needs(LEVELS, {"parallel.cp_comm_type: a2a+p2p": False})


@rule(LEVELS, "parallel.context")
def levels_make_the_context(config: Config, world: int | None) -> UserError | None:
    """The two levels together are all context-parallel ranks."""
    levels, context = config.parallel.hierarchical_context_parallel_sizes, config.parallel.context
    if levels is None or (len(levels) == 2 and min(levels) > 0 and math.prod(levels) == context):
        return None
    what = f"{LEVELS}: {list(levels)} are not two levels of context={context}"
    return UserError(what, mend=f"nearest: {_levels(context)}")


@rule("parallel.context", "parallel.cp_comm_type", "model.window_size")
def ring_knows_no_window(config: Config, world: int | None) -> UserError | None:
    """Transformer Engine has sliding windows for all_gather and a2a; in a ring most blocks would be sent in vain."""
    parallel = config.parallel
    if parallel.context == 1 or config.model.window_size is None or parallel.cp_comm_type in ("all_gather", "a2a"):
        return None
    what = f"parallel.cp_comm_type: {parallel.cp_comm_type} does not go with model.window_size"
    return UserError(what, mend="set parallel.cp_comm_type: all_gather")


@rule("parallel.context", "parallel.cp_comm_type", "model.position_embedding_type")
def alibi_is_gathered(config: Config, world: int | None) -> UserError | None:
    """ALiBi runs on our own attention, which gathers keys and values; Transformer Engine's exchanges have no biases."""
    parallel = config.parallel
    alibi = config.model.position_embedding_type == "alibi"
    if parallel.context == 1 or not alibi or parallel.cp_comm_type == "all_gather":
        return None
    what = f"parallel.cp_comm_type: {parallel.cp_comm_type} does not go with model.position_embedding_type: alibi"
    return UserError(what, mend="set parallel.cp_comm_type: all_gather")


@rule("data.reset_attention_mask", "parallel.context", "model.mtp_num_layers")
def packed_predictions_are_not_split_over_ranks(config: Config, world: int | None) -> UserError | None:
    """megatron-core shifts the labels of multi-token prediction as if every document were cut into chunks of its own,
    but context-parallel ranks hold chunks of the whole sequence."""
    packed = config.data.reset_attention_mask and config.model.mtp_num_layers is not None
    if not packed or config.parallel.context == 1:
        return None
    return needs("data.reset_attention_mask: true with model.mtp_num_layers", {"parallel.context: 1": False})


RULES = (
    context_divides_sequence,
    exchanged_heads_divide,
    two_level_exchange_has_levels,
    levels_are_of_the_two_level_exchange,
    levels_make_the_context,
    ring_knows_no_window,
    alibi_is_gathered,
    packed_predictions_are_not_split_over_ranks,
)


def _levels(context: int) -> str:
    """The most even pair of sizes whose product is `context`, the larger first: heads inside a node."""
    small = max(size for size in divisors_of(context) if size * size <= context)
    return str([context // small, small])
