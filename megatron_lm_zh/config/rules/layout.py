"""Rules of the parallel layout: what the ranks must divide."""

from __future__ import annotations

import math

from megatron_lm_zh.config.rules.rule import divisors_of, multiples_around, rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError


@rule(
    "parallel.tensor",
    "parallel.pipeline",
    "model.num_layers",
    "model.num_attention_heads",
    "model.num_query_groups",
    "model.ffn_hidden_size",
    "model.make_vocab_size_divisible_by",
)
def model_copies_fill_world(config: Config, world: int | None) -> UserError | None:
    """Data parallelism takes the ranks that are left, so one copy of the model must divide the world."""
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    if world is None or world % (tensor * pipeline) == 0:
        return None
    what = f"parallel.tensor: tensor={tensor} x pipeline={pipeline} = {tensor * pipeline} does not divide {world} ranks"
    return UserError(what, mend=f"nearest: {', or '.join(_nearest_layouts(config, world))}")


@rule("parallel.tensor", "model.num_attention_heads")
def tensor_divides_heads(config: Config, world: int | None) -> UserError | None:
    """Each tensor-parallel rank computes whole attention heads."""
    return _tensor_divides(config, config.model.num_attention_heads, "num_attention_heads")


@rule("parallel.tensor", "model.num_query_groups")
def tensor_divides_query_groups(config: Config, world: int | None) -> UserError | None:
    """Each tensor-parallel rank holds whole key/value heads; none is stored twice."""
    return _tensor_divides(config, config.model.num_query_groups, "num_query_groups")


@rule("parallel.tensor", "model.ffn_hidden_size")
def tensor_divides_ffn(config: Config, world: int | None) -> UserError | None:
    """The inner width of the MLP is split evenly over the tensor-parallel ranks."""
    return _tensor_divides(config, config.model.ffn_hidden_size, "ffn_hidden_size")


@rule("parallel.tensor", "model.make_vocab_size_divisible_by")
def tensor_divides_vocabulary(config: Config, world: int | None) -> UserError | None:
    """The padded vocabulary is split evenly, and its padding must not depend on the layout (checkpoints move)."""
    return _tensor_divides(config, config.model.make_vocab_size_divisible_by, "make_vocab_size_divisible_by")


@rule("parallel.pipeline", "model.num_layers")
def pipeline_divides_layers(config: Config, world: int | None) -> UserError | None:
    """Every pipeline stage holds the same number of layers."""
    pipeline, layers = config.parallel.pipeline, config.model.num_layers
    if layers % pipeline == 0:
        return None
    what = f"parallel.pipeline: {pipeline} does not divide num_layers={layers}"
    return UserError(what, expected=f"one of {_divisors(layers)}", mend="or change model.num_layers")


@rule("parallel.sequence", "parallel.tensor")
def sequence_needs_tensor(config: Config, world: int | None) -> UserError | None:
    """Sequence parallelism splits the sequence over the tensor-parallel ranks, so there must be some."""
    if not config.parallel.sequence or config.parallel.tensor > 1:
        return None
    return UserError(
        "parallel.sequence: needs tensor parallelism", mend="set parallel.tensor above 1, or sequence: false"
    )


@rule("parallel.sequence", "parallel.tensor", "model.seq_length")
def tensor_divides_sequence(config: Config, world: int | None) -> UserError | None:
    """With sequence parallelism each tensor-parallel rank holds an equal part of the sequence."""
    tensor, length = config.parallel.tensor, config.model.seq_length
    if not config.parallel.sequence or length % tensor == 0:
        return None
    what = f"parallel.sequence: tensor={tensor} does not divide seq_length={length}"
    return UserError(what, mend=f"set model.seq_length to {multiples_around(length, tensor)}")


RULES = (
    model_copies_fill_world,
    tensor_divides_heads,
    tensor_divides_query_groups,
    tensor_divides_ffn,
    tensor_divides_vocabulary,
    pipeline_divides_layers,
    sequence_needs_tensor,
    tensor_divides_sequence,
)


def _tensor_divides(config: Config, size: int, name: str) -> UserError | None:
    tensor = config.parallel.tensor
    if size % tensor == 0:
        return None
    what = f"parallel.tensor: {tensor} does not divide {name}={size}"
    return UserError(
        what, expected=f"a divisor of {size}", mend=f"or set model.{name} to {multiples_around(size, tensor)}"
    )


def _nearest_layouts(config: Config, world: int) -> list[str]:
    """The two legal (tensor, pipeline) on `world` ranks that are closest, by ratio, to the ones asked for."""
    model, asked = config.model, config.parallel
    split_by_tensor = math.gcd(
        model.num_attention_heads, model.num_query_groups, model.ffn_hidden_size, model.make_vocab_size_divisible_by
    )
    layouts = [
        (tensor, pipeline)
        for tensor in divisors_of(math.gcd(world, split_by_tensor))
        for pipeline in divisors_of(math.gcd(world // tensor, model.num_layers))
    ]

    def distance(layout: tuple[int, int]) -> float:
        return abs(math.log(layout[0] / asked.tensor)) + abs(math.log(layout[1] / asked.pipeline))

    nearest = sorted(layouts, key=distance)[:2]
    return [f"tensor={tp} pipeline={pp} (data={world // (tp * pp)})" for tp, pp in nearest]


def _divisors(value: int) -> str:
    return ", ".join(map(str, divisors_of(value)))
