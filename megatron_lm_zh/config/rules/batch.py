"""Rules of batches and of the length of a run."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import divisors_of, multiples_around, rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError


@rule("train.global_batch_size", "train.micro_batch_size", "parallel.tensor", "parallel.context", "parallel.pipeline")
def micro_batches_fill_global_batch(config: Config, world: int | None) -> UserError | None:
    """Every data-parallel rank runs the same number of whole micro-batches in a step."""
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size
    if world is not None and world % config.replica_size:
        return None  # the layout itself is wrong, and says so
    data = 1 if world is None else world // config.replica_size
    if batch % (micro * data) == 0:
        return None
    what = f"train.global_batch_size: {batch} is no multiple of micro_batch_size={micro} x data={data} = {micro * data}"
    return UserError(what, mend=f"nearest: {multiples_around(batch, micro * data)}")


@rule("train.rampup_batch_size", "train.global_batch_size")
def ramp_rises_to_global_batch(config: Config, world: int | None) -> UserError | None:
    """The batch grows from a smaller one to global_batch_size in whole increments."""
    if config.batch_sizes.legal:
        return None
    assert config.train.rampup_batch_size is not None
    start, increment, samples = config.train.rampup_batch_size
    batch = config.train.global_batch_size
    what = f"train.rampup_batch_size: {[start, increment, samples]} does not rise to global_batch_size={batch}"
    expected = f"numbers above 0, a start below {batch} and an increment that divides the difference"
    legal = [size for size in divisors_of(batch - start) if size <= max(increment, 1)] if 0 < start < batch else []
    return UserError(what, expected=expected, mend=f"e.g. an increment of {legal[-1]}" if legal else "")


@rule(
    "train.rampup_batch_size",
    "train.global_batch_size",
    "train.micro_batch_size",
    "parallel.tensor",
    "parallel.context",
    "parallel.pipeline",
)
def ramp_is_of_whole_micro_batches(config: Config, world: int | None) -> UserError | None:
    """Every batch on the way up is divided over the data-parallel ranks as the last one is."""
    ramp, micro = config.train.rampup_batch_size, config.train.micro_batch_size
    if ramp is None or not config.batch_sizes.legal or (world is not None and world % config.replica_size):
        return None
    data = 1 if world is None else world // config.replica_size
    wrong = [size for size in config.batch_sizes.sizes() if size % (micro * data)]
    if not wrong or config.train.global_batch_size % (micro * data):
        return None
    what = f"train.rampup_batch_size: makes a batch of {wrong[0]}"
    expected = f"multiples of micro_batch_size={micro} x data={data} = {micro * data}"
    return UserError(what, expected=expected, mend=f"nearest start: {multiples_around(ramp[0], micro * data)}")


@rule(
    "train.rampup_batch_size",
    "train.steps",
    "train.tokens",
    "train.global_batch_size",
    "model.seq_length",
)
def ramp_ends_in_the_run(config: Config, world: int | None) -> UserError | None:
    """A ramp longer than the run would never reach global_batch_size."""
    ramp = config.train.rampup_batch_size
    if ramp is None or not config.batch_sizes.legal or one_run_length.check(config, world):
        return None
    total = config.batch_sizes.consumed_by(config.total_steps)
    if ramp[2] < total:
        return None
    what = f"train.rampup_batch_size: a ramp over {ramp[2]} samples in a run of {total}"
    return UserError(what, expected=f"fewer than {total} samples")


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


@rule(
    "profile.steps",
    "train.steps",
    "train.tokens",
    "train.global_batch_size",
    "train.rampup_batch_size",
    "model.seq_length",
)
def profile_steps_are_in_the_run(config: Config, world: int | None) -> UserError | None:
    """A trace of steps that never come would silently not be written."""
    if config.profile.steps is None or one_run_length.check(config, world):
        return None
    last, total = config.profile.steps[1], config.total_steps
    if last <= total:
        return None
    return UserError(f"profile.steps: step {last} lies beyond the run's {total} steps", expected=f"at most {total}")


RULES = (
    micro_batches_fill_global_batch,
    ramp_rises_to_global_batch,
    ramp_is_of_whole_micro_batches,
    ramp_ends_in_the_run,
    one_run_length,
    profile_steps_are_ordered,
    profile_steps_are_in_the_run,
)
