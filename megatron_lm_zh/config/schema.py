"""The config: one frozen dataclass a section; the text under a field is its manual (`mlzh config explain`).

Fields that megatron-core also has keep megatron-core's name. What megatron-core can do and no field here names is set
under a section's `megatron:` table, which the loader checks against the installed megatron-core.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT, PositiveInt
from megatron_lm_zh.config.batch_ramp import BatchSizes
from megatron_lm_zh.config.schedules import Cosine, Schedule
from megatron_lm_zh.config.sections.data import Data
from megatron_lm_zh.config.sections.model import Model
from megatron_lm_zh.config.sections.optim import Ddp, Optim
from megatron_lm_zh.config.sections.parallel import Parallel
from megatron_lm_zh.config.sections.precision import Kernels, Precision


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Run:
    """Where the run lives and what makes it repeatable."""

    dir: str
    """Run directory: config, metrics, logs and checkpoints are written here, and a second start resumes from here."""
    name: str = "pretrain"
    """Name of the run in logs, TensorBoard and W&B."""
    seed: int = Field(default=1234, ge=0)
    """Seed of initialisation, data order and dropout. The parallel layout does not change what it draws."""
    deterministic: bool = False
    """Ask for deterministic kernels (slower on a GPU; a CPU run is deterministic anyway)."""
    startup_timeout_s: int = Field(default=1800, gt=0)
    """Process-group timeout, in seconds, until the first step is done (building, loading and compiling take long)."""
    step_timeout_s: int = Field(default=600, gt=0)
    """Process-group timeout, in seconds, from the second step on: how long a hang may last before the job ends."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Train:
    """How long and in what portions."""

    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps of the whole run. Give either this or `tokens`."""
    tokens: int | None = Field(default=None, gt=0)
    """Tokens of the whole run, rounded up to whole steps."""
    micro_batch_size: int = Field(default=1, gt=0)
    """Sequences in one forward pass of one rank."""
    global_batch_size: int = PositiveInt
    """Sequences in one optimizer step over all ranks; gradients accumulate over the micro-batches."""
    rampup_batch_size: tuple[int, int, int] | None = None
    """[start, increment, samples]: the batch grows from `start` to global_batch_size by `increment`, over `samples`."""
    z_loss_coeff: float = Field(default=0.0, ge=0)
    """Weight of the squared logarithm of the softmax's normaliser in the loss (PaLM, 2022; 1e-4 is usual)."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Checkpoint:
    """What is kept, how often."""

    interval: int = Field(default=1000, gt=0)
    """Steps between checkpoints. The last step is always saved."""
    keep_last: int = Field(default=3, gt=0)
    """Complete checkpoints kept; older ones are deleted after a newer one is complete."""
    async_save: bool = True
    """Write while training goes on."""
    also_save_hf: bool = False
    """Convert every kept checkpoint to a Hugging Face directory, hf/iter_N in the run directory, while training goes
    on: a process beside rank 0 does it with one thread."""
    distrib_optim_sharding_type: Literal["fully_reshardable", "dp_reshardable"] = "fully_reshardable"
    """Distributed optimizer: `fully_reshardable` is gathered over the data-parallel ranks and resumes in any layout;
    `dp_reshardable` is written by each rank as it is, faster over many ranks, and resumes in the same layout alone."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Evaluate:
    """Periodic validation."""

    interval: int = Field(default=1000, gt=0)
    """Steps between validations. The last step is always validated."""
    batches: int = Field(default=32, gt=0)
    """Global batches read from each source at one validation (fewer where a source is smaller)."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Log:
    """What is reported where. The run directory's metrics.jsonl is always written."""

    interval: int = Field(default=10, gt=0)
    """Steps between console and metrics lines."""
    tensorboard: bool = True
    """Write TensorBoard events to the run directory, where the package is installed."""
    wandb_project: str | None = None
    """W&B project to report to; null does not."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Profile:
    """Where the time goes."""

    steps: tuple[int, int] | None = None
    """First and last step to trace with torch's profiler (and a GPU memory snapshot); written to logs/."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Config:
    """A whole run."""

    run: Run
    model: Model
    parallel: Parallel = Field(default_factory=Parallel)
    precision: Precision = Field(default_factory=Precision)
    kernels: Kernels = Field(default_factory=Kernels)
    data: Data
    train: Train
    optim: Optim
    ddp: Ddp = Field(default_factory=Ddp)
    schedule: Schedule = Field(default_factory=Cosine)
    """The learning rate over the run, one class for each `kind` (see schedules.py)."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    log: Log = Field(default_factory=Log)
    profile: Profile = Field(default_factory=Profile)

    @property
    def replica_size(self) -> int:
        """Ranks that work on one copy of the batch's sequences: tensor x context x pipeline."""
        return self.parallel.tensor * self.parallel.context * self.parallel.pipeline

    @property
    def smallest_world(self) -> int:
        """The fewest ranks that hold this layout: whole replicas, and whole sets of experts."""
        return math.lcm(self.replica_size, self.expert_replica_size)

    @property
    def expert_replica_size(self) -> int:
        """Ranks that together hold every expert once: expert x expert_tensor x pipeline."""
        if self.model.num_moe_experts is None:
            return self.replica_size
        return self.parallel.expert * self.parallel.expert_tensor * self.parallel.pipeline

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, from `train.steps` or `train.tokens`."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None  # held by rules/batch.py
        return self.batch_sizes.steps_for(-(-self.train.tokens // self.model.seq_length))

    @property
    def total_tokens(self) -> int:
        """Tokens in the optimizer steps of the whole run."""
        return self.batch_sizes.consumed_by(self.total_steps) * self.model.seq_length

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step, after the batch's ramp-up where there is one."""
        return self.train.global_batch_size * self.model.seq_length

    @property
    def batch_sizes(self) -> BatchSizes:
        """Sequences in each optimizer step."""
        return BatchSizes(self.train.global_batch_size, self.train.rampup_batch_size)

    def data_parallel_size(self, world: int) -> int:
        """Ranks that work on different sequences in a world of `world` ranks."""
        return world // self.replica_size
