"""The training loop: what happens at every step, in order."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist

from megatron_lm_zh.checkpoint.state import training_state
from megatron_lm_zh.config.load import to_yaml
from megatron_lm_zh.errors import NonFiniteError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.observe.meters import Throughput, mfu
from megatron_lm_zh.observe.profiler import StepProfiler
from megatron_lm_zh.observe.rows import ExpertsRow, TrainRow
from megatron_lm_zh.runtime import groups
from megatron_lm_zh.runtime.signals import StopRequest
from megatron_lm_zh.train.setup import Run, describe, on_rank_0
from megatron_lm_zh.train.step import StepResult


def train(run: Run, stop: StopRequest) -> bool:
    """Trains from `run.step` to the end, or until a signal asks to stop; says whether the run is complete.

    Raises:
        NonFiniteError: the loss or the gradient norm is not a number; nothing was saved since.
        UserError: a checkpoint could not be written.
    """
    config, directory = run.config, run.directory
    for line in describe(run):
        run.reporter.note(line)
    first, last = run.step + 1, config.total_steps
    throughput = Throughput(run.tokens)
    recorder = run.device.memory_recorder()
    with StepProfiler(config.profile.steps, directory.logs, run.ranks.rank, memory_snapshot=recorder) as profiler:
        for number in range(first, last + 1):
            with profiler.step(number):
                result = take_step(run, number)
            throughput.step(run.tokens)
            if number == first:
                groups.steady(config)
            stopped_by = stop_reason(run, stop)
            if number == last or number % config.log.interval == 0:
                report(run, result, throughput)
            with throughput.paused():
                if number == last or number % config.evaluate.interval == 0:
                    validate(run)
                if number == last or stopped_by or number % config.checkpoint.interval == 0:
                    save(run)
                run.saver.poll()
                if run.exports is not None:
                    run.exports.poll()
            if stopped_by and number < last:
                run.saver.finish()
                run.reporter.note(f"stopped by {stopped_by} after step {number}; the next start goes on from there")
                return False
    run.saver.finish()
    if run.exports is not None:
        run.exports.finish()
    on_rank_0(lambda: write_bytes(directory.done, (json.dumps({"step": run.step}) + "\n").encode()))
    run.reporter.note(f"done: {last:,} steps; everything lies in {directory.path}")
    return True


def take_step(run: Run, number: int) -> StepResult:
    """Step `number`; a loss that is not a number becomes an incident and ends the run."""
    samples = run.config.batch_sizes.at(run.consumed_samples)
    try:
        result = run.stepper.step(run.batches, number, samples)
    except NonFiniteError as error:
        if run.ranks.rank == 0:
            run.incidents.record("non_finite", step=number, rank=run.ranks.rank, message=error.what)
        run.saver.finish()  # a checkpoint of an earlier, sound step may still be on its way
        raise
    run.step = number
    run.consumed_samples += samples
    run.skipped_steps += not result.updated
    return result


def stop_reason(run: Run, stop: StopRequest) -> str | None:
    """The signal that asks to stop, once it has reached any rank: ranks stop together or not at all."""
    reached = torch.tensor([stop.received is not None], dtype=torch.int32, device=run.device.torch_device)
    dist.all_reduce(reached, op=dist.ReduceOp.MAX)
    return (stop.received or "a signal to another rank") if reached.item() else None


def report(run: Run, result: StepResult, throughput: Throughput) -> None:
    """One row of metrics for the interval that ends with this step."""
    speed, layers = throughput.report(), run.layer_meters.drain()
    peak = run.peak_flops()
    run.reporter.train(
        TrainRow(
            step=run.step,
            lm_loss=result.lm_loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            loss_scale=result.loss_scale,
            skipped_steps=run.skipped_steps if result.loss_scale is not None else None,
            tokens=run.tokens,
            tokens_per_s=speed.tokens_per_s,
            step_time_s=speed.step_time_s,
            attempt=run.attempt,
            memory_gb=run.device.memory_gb(),
            mfu=peak and mfu(run.flops_per_token(), speed.tokens_per_s, run.ranks.world, peak),
            extra=layers.figures,
        )
    )
    if layers.load:
        run.reporter.experts(ExpertsRow(step=run.step, load=layers.load))


def validate(run: Run) -> None:
    """One row of metrics for every validation source, and at the end of the run for every test source."""
    for row in run.evaluator.rows(run.datasets.valid, run.step):
        run.reporter.valid(row)
    if run.step == run.config.total_steps:
        for row in run.evaluator.rows(run.datasets.test, run.step, "test"):
            run.reporter.valid(row)


def save(run: Run) -> None:
    """Starts to write a checkpoint of this step; the metrics until here are safe on the disk first."""
    run.reporter.flush()
    state = training_state(
        run.stepper.model, run.stepper.optimizer, is_loading=False, with_rng=True, sharding=run.saver.sharding
    )
    run.saver.save(
        state,
        step=run.step,
        consumed_samples=run.consumed_samples,
        skipped_steps=run.skipped_steps,
        config_yaml=to_yaml(run.config),
    )
