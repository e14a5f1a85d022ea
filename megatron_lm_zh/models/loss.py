"""The language model's loss over a vocabulary that is split over the tensor-parallel ranks, in few passes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp


class _CrossEntropy(torch.autograd.Function):
    """Each rank normalises over its own rows in one fused pass; a number a token then puts the parts together."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: ProcessGroup, z_loss_coeff: float) -> Tensor:
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        rows = logits.shape[-1]
        own = labels - group.rank() * rows
        elsewhere = (own < 0) | (own >= rows)
        own = own.masked_fill_(elsewhere, 0).unsqueeze(-1)
        chosen = log_probs.gather(-1, own)
        share = log_sum = None
        if group.size() > 1 or z_loss_coeff:
            log_sum = logits.gather(-1, own).float() - chosen  # what log_softmax took off
        if group.size() > 1:
            share, log_sum = _log_share(log_sum, group)
            chosen = (chosen + share).masked_fill_(elsewhere.unsqueeze(-1), 0)
            dist.all_reduce(chosen, group=group)
        ctx.save_for_backward(log_probs, own, elsewhere, share, log_sum if z_loss_coeff else None)
        ctx.dtype, ctx.z_loss_coeff = logits.dtype, z_loss_coeff
        return -chosen.squeeze(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        log_probs, own, elsewhere, share, log_sum = ctx.saved_tensors
        # Softmax minus one-hot, in the buffer of the forward pass: it is the largest of all and not used again.
        result = log_probs if share is None else log_probs.add_(share)
        result.exp_()
        if log_sum is not None:
            result.mul_(1 + 2 * ctx.z_loss_coeff * log_sum)  # the softmax is the gradient of log_sum
        result.scatter_add_(-1, own, elsewhere.float().sub_(1).unsqueeze(-1))
        return result.mul_(gradient.unsqueeze(-1)).to(ctx.dtype), None, None, None


def cross_entropy(logits: Tensor, labels: Tensor, group: ProcessGroup, z_loss_coeff: float = 0.0) -> Tensor:
    """Cross entropy of every token, in nats; its gradient is that of the cross entropy with the z-loss.

    The z-loss (PaLM, arXiv:2204.02311, section 5) keeps the softmax's normaliser Z near 1. What is returned, and so
    reported, is without it, and stays comparable between runs; only the gradient is that of
    ``cross_entropy + z_loss_coeff * log(Z) ** 2``.

    Args:
        logits: [s, b, v / t], this rank's part of the vocabulary.
        labels: [s, b], ids of the whole vocabulary.
        group: the t tensor-parallel ranks.
        z_loss_coeff: weight of log(Z) ** 2.

    Returns:
        [s, b], fp32, the same on every rank of the group.
    """
    return _CrossEntropy.apply(logits, labels, group, z_loss_coeff)


class _HidePadding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: int) -> Tensor:
        logits[..., rows:] = torch.finfo(logits.dtype).min / 2  # not -inf: a rank may hold nothing but padding
        ctx.mark_dirty(logits)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None  # it is 0 where the probability is


def hide_padding(logits: Tensor, vocab_size: int, group: ProcessGroup) -> Tensor:
    """Takes the rows that only pad the vocabulary out of the softmax, in place.

    The loss is then that of the exported model, which has no such rows.

    Args:
        logits: [s, b, v / t], this rank's part of the padded vocabulary.
        vocab_size: ids that there are.
        group: the t tensor-parallel ranks.
    """
    rows = vocab_size - group.rank() * logits.shape[-1]
    return logits if rows >= logits.shape[-1] else _HidePadding.apply(logits, max(0, rows))


def _log_share(log_sum: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """log of this rank's part of sum(exp(logits)), from the log of its own sum; and log of the whole sum."""
    largest = log_sum.clone()
    dist.all_reduce(largest, op=ReduceOp.MAX, group=group)
    total = (log_sum - largest).exp_()
    dist.all_reduce(total, group=group)
    total.log_()
    return log_sum - largest - total, largest + total
