"""The config: one frozen dataclass a section; the text under a field is its manual (`mlzh config explain`).

Fields that megatron-core also has keep megatron-core's name. What megatron-core can do and no field here names is set
under a section's `megatron:` table, which the loader checks against the installed megatron-core.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_lm_zh.config.base import STRICT
from megatron_lm_zh.config.schedules import Cosine, Schedule

PositiveInt = Field(gt=0)


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
class Model:
    """The network."""

    family: Literal["llama"] = "llama"
    """Model family: which Hugging Face architecture the checkpoint becomes (see megatron_lm_zh/families)."""
    num_layers: int = PositiveInt
    """Number of transformer layers."""
    hidden_size: int = PositiveInt
    """Width of the residual stream."""
    num_attention_heads: int = PositiveInt
    """Number of query heads."""
    num_query_groups: int = Field(default_factory=lambda model: model["num_attention_heads"], gt=0)
    """Number of key/value heads (grouped-query attention). Default: num_attention_heads."""
    kv_channels: int = Field(default_factory=lambda model: model["hidden_size"] // model["num_attention_heads"], gt=0)
    """Channels of one head. Default: hidden_size / num_attention_heads."""
    ffn_hidden_size: int = Field(default_factory=lambda model: -(-8 * model["hidden_size"] // 3 // 64) * 64, gt=0)
    """Inner width of the gated MLP. Default: 8/3 hidden_size, rounded up to a multiple of 64."""
    seq_length: int = PositiveInt
    """Tokens in one training sequence."""
    max_position_embeddings: int = Field(default_factory=lambda model: model["seq_length"], gt=0)
    """Longest sequence that the exported model claims to take. Default: seq_length."""
    vocab_size: int | None = Field(default=None, gt=0)
    """Number of token ids. Default: the tokenizer's. May be larger than the tokenizer's, never smaller."""
    make_vocab_size_divisible_by: int = Field(default=128, gt=0)
    """The embedding has vocab_size rows rounded up to a multiple of this, whatever the layout."""
    tie_embeddings: bool = False
    """Whether the output layer shares the word embedding's weight."""
    rotary_base: int = Field(default=10000, gt=0)
    """Base of the rotary position embedding (theta)."""
    layernorm_epsilon: float = Field(default=1e-5, gt=0)
    """Epsilon of RMSNorm."""
    init_method_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights; residual projections get this / sqrt(2 num_layers)."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the attention probabilities."""
    hidden_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of embeddings and residual branches."""
    recompute_granularity: Literal["selective", "full"] | None = None
    """Activation recompute: `selective` redoes the core attention, `full` whole layers, null nothing."""
    recompute_method: Literal["uniform", "block"] | None = None
    """With `full`: `uniform` splits all layers into chunks, `block` recomputes the first layers of a stage."""
    recompute_num_layers: int | None = Field(default=None, gt=0)
    """With `full`: layers a chunk (`uniform`) or layers recomputed in a stage (`block`)."""
    megatron: dict[str, Any] = Field(default_factory=dict)
    """Further fields of megatron-core's TransformerConfig, by their own names."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Parallel:
    """The layout. Data parallelism is what is left: world / (tensor x pipeline)."""

    tensor: int = Field(default=1, gt=0)
    """Tensor-parallel size: ranks that share each layer's matrices. Keep it inside a node."""
    pipeline: int = Field(default=1, gt=0)
    """Pipeline-parallel size: ranks that each hold a run of consecutive layers."""
    sequence: bool = False
    """Sequence parallelism: norms and dropout are split along the sequence over the tensor-parallel ranks."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Precision:
    """Number formats."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    """Format of weights and activations. With bf16 the optimizer keeps fp32 master weights."""
    fp8: Literal["hybrid", "e4m3"] | None = None
    """FP8 matrix multiplications through Transformer Engine, on GPUs that have them."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Tokenizer:
    """Which tokenizer turned text into ids."""

    type: Literal["SentencePiece", "HuggingFace"]
    """`SentencePiece` (a .model file) or `HuggingFace` (a directory)."""
    path: str
    """Path of the .model file or of the directory."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Source:
    """One dataset of a blend."""

    path: str
    """Prefix of a .bin/.idx pair, e.g. `data/zh_text_document`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this source in the blend; weights are normalised to sum to 1."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Data:
    """What is read."""

    tokenizer: Tokenizer
    """The tokenizer that made the datasets."""
    train: tuple[Source, ...] = Field(min_length=1)
    """The blend to train on."""
    valid: tuple[Source, ...] = ()
    """Datasets to validate on, each reported by itself. Default: the valid share of `split` of every train source."""
    test: tuple[Source, ...] = ()
    """Datasets evaluated once at the end of the run. Default: the test share of `split`, where it is not 0."""
    split: str = Field(default="99,1,0", pattern=r"^\s*\d+(\.\d+)?(\s*,\s*\d+(\.\d+)?){2}\s*$")
    """Shares of a train source's documents used to train, validate and test, e.g. `98,1,1`."""


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


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Optim:
    """AdamW."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; norms and biases have none."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Adam's second moment."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    use_distributed_optimizer: bool = False
    """Shard optimizer states over the data-parallel ranks (ZeRO-1)."""
    megatron: dict[str, Any] = Field(default_factory=dict)
    """Further fields of megatron-core's OptimizerConfig, by their own names."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Ddp:
    """Gradient reduction over the data-parallel ranks."""

    overlap_grad_reduce: bool = False
    """Reduce gradients bucket by bucket while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass goes on (needs the distributed optimizer)."""
    megatron: dict[str, Any] = Field(default_factory=dict)
    """Further fields of megatron-core's DistributedDataParallelConfig, by their own names."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Checkpoint:
    """What is kept, how often."""

    interval: int = Field(default=1000, gt=0)
    """Steps between checkpoints. The last step is always saved."""
    keep_last: int = Field(default=3, gt=0)
    """Complete checkpoints kept; older ones are deleted after a newer one is complete."""
    async_save: bool = True
    """Write while training goes on."""


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
    def model_parallel_size(self) -> int:
        """Ranks that together hold one copy of the model: the smallest valid world."""
        return self.parallel.tensor * self.parallel.pipeline

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, from `train.steps` or `train.tokens`."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None  # held by rules/batch.py
        return -(-self.train.tokens // self.tokens_per_step)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step."""
        return self.train.global_batch_size * self.model.seq_length

    def data_parallel_size(self, world: int) -> int:
        """Copies of the model in a world of `world` ranks."""
        return world // self.model_parallel_size
