"""One training step: forward and backward over the micro-batches, the loss, the update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config
from torch import Tensor

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.train.guards import check_finite

Batches = Iterator[dict[str, Tensor]]


@dataclass(frozen=True)
class StepResult:
    """What one step gave."""

    lm_loss: float
    """Mean loss over the tokens of the global batch, in nats per token."""
    grad_norm: float
    """Global gradient norm before clipping."""
    lr: float
    """Learning rate of this step's update."""


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
        engine.finalize_model_grads_func = finalize_model_grads
        engine.grad_scale_func = self.optimizer.scale_loss
        if self.config.ddp.overlap_grad_reduce:
            engine.no_sync_func = self.model[0].no_sync
        if self.config.ddp.overlap_param_gather:
            engine.param_sync_func = self.model[0].start_param_sync

    def step(self, batches: Batches, number: int) -> StepResult:
        """One optimizer step over one global batch.

        Args:
            batches: this rank's micro-batches.
            number: the step's number, for the error's sake.

        Raises:
            NonFiniteError: the loss or the gradient norm is not a number; the weights must not be saved.
        """
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        sums = run_batches(self.config, self.model, self.device, batches, self._micro_batches(), forward_only=False)
        total, tokens = sum_over_ranks(sums, self.device)
        check_finite("loss", total, step=number, mine=float(sums[0]))
        lr = self.optimizer.param_groups[0]["lr"]
        _, grad_norm, _ = self.optimizer.step()
        check_finite("gradient norm", float(grad_norm), step=number)
        self.scheduler.step(1)
        return StepResult(total / tokens, float(grad_norm), lr)

    def _micro_batches(self) -> int:
        replicas = parallel_state.get_data_parallel_world_size()
        return self.config.train.global_batch_size // (self.config.train.micro_batch_size * replicas)


def run_batches(
    config: Config,
    model: list[DistributedDataParallel],
    device: Device,
    batches: Batches,
    count: int,
    *,
    forward_only: bool,
) -> Tensor:
    """Runs `count` micro-batches through megatron-core's schedule; returns [2]: this rank's sums of losses and tokens.

    Only the ranks of the last pipeline stage know the loss; the others return zeros.
    """
    reports: list[dict[str, Any]] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=(_on(device, batch) for batch in batches),
        model=model,
        num_microbatches=count,
        seq_length=config.model.seq_length,
        micro_batch_size=config.train.micro_batch_size,
        forward_only=forward_only,
    )
    if not reports:
        return torch.zeros(2, dtype=torch.float64)
    return torch.stack([report["lm_loss"] for report in reports]).double().sum(dim=0).cpu()


def forward_step(batches: Batches, model: torch.nn.Module) -> tuple[Tensor, Any]:
    """One micro-batch through this rank's stage, as megatron-core's schedules call it.

    Returns:
        The stage's output ([s, b, h], or the losses [b, s] on the last stage) and the function that sums the losses.
    """
    batch = next(batches)
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return output, partial(_sum_losses, batch["loss_mask"])


def _sum_losses(mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Masked sum of losses [b, s], number of tokens counted, and both as the report of this micro-batch."""
    total = (losses.float() * mask).sum()
    tokens = mask.sum()
    return total, tokens.int(), {"lm_loss": torch.stack([total.detach(), tokens])}


def _on(device: Device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device.torch_device, non_blocking=True) for name, tensor in batch.items()}


def sum_over_ranks(sums: Tensor, device: Device) -> tuple[float, float]:
    """Adds the ranks' sums [2] of losses and tokens; every rank gets the same totals, a NaN of any of them included."""
    reduced = sums.to(device.torch_device, copy=True)  # the caller's own sums name the rank that a NaN came from
    dist.all_reduce(reduced)
    copies = parallel_state.get_tensor_model_parallel_world_size()  # tensor-parallel ranks have the same losses
    total, tokens = (reduced / copies).tolist()
    return total, tokens
