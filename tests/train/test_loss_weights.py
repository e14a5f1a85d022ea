"""Weights of sources in the loss: what is reported and trained on is the weighted mean over tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist

WEIGHTS = (0.3, 2.55)


def weighted_and_apart(ranks: Any, device: Any, config: str) -> tuple[list[Any], list[Any]]:
    """Runs in the pool: sums and gradients of two weighted micro-batches together, and of each by itself."""
    from dataclasses import replace

    import torch

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.data.batch import make_batch
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.runtime.groups import process_groups
    from megatron_lm_zh.train.step import run_batches

    loaded = load_config(config, ["model.num_layers=1"])
    loaded = replace(loaded, model=replace(loaded.model, vocab_size=400))
    rows = torch.randint(400, (2, 2, 33), generator=torch.Generator().manual_seed(1))
    with process_groups(loaded, ranks, device):
        model = build_model(loaded, device)

        def run(batches: list[Any]) -> tuple[list[float], dict[str, Any]]:
            model[0].zero_grad_buffer()
            sums = run_batches(loaded, model, device, iter(batches), len(batches), forward_only=False)
            return sums.tolist(), {name: +p.main_grad for name, p in model[0].named_parameters()}

        # A micro-batch of either source, and one of both.
        mixed = [make_batch(pair, None, torch.tensor(WEIGHTS)) for pair in rows]
        return [run(mixed)], [run([make_batch(rows[:, source])]) for source in (0, 1)]


def test_loss_and_gradient_are_weighted_means(ranks: RankPool, tiny_run: Path) -> None:
    ((together,), apart) = ranks.run(1, weighted_and_apart, str(tiny_run))[0]
    sums, gradients = together
    total = sum(WEIGHTS) * 64
    assert sums[1] == pytest.approx(total, rel=1e-6)
    assert total != int(total)
    losses = [found[0][0] for found in apart]
    assert sums[0] == pytest.approx(sum(w * loss for w, loss in zip(WEIGHTS, losses, strict=True)), rel=1e-6)
    for name, gradient in gradients.items():
        wanted = sum(w * 64 / total * found[1][name] for w, found in zip(WEIGHTS, apart, strict=True))
        assert (gradient - wanted).norm() <= 1e-6 * max(1.0, wanted.norm()), name
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm(), name
