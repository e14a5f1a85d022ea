"""Rules of batches and of the length of a run."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import multiples_around, rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError


@rule("train.global_batch_size", "train.micro_batch_size", "parallel.tensor", "parallel.pipeline")
def micro_batches_fill_global_batch(config: Config, world: int | None) -> UserError | None:
    """Every data-parallel rank runs the same number of whole micro-batches in a step."""
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size
    copies = config.parallel.tensor * config.parallel.pipeline
    if world is not None and world % copies:
        return None  # the layout itself is wrong, and says so
    data = 1 if world is None else world // copies
    if batch % (micro * data) == 0:
        return None
    what = f"train.global_batch_size: {batch} is no multiple of micro_batch_size={micro} x data={data} = {micro * data}"
    return UserError(what, mend=f"nearest: {multiples_around(batch, micro * data)}")


@rule("train.steps", "train.tokens")
def one_run_length(config: Config, world: int | None) -> UserError | None:
    """The length of the run is said once: in steps or in tokens."""
    if (config.train.steps is None) != (config.train.tokens is None):
        return None
    what = "neither is set" if config.train.steps is None else "both are set"
    return UserError(f"train.steps, train.tokens: {what}", expected="exactly one of the two")


@rule("profile.steps")
def profile_steps_are_ordered(config: Config, world: int | None) -> UserError | None:
    """The profiler traces from the first step named to the last; steps count from 1."""
    steps = config.profile.steps
    if steps is None or 1 <= steps[0] <= steps[1]:
        return None
    what = f"profile.steps: found {list(steps)}"
    return UserError(what, expected="[first, last] with 1 <= first <= last, e.g. [5, 8]")


@rule("profile.steps", "train.steps", "train.tokens", "train.global_batch_size", "model.seq_length")
def profile_steps_are_in_the_run(config: Config, world: int | None) -> UserError | None:
    """A trace of steps that never come would silently not be written."""
    if config.profile.steps is None or one_run_length.check(config, world):
        return None
    last, total = config.profile.steps[1], config.total_steps
    if last <= total:
        return None
    return UserError(f"profile.steps: step {last} lies beyond the run's {total} steps", expected=f"at most {total}")


RULES = (micro_batches_fill_global_batch, one_run_length, profile_steps_are_ordered, profile_steps_are_in_the_run)
