"""Cross entropy against torch's own, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.pool import RankPool
from torch import Tensor


def _losses(ranks: Any, device: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Losses [s, b] and this rank's part of the gradient of the logits, over a vocabulary split over the world."""
    import torch.distributed as dist

    from megatron_lm_zh.models.loss import cross_entropy

    logits, labels, weights = _example(dtype)
    rows = logits.shape[-1] // ranks.world
    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=ranks.world)
    try:
        part = logits[..., ranks.rank * rows : (ranks.rank + 1) * rows].clone().requires_grad_()
        losses = cross_entropy(part, labels, dist.group.WORLD)
        (losses * weights).sum().backward()
    finally:
        dist.destroy_process_group()
    assert part.grad is not None
    return losses.detach(), part.grad


def _example(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 20 * torch.randn(6, 3, 40, generator=generator)  # so peaked that sums of exp underflow without care
    logits[0, 0, :20] -= 200  # one rank holds next to nothing of this token's probability
    labels = torch.randint(0, 40, (6, 3), generator=generator)
    return logits.to(dtype), labels, torch.rand(6, 3, generator=generator)


@pytest.mark.dist
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy(ranks: RankPool, world: int, dtype: torch.dtype) -> None:
    logits, labels, weights = _example(dtype)
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="none").view(6, 3)
    (expected * weights).sum().backward()
    assert exact.grad is not None
    answers = ranks.run(world, _losses, dtype)
    for losses, _ in answers:
        torch.testing.assert_close(losses.double(), expected.detach(), atol=1e-5, rtol=1e-6)
    gradient = torch.cat([part for _, part in answers], dim=-1)
    assert gradient.dtype is dtype
    tolerance = 1e-6 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(gradient.double(), exact.grad, atol=tolerance, rtol=tolerance)


def _losses_of_a_padded_vocabulary(ranks: Any, device: Any, vocab_size: int) -> tuple[Tensor, Tensor]:
    import torch.distributed as dist

    from megatron_lm_zh.models.loss import cross_entropy, hide_padding

    logits, labels, weights = _example(torch.float32)
    rows = logits.shape[-1] // ranks.world
    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=ranks.world)
    try:
        part = logits[..., ranks.rank * rows : (ranks.rank + 1) * rows].clone().requires_grad_()
        own = hide_padding(part * 1.0, vocab_size, dist.group.WORLD)
        losses = cross_entropy(own, labels % vocab_size, dist.group.WORLD)
        (losses * weights).sum().backward()
    finally:
        dist.destroy_process_group()
    assert part.grad is not None
    return losses.detach(), part.grad


@pytest.mark.dist
@pytest.mark.parametrize("vocab_size", [40, 35, 17], ids=["no-padding", "some-rows", "a-whole-rank"])
def test_rows_that_pad_the_vocabulary_are_not_in_the_softmax(ranks: RankPool, vocab_size: int) -> None:
    logits, labels, weights = _example(torch.float32)
    exact = logits[..., :vocab_size].double().requires_grad_()
    targets = (labels % vocab_size).flatten()
    expected = torch.nn.functional.cross_entropy(exact.flatten(0, 1), targets, reduction="none").view(6, 3)
    (expected * weights).sum().backward()
    assert exact.grad is not None
    answers = ranks.run(4, _losses_of_a_padded_vocabulary, vocab_size)
    torch.testing.assert_close(answers[0][0].double(), expected.detach(), atol=1e-5, rtol=1e-6)
    gradient = torch.cat([part for _, part in answers], dim=-1)
    torch.testing.assert_close(gradient[..., :vocab_size].double(), exact.grad, atol=1e-6, rtol=1e-6)
    assert not gradient[..., vocab_size:].any()
