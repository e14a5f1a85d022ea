"""One training step: forward and backward over the micro-batches, the loss, the update."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_batch_on_this_cp_rank, get_model_config
from torch import Tensor

from megatron_lm_zh.compat import cut_by_sequence
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.models.documents import packed_documents
from megatron_lm_zh.optim.freeze import hold_body
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.train.guards import check_finite, check_overflow

Batches = Iterator[dict[str, Tensor]]
T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    """What one step gave."""

    lm_loss: float
    """Mean loss over the tokens of the global batch, weighted by their sources, in nats per token."""
    grad_norm: float | None
    """Global gradient norm before clipping; None where it overflowed (fp16), which skips the update."""
    lr: float
    """Learning rate of this step's update."""
    loss_scale: float | None = None
    """fp16: what the loss was multiplied with."""

    @property
    def updated(self) -> bool:
        """Whether the weights moved."""
        return self.grad_norm is not None


@dataclass(frozen=True)
class Stepper:
    """Model, optimizer and scheduler of this rank, and how to move them one step on."""

    config: Config
    model: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    device: Device

    def __post_init__(self) -> None:
        engine = get_model_config(self.model[0])
        engine.grad_scale_func = self.optimizer.scale_loss
        if self.config.ddp.overlap_grad_reduce:
            engine.no_sync_func = _each([chunk.no_sync for chunk in self.model])
        if self.config.ddp.overlap_param_gather:
            engine.param_sync_func = _each([chunk.start_param_sync for chunk in self.model])

    def step(self, batches: Batches, number: int, samples: int) -> StepResult:
        """One optimizer step over one global batch.

        Args:
            batches: this rank's micro-batches.
            number: the step's number, for the error's sake.
            samples: sequences of the global batch.

        Raises:
            NonFiniteError: the loss or the gradient norm is not a number (in fp16: and the loss scale cannot fall); the
                weights must not be saved.
        """
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        sums = run_batches(self.config, self.model, self.device, batches, self._count(samples), forward_only=False)
        total, tokens = sum_over_ranks(sums, self.device)
        check_finite("loss", total, step=number, mine=float(sums[0]))
        lr = self.optimizer.param_groups[0]["lr"]
        scale = float(self.optimizer.get_loss_scale()) if self.config.precision.dtype == "fp16" else None
        self._freeze(number)
        updated, grad_norm, _ = self.optimizer.step()
        if not updated:
            assert scale is not None, "only a loss scale lets an update be skipped"
            precision = self.config.precision
            check_overflow(scale, precision.loss_scale or precision.min_loss_scale, step=number)
            return StepResult(total / tokens, None, lr, scale)
        check_finite("gradient norm", float(grad_norm), step=number)
        self.scheduler.step(1)
        return StepResult(total / tokens, float(grad_norm), lr, scale)

    def _freeze(self, number: int) -> None:
        """In the steps that train new rows alone, holds everything else."""
        optim = self.config.optim
        if number <= optim.freeze_body_steps:
            assert optim.base_vocab_size is not None
            hold_body(self.model, self.optimizer, optim.base_vocab_size)

    def _count(self, samples: int) -> int:
        """This rank's micro-batches in a global batch."""
        return samples // (self.config.train.micro_batch_size * parallel_state.get_data_parallel_world_size())


@dataclass(frozen=True)
class TokenWeights:
    """The summed weights of a step's tokens. megatron-core sums them in integers, which drops fractions of a token."""

    total: Tensor
    """[], fp32: the sum over this rank's micro-batches so far; stays 0 where there is no loss."""

    def finalize_model_grads(self, model: list[Any], num_tokens: Tensor, **options: Any) -> None:
        """megatron-core's, with gradients divided by the weights' sum over all ranks in place of `num_tokens`."""
        finalize_model_grads(model, self.total, **options)


def run_batches(
    config: Config,
    model: list[DistributedDataParallel],
    device: Device,
    batches: Batches,
    count: int,
    *,
    forward_only: bool,
) -> Tensor:
    """Runs `count` micro-batches through megatron-core's schedule.

    Returns:
        [2]: this rank's sums of the tokens' weighted losses and of their weights, which are 1 for every token that
        counts unless sources are weighted. Only the ranks of the last pipeline stage know; the others return zeros.
    """
    weights = TokenWeights(torch.zeros((), device=device.torch_device))
    get_model_config(model[0]).finalize_model_grads_func = weights.finalize_model_grads
    on_device = (_on(device, batch) for batch in batches)
    # The schedules know packed documents as one sequence a micro-batch.
    rows = config.train.micro_batch_size
    shape = (config.model.seq_length * rows, 1) if config.data.reset_attention_mask else (config.model.seq_length, rows)
    reports: list[dict[str, Any]] = get_forward_backward_func()(
        forward_step_func=partial(forward_step, weights),
        data_iterator=_each(list(itertools.tee(on_device, len(model)))),  # each chunk sees every micro-batch
        model=model,
        num_microbatches=count,
        seq_length=shape[0],
        micro_batch_size=shape[1],
        forward_only=forward_only,
    )
    if not reports:
        return torch.zeros(2, dtype=torch.float64)
    return torch.stack([report["lm_loss"] for report in reports]).double().sum(dim=0).cpu()


def forward_step(weights: TokenWeights, batches: Batches, model: torch.nn.Module) -> tuple[Tensor, Any]:
    """One micro-batch through this rank's stage, as megatron-core's schedules call it.

    Where documents are packed, its b rows of s tokens become one of b * s.

    Returns:
        The stage's output ([s, b, h], or the losses [b, s] on the last stage) and the function that sums the losses.
    """
    batch = dict(next(batches))  # the chunks of this rank share it, and it is cut in place
    packed = None
    if (bounds := batch.pop("cu_seqlens", None)) is not None:
        batch = {name: rows.reshape(1, -1) for name, rows in batch.items()}
        several = parallel_state.get_context_parallel_world_size() > 1
        packed = packed_documents(bounds, context_parallel=several, device=batch["tokens"].device)
    group = parallel_state.get_context_parallel_group()
    batch = cut_by_sequence(get_batch_on_this_cp_rank)(batch, cp_group=group)
    output = model(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        packed_seq_params=packed,
    )
    return output, partial(_sum_losses, weights, batch["loss_mask"])


def _sum_losses(weights: TokenWeights, mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weighted sum of losses [b, s], number of tokens that count, and the sums as the report of this micro-batch."""
    total = (losses.float() * mask).sum()
    tokens = mask.sum()
    weights.total.add_(tokens)
    return total, mask.count_nonzero().int(), {"lm_loss": torch.stack([total.detach(), tokens])}


def _each(of_chunks: list[T]) -> T | list[T]:
    """One thing a model chunk, as megatron-core's schedules take it: bare where there is one chunk."""
    return of_chunks if len(of_chunks) > 1 else of_chunks[0]


def _on(device: Device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch on the device, but for the documents' bounds, which the host reads first."""
    host = {"cu_seqlens"} & batch.keys()
    moved = {name: device.receive(batch[name]) for name in batch.keys() - host}
    return moved | {name: batch[name] for name in host}


def sum_over_ranks(sums: Tensor, device: Device) -> tuple[float, float]:
    """Adds the ranks' sums [2] of losses and weights; every rank gets the same totals, any rank's NaN included."""
    reduced = sums.to(device.torch_device, copy=True)  # the caller's own sums name the rank that a NaN came from
    dist.all_reduce(reduced)
    copies = parallel_state.get_tensor_model_parallel_world_size()  # tensor-parallel ranks have the same losses
    total, tokens = (reduced / copies).tolist()
    return total, tokens
