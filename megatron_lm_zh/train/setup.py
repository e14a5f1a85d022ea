"""What a training run is made of, opened in order and closed again: model, optimizer, checkpoint, reports."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import yaml

from megatron_lm_zh.checkpoint.load import Found, find_sound_checkpoint, load_training_state
from megatron_lm_zh.checkpoint.manifest import Layout
from megatron_lm_zh.checkpoint.save import Saver
from megatron_lm_zh.checkpoint.state import sharding_of
from megatron_lm_zh.config.diff import Change, config_diff
from megatron_lm_zh.config.load import as_dict, load_config, to_yaml
from megatron_lm_zh.config.picture import picture
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.data.datasets import Datasets
from megatron_lm_zh.data.inputs import Inputs
from megatron_lm_zh.data.loader import MicroBatches, read_samples, training_portions
from megatron_lm_zh.data.manifest import read_manifest
from megatron_lm_zh.data.plan import table_lines
from megatron_lm_zh.data.text_size import TextMeter
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.models.build import build_model, padded_vocab_size
from megatron_lm_zh.models.flops import active_parameters, flops_per_token, parameters
from megatron_lm_zh.observe.console import Console, ConsoleLine, human
from megatron_lm_zh.observe.environment import environment
from megatron_lm_zh.observe.incidents import Incidents
from megatron_lm_zh.observe.meters import peak_flops
from megatron_lm_zh.observe.reporter import Reporter
from megatron_lm_zh.observe.sinks import open_experts_sink, open_sinks
from megatron_lm_zh.optim.build import build_optimizer, build_scheduler
from megatron_lm_zh.run_directory import CONFIG, RunDirectory
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.runtime.locks import exclusive
from megatron_lm_zh.runtime.ranks import Ranks
from megatron_lm_zh.runtime.replica import Replica, join_replica
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.train.evaluate import Evaluator
from megatron_lm_zh.train.exports import Exports
from megatron_lm_zh.train.layer_meters import LayerMeters
from megatron_lm_zh.train.start import take_hf_weights
from megatron_lm_zh.train.step import Stepper

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class Run:
    """A run that is ready to train; only its last three numbers move."""

    config: Config
    directory: RunDirectory
    ranks: Ranks
    device: Device
    datasets: Datasets
    batches: MicroBatches
    stepper: Stepper
    layer_meters: LayerMeters
    evaluator: Evaluator
    saver: Saver
    exports: Exports | None
    """Rank 0, where `checkpoint.also_save_hf` asks for it."""
    reporter: Reporter
    incidents: Incidents
    attempt: int
    """How many times the run has been started; known to rank 0, which reports."""
    step: int
    """Optimizer steps done."""
    consumed_samples: int
    """Sequences trained on."""
    skipped_steps: int
    """Steps whose update was skipped, as an overflow in fp16 does."""

    @property
    def remaining_steps(self) -> range:
        """Numbers of the steps to do; the first step of a run is 1."""
        return range(self.step + 1, self.config.total_steps + 1)

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.consumed_samples * self.config.model.seq_length

    def flops_per_token(self) -> float:
        """FLOPs of forward and backward for one token."""
        return flops_per_token(self.config)

    def peak_flops(self) -> float | None:
        """Dense peak of one device in the precision used, where it is known."""
        precision = self.config.precision
        return peak_flops(self.device.name, "fp4" if precision.fp4 else "fp8" if precision.fp8 else precision.dtype)


@contextmanager
def open_run(
    inputs: Inputs, ranks: Ranks, device: Device, *, allowed: Sequence[str] = (), init_from: Path | None = None
) -> Iterator[Run]:
    """Opens a run directory and all that trains in it, resuming from its newest sound checkpoint.

    Args:
        allowed: keys whose change since the checkpoint is accepted although it alters the result.
        init_from: Hugging Face directory of the weights that a run without a checkpoint begins with.

    Raises:
        UserError: the directory is in use, its checkpoints are damaged, the config changed what it must not, or the
            first weights are another model's.
    """
    config, tokenizer, datasets = inputs.config, inputs.tokenizer, inputs.datasets
    directory = RunDirectory(Path(config.run.dir))
    with ExitStack() as stack:
        on_rank_0(lambda: stack.enter_context(exclusive(directory.path)))
        model = build_model(config, device)
        optimizer = build_optimizer(config, model)
        scheduler = build_scheduler(config, optimizer)
        layout = Layout.of(config, ranks.world)
        incidents = Incidents(directory.incidents)

        found = find_sound_checkpoint(directory)
        step = consumed_samples = skipped_steps = 0
        if found is not None:
            step, consumed_samples = found.manifest.step, found.manifest.consumed_samples
            skipped_steps = found.manifest.skipped_steps
            on_rank_0(lambda: _report_resume(found, inputs, directory, incidents, allowed))
            load_training_state(found, model, optimizer, layout)
            scheduler.step(step - skipped_steps)
        elif init_from is not None:
            on_rank_0(lambda: print(f"first weights from {init_from}"))
            take_hf_weights(init_from, config, model, optimizer)
        attempt = on_rank_0(lambda: _record_run(directory, config, tokenizer))
        replica = join_replica(config)

        yield Run(
            config=config,
            directory=directory,
            ranks=ranks,
            device=device,
            datasets=datasets,
            batches=stack.enter_context(micro_batches(config, datasets, replica, consumed_samples)),
            stepper=Stepper(config, model, optimizer, scheduler, device),
            layer_meters=LayerMeters(config, model, device),
            evaluator=Evaluator(config, model, TextMeter(tokenizer), device, replica, datasets.ends),
            saver=Saver(
                directory,
                layout,
                keep_last=config.checkpoint.keep_last,
                asynchronous=config.checkpoint.async_save,
                sharding=sharding_of(config),
            ),
            exports=stack.enter_context(_exports(config, directory, ranks, incidents)),
            reporter=stack.enter_context(_reporter(config, directory, ranks, step)),
            incidents=incidents,
            attempt=attempt or 0,
            step=step,
            consumed_samples=consumed_samples,
            skipped_steps=skipped_steps,
        )


def on_rank_0(act: Callable[[], T]) -> T | None:
    """Runs `act` on rank 0 alone; what a user error it raises is raised on every rank. Others return None."""
    result: T | None = None
    error: list[UserError | None] = [None]
    if dist.get_rank() == 0:
        try:
            result = act()
        except UserError as raised:
            error = [raised]
    dist.broadcast_object_list(error)
    if error[0] is not None:
        raise error[0]
    return result


def describe(run: Run) -> Iterator[str]:
    """The lines that open a run's output: where it computes, what it trains, on what."""
    config = run.config
    yield run.device.kernels()
    total, active, model = parameters(config), active_parameters(config), config.model
    idle = f" ({human(active)} active)" if active < total else ""
    yield (
        f"{human(total)} parameters{idle} ({model.family}, {model.num_layers} layers, hidden {model.hidden_size}, "
        f"vocabulary {model.vocab_size} padded to {padded_vocab_size(config)}), {config.precision.dtype}"
    )
    yield from picture(config, _nodes(run.ranks))
    growing = f"{config.batch_sizes.at(0)} to " if config.train.rampup_batch_size else ""
    batch = f"{growing}{config.train.global_batch_size} x {config.model.seq_length} tokens a step"
    yield f"{batch}, {config.total_steps:,} steps"
    if run.datasets.plan is not None:
        yield from table_lines(run.datasets.plan)


def micro_batches(config: Config, datasets: Datasets, replica: Replica, consumed_samples: int) -> MicroBatches:
    """The replica's micro-batches of the training data from a position on."""
    train, vocab_size = datasets.train, config.model.vocab_size
    assert vocab_size is not None
    portions = training_portions(
        config.batch_sizes,
        micro_batch_size=config.train.micro_batch_size,
        replica=replica.number,
        replicas=replica.of,
        consumed_samples=consumed_samples,
        available=len(train),
    )
    return MicroBatches(
        portions,
        lambda samples: read_samples(train, samples, vocab_size),
        replica=replica,
        seq_length=config.model.seq_length,
        ends=datasets.ends,
    )


def _nodes(ranks: Ranks) -> list[int]:
    """The node of every rank."""
    nodes = [0] * ranks.world
    dist.all_gather_object(nodes, ranks.node_rank)
    return nodes


def _reporter(config: Config, directory: RunDirectory, ranks: Ranks, step: int) -> Reporter:
    if ranks.rank != 0:
        return Reporter([], None)
    sinks = open_sinks(
        directory.path, config.log, resume_step=step, run_name=config.run.name, config_dict=as_dict(config)
    )
    experts = open_experts_sink(directory.path, resume_step=step) if config.model.num_moe_experts is not None else None
    line = ConsoleLine(config.total_steps, config.total_tokens)
    return Reporter(sinks, Console(line, sys.stdout, total_steps=config.total_steps, first_step=step), experts)


@contextmanager
def _exports(config: Config, directory: RunDirectory, ranks: Ranks, incidents: Incidents) -> Iterator[Exports | None]:
    if ranks.rank != 0 or not config.checkpoint.also_save_hf:
        yield None
        return

    def failed(step: int, said: str) -> None:
        print(f"warning: no export of step {step}: {said}", file=sys.stderr)
        incidents.record("export_failed", step=step, rank=0, message=said)

    exports = Exports(directory, failed)
    try:
        yield exports
    finally:
        exports.stop()


def _report_resume(
    found: Found, inputs: Inputs, directory: RunDirectory, incidents: Incidents, allowed: Sequence[str]
) -> None:
    """Says where the run goes on and what has changed since; refuses a change that alters the result unasked."""
    step = found.manifest.step
    for line in found.rejected.values():
        print(f"warning: {line}; falling back to {found.directory.name}", file=sys.stderr)
        incidents.record("damaged_checkpoint", step=step, rank=0, message=line)
    print(f"resuming from {found.directory} (step {step})")
    changes = config_diff(_config_of(found), inputs.config)
    changes += _content_changes(directory, inputs)
    for change in changes:
        print(f"changed since then: {change}")
    refused = [c for c in changes if c.effect == "shape" or (c.effect == "result" and c.key not in allowed)]
    if refused:
        keys = [change.key for change in refused if change.effect != "shape"]
        shapes = [change.key for change in refused if change.effect == "shape"]
        raise UserError(
            f"the config differs from the checkpoint's in {', '.join(c.key for c in refused)}",
            where=str(found.directory),
            mend="; ".join(
                [f"{', '.join(shapes)} cannot change: start another run.dir"] * bool(shapes)
                + ["to go on with it: " + " ".join(f"--allow-change {key}" for key in keys)] * bool(keys)
            ),
        )
    found.set_rejected_aside()


def _config_of(found: Found) -> Config | Mapping[str, Any]:
    """The config that saved a checkpoint; a key that there was not yet has its default, which is what was done then."""
    path = found.directory / CONFIG
    try:
        return load_config(path)
    except UserError:  # by rules that are newer than the checkpoint: what it holds is compared as it stands
        config: Mapping[str, Any] = yaml.safe_load(path.read_text())
        return config


def _content_changes(directory: RunDirectory, inputs: Inputs) -> list[Change]:
    """What is read under the same path as by the last attempt, but has another content: training data, tokenizer."""
    if not directory.environment.is_file():
        return []
    before = json.loads(directory.environment.read_text())
    data = _fingerprints(inputs.config)
    sides: list[tuple[str, str | None, str | None]] = []
    sides.append(("data.tokenizer", before["tokenizer"], inputs.tokenizer.fingerprint))
    for number, source in enumerate(inputs.config.data.train):
        sides.append((f"data.train.{number}", before["data"].get(source.path), data[source.path]))
    return [
        Change(f"{key}.path", f"content {old[:12]}", f"content {new[:12]}", "result")
        for key, old, new in sides
        if old and new and old != new
    ]


def _fingerprints(config: Config) -> dict[str, str | None]:
    """Checksum of each dataset's tokens, from its manifest; None where it has none."""
    sources = (*config.data.train, *config.data.valid, *config.data.test)
    manifests = {source.path: read_manifest(source.path) for source in sources}
    return {path: manifest.bin_sha256 if manifest else None for path, manifest in manifests.items()}


def _record_run(directory: RunDirectory, config: Config, tokenizer: Tokenizer) -> int:
    """Writes what this attempt runs with into the run directory; returns the attempt's number."""
    before = json.loads(directory.environment.read_text()) if directory.environment.is_file() else {}
    attempt = int(before.get("attempt", 0)) + 1
    data = _fingerprints(config)
    facts = {"attempt": attempt} | environment(argv=sys.argv, data=data, tokenizer=tokenizer.fingerprint)
    directory.done.unlink(missing_ok=True)
    write_bytes(directory.config, to_yaml(config).encode())
    write_bytes(directory.environment, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    if not directory.tokenizer.is_dir():
        partial = directory.path / ".tokenizer.partial"
        partial.mkdir(exist_ok=True)
        tokenizer.save_huggingface(partial)
        partial.rename(directory.tokenizer)
    log.info("attempt %d begins", attempt)
    return attempt
