"""The z-loss inside the cross entropy: its gradient is autograd's, and the reported loss is without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.pool import RankPool
from torch import Tensor

pytestmark = pytest.mark.dist

COEFFICIENT, VOCABULARY, REAL = 3e-2, 40, 18  # the real ids end on the first of two ranks: the other has padding only


def _example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 5 * torch.randn(6, 3, VOCABULARY, generator=generator)
    labels = torch.randint(0, REAL, (6, 3), generator=generator)
    return logits, labels, torch.rand(6, 3, generator=generator)


def _losses(ranks: Any, device: Any, coefficient: float, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Losses [s, b] and this rank's part of the gradient of the logits, over a vocabulary split over the world."""
    import torch.distributed as dist

    from megatron_lm_zh.models.loss import cross_entropy, hide_padding

    logits, labels, weights = _example()
    rows = VOCABULARY // ranks.world
    address = f"tcp://{ranks.master_address}:{ranks.master_port}"
    dist.init_process_group("gloo", init_method=address, rank=ranks.rank, world_size=ranks.world)
    try:
        part = logits[..., ranks.rank * rows : (ranks.rank + 1) * rows].clone().requires_grad_()
        hidden = hide_padding(part * 1, vocab_size, dist.group.WORLD)
        losses = cross_entropy(hidden, labels, dist.group.WORLD, coefficient)
        (losses * weights).sum().backward()
    finally:
        dist.destroy_process_group()
    assert part.grad is not None
    return losses.detach(), part.grad


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("vocab_size", [VOCABULARY, REAL])
def test_gradient_is_that_of_the_z_loss(ranks: RankPool, world: int, vocab_size: int) -> None:
    logits, labels, weights = _example()
    exact = logits.double().requires_grad_()
    real = exact[..., :vocab_size]
    expected = torch.nn.functional.cross_entropy(real.flatten(0, 1), labels.flatten(), reduction="none").view(6, 3)
    ((expected + COEFFICIENT * real.logsumexp(-1) ** 2) * weights).sum().backward()
    assert exact.grad is not None
    answers = ranks.run(world, _losses, COEFFICIENT, vocab_size)
    for losses, _ in answers:
        torch.testing.assert_close(losses.double(), expected.detach(), atol=1e-5, rtol=1e-6)
    gradient = torch.cat([part for _, part in answers], dim=-1).double()
    torch.testing.assert_close(gradient, exact.grad, atol=1e-6, rtol=1e-5)


def test_without_a_coefficient_the_gradient_is_another(ranks: RankPool) -> None:
    ((_, without),) = ranks.run(1, _losses, 0.0, VOCABULARY)
    ((_, with_it),) = ranks.run(1, _losses, COEFFICIENT, VOCABULARY)
    assert float((without - with_it).abs().max()) > 1e-2
