"""Rules of the world and of tensor parallelism: what the ranks must divide."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from megatron_lm_zh.config.rules.rule import Rule, divisors_of, multiples_around, needs, rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.sections.parallel import Parallel
from megatron_lm_zh.errors import UserError


def nearest_layouts(config: Config, world: int, rules: Sequence[Rule]) -> str:
    """The two legal layouts on `world` ranks that are closest, by ratio, to the one asked for."""
    of_layouts = [rule for rule in rules if any(key.startswith("parallel.") for key in rule.reads)]
    without_batches = [rule for rule in of_layouts if not any(key.startswith("train.") for key in rule.reads)]
    # by tensor and pipeline alone and with this batch, if possible
    for all_axes, held in ((False, of_layouts), (True, of_layouts), (True, without_batches)):
        layouts = (
            _in_words(layout, config, world)
            for layout in _candidates(config, world, all_axes=all_axes)
            if _is_legal(config, layout, world, held)
        )
        if found := list(itertools.islice(layouts, 2)):
            return f"nearest: {', or '.join(found)}"
    return f"no layout on {world} ranks holds the other rules; mend what breaks those, or take another number of ranks"


@rule("parallel.tensor", "parallel.context", "parallel.pipeline", search=nearest_layouts)
def model_copies_fill_world(config: Config, world: int | None) -> UserError | None:
    """Data parallelism takes the ranks that are left, so one copy of the model must divide the world."""
    parallel = config.parallel
    if world is None or world % config.replica_size == 0:
        return None
    sizes = {"tensor": parallel.tensor, "context": parallel.context, "pipeline": parallel.pipeline}
    return _does_not_divide(sizes, world, optional="context")


@rule(
    "parallel.expert",
    "parallel.expert_tensor",
    "parallel.tensor",
    "parallel.context",
    "parallel.pipeline",
    "model.num_moe_experts",
    search=nearest_layouts,
)
def expert_sets_fill_world(config: Config, world: int | None) -> UserError | None:
    """The ranks that together hold every expert once must divide the world; what is left are copies of the experts."""
    parallel = config.parallel
    if world is None or world % config.replica_size or world % config.expert_replica_size == 0:
        return None
    sizes = {"expert": parallel.expert, "expert_tensor": parallel.expert_tensor, "pipeline": parallel.pipeline}
    return _does_not_divide(sizes, world, optional="expert_tensor")


@rule("parallel.tensor", "model.num_attention_heads")
def tensor_divides_heads(config: Config, world: int | None) -> UserError | None:
    """Each tensor-parallel rank computes whole attention heads."""
    return _tensor_divides(config, config.model.num_attention_heads, "num_attention_heads")


@rule("parallel.tensor", "model.num_query_groups", "model.multi_latent_attention")
def tensor_divides_query_groups(config: Config, world: int | None) -> UserError | None:
    """Each tensor-parallel rank holds whole key/value heads; none is stored twice."""
    if config.model.multi_latent_attention:
        return None  # has as many as heads
    return _tensor_divides(config, config.model.num_query_groups, "num_query_groups")


@rule("parallel.tensor", "model.ffn_hidden_size")
def tensor_divides_ffn(config: Config, world: int | None) -> UserError | None:
    """The inner width of the MLP is split evenly over the tensor-parallel ranks."""
    return _tensor_divides(config, config.model.ffn_hidden_size, "ffn_hidden_size")


@rule("parallel.tensor", "model.make_vocab_size_divisible_by")
def tensor_divides_vocabulary(config: Config, world: int | None) -> UserError | None:
    """The padded vocabulary is split evenly, and its padding must not depend on the layout (checkpoints move)."""
    return _tensor_divides(config, config.model.make_vocab_size_divisible_by, "make_vocab_size_divisible_by")


@rule("parallel.sequence", "parallel.tensor")
def sequence_needs_tensor(config: Config, world: int | None) -> UserError | None:
    """Sequence parallelism splits the sequence over the tensor-parallel ranks, so there must be some."""
    if not config.parallel.sequence or config.parallel.tensor > 1:
        return None
    return UserError(
        "parallel.sequence: needs tensor parallelism", mend="set parallel.tensor above 1, or sequence: false"
    )


@rule("parallel.sequence", "parallel.tensor", "parallel.context", "model.seq_length")
def tensor_divides_sequence(config: Config, world: int | None) -> UserError | None:
    """With sequence parallelism each tensor-parallel rank holds an equal part of its context-parallel rank's tokens."""
    tensor, context, length = config.parallel.tensor, config.parallel.context, config.model.seq_length
    if not config.parallel.sequence or length % (tensor * context) == 0:
        return None
    ranks = f"tensor={tensor}" if context == 1 else f"tensor={tensor} x context={context} = {tensor * context}"
    what = f"parallel.sequence: {ranks} does not divide seq_length={length}"
    return UserError(what, mend=f"set model.seq_length to {multiples_around(length, tensor * context)}")


@rule("parallel.tp_comm_overlap", "parallel.sequence")
def overlapped_tensor_traffic_is_sequence_parallel(config: Config, world: int | None) -> UserError | None:
    """Matrix multiplications overlap with the gathers and scatters of sequence parallelism; an all-reduce cannot."""
    if not config.parallel.tp_comm_overlap:
        return None
    return needs("parallel.tp_comm_overlap: true", {"parallel.sequence: true": config.parallel.sequence})


@rule(
    "parallel.order",
    "parallel.tensor",
    "parallel.context",
    "parallel.expert",
    "parallel.expert_tensor",
    "parallel.pipeline",
    "model.num_moe_experts",
)
def stages_of_experts_are_stages(config: Config, world: int | None) -> UserError | None:
    """Unless pipeline comes last in the order, experts and the rest must have equally many copies, or their pipelines
    would go through different ranks."""
    parallel = config.parallel
    if parallel.order.endswith("pp") or parallel.pipeline == 1 or config.replica_size == config.expert_replica_size:
        return None
    what = (
        f"parallel.order: {parallel.order} needs expert x expert_tensor = tensor x context,"
        f" found {parallel.expert} x {parallel.expert_tensor} and {parallel.tensor} x {parallel.context}"
    )
    return UserError(what, mend="set parallel.order: tp-cp-ep-dp-pp")


RULES = (
    model_copies_fill_world,
    expert_sets_fill_world,
    tensor_divides_heads,
    tensor_divides_query_groups,
    tensor_divides_ffn,
    tensor_divides_vocabulary,
    sequence_needs_tensor,
    tensor_divides_sequence,
    overlapped_tensor_traffic_is_sequence_parallel,
    stages_of_experts_are_stages,
)


def _does_not_divide(sizes: dict[str, int], world: int, *, optional: str) -> UserError:
    """E.g. "tensor=8 x pipeline=4 = 32 does not divide 24 ranks"; the `optional` size is left out where it is 1."""
    shown = {name: size for name, size in sizes.items() if name != optional or size > 1}
    product = math.prod(sizes.values())
    text = " x ".join(f"{name}={size}" for name, size in shown.items())
    return UserError(f"parallel.{next(iter(sizes))}: {text} = {product} does not divide {world} ranks")


def _tensor_divides(config: Config, size: int, name: str) -> UserError | None:
    tensor = config.parallel.tensor
    if size % tensor == 0:
        return None
    what = f"parallel.tensor: {tensor} does not divide {name}={size}"
    return UserError(
        what, expected=f"a divisor of {size}", mend=f"or set model.{name} to {multiples_around(size, tensor)}"
    )


def _candidates(config: Config, world: int, *, all_axes: bool) -> Iterator[Parallel]:
    """Layouts that divide the world, closest first."""
    asked, experts = config.parallel, config.model.num_moe_experts or 1
    layouts = [
        dataclasses.replace(
            asked,
            tensor=tensor,
            context=context,
            pipeline=pipeline,
            expert=expert,
            expert_tensor=tensor if asked.expert_tensor == asked.tensor else asked.expert_tensor,
        )
        for tensor in divisors_of(world)
        for pipeline in divisors_of(world // tensor)
        for context in (divisors_of(world // (tensor * pipeline)) if all_axes else [asked.context])
        for expert in (divisors_of(experts) if all_axes else [asked.expert])
    ]

    def distance(layout: Parallel) -> float:
        axes = ("tensor", "context", "pipeline", "expert")
        return sum(abs(math.log(getattr(layout, axis) / getattr(asked, axis))) for axis in axes)

    yield from sorted(layouts, key=distance)


def _is_legal(config: Config, layout: Parallel, world: int, rules: Sequence[Rule]) -> bool:
    """Whether a layout breaks none of the rules."""
    changed = dataclasses.replace(config, parallel=layout)
    return not any(rule.check(changed, world) for rule in rules)


def _in_words(layout: Parallel, config: Config, world: int) -> str:
    copies = world // (layout.tensor * layout.context * layout.pipeline)
    context = f" context={layout.context}" if layout.context > 1 else ""
    expert = f" expert={layout.expert}" if config.model.num_moe_experts else ""
    return f"tensor={layout.tensor}{context} pipeline={layout.pipeline}{expert} (data={copies})"
