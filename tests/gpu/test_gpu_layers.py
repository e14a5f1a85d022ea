"""Transformer Engine's layers against the local ones, on one GPU: the same weights give the same steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.gpu

STEPS = 5
EXPERTS = ["model.family=mixtral", "model.num_moe_experts=4", "model.moe_ffn_hidden_size=64"]
LATENT = [
    "model.family=gpt",
    "model.multi_latent_attention=true",
    "model.num_query_groups=4",
    "model.kv_lora_rank=32",
    "model.qk_head_dim=32",
    "model.qk_pos_emb_head_dim=32",
    "model.v_head_dim=32",
]
NETWORKS = {
    "dense": [],
    "experts": EXPERTS,
    "latent attention": LATENT,
    "window": ["model.family=gpt", "model.window_size=[8,0]"],
    "sandwich": ["model.family=glm4_0414"],
}
RECIPES = {"delayed": "hybrid", "tensorwise": "hybrid", "blockwise": "e4m3", "mxfp8": "e4m3"}


def losses(ranks: Any, device: Any, config: str, overrides: list[str], transformer_engine: bool) -> list[Any]:
    """Runs on the pool's rank: the first steps, or the line that refuses them."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.errors import UserError
    from megatron_lm_zh.parity.record import record
    from megatron_lm_zh.runtime.capabilities import check_device

    device = replace(device, transformer_engine=device.transformer_engine and transformer_engine)
    loaded = load_config(config, overrides, world=1)
    try:
        check_device(loaded, device)
    except UserError as refusal:
        return [str(refusal)]
    return [step.lm_loss for step in record(loaded, ranks, device, steps=STEPS)]


@pytest.mark.parametrize("name", NETWORKS)
def test_transformer_engine_takes_the_same_steps(name: str, ranks: RankPool, tiny_run: Path) -> None:
    pytest.importorskip("transformer_engine")
    overrides = [*NETWORKS[name], "precision.dtype=bf16", "model.hidden_size=128", "model.num_attention_heads=4"]
    (local,) = ranks.run(1, losses, str(tiny_run), overrides, False)
    (theirs,) = ranks.run(1, losses, str(tiny_run), overrides, True)
    assert max(abs(a - b) for a, b in zip(local, theirs, strict=True)) < 2e-2


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_learns_or_is_refused_in_words(recipe: str, ranks: RankPool, tiny_run: Path) -> None:
    pytest.importorskip("transformer_engine")
    shape = ["model.hidden_size=256", "model.num_attention_heads=4", "model.num_query_groups=4"]
    numbers = ["precision.dtype=bf16", f"precision.fp8={RECIPES[recipe]}", f"precision.fp8_recipe={recipe}"]
    (found,) = ranks.run(1, losses, str(tiny_run), [*shape, *numbers], True)
    if isinstance(found[0], str):
        pytest.skip(found[0])
    (bf16,) = ranks.run(1, losses, str(tiny_run), [*shape, numbers[0]], True)
    assert max(abs(a - b) for a, b in zip(found, bf16, strict=True)) < 0.1
    assert found[-1] < found[0]


def test_grouped_experts_take_the_same_steps(ranks: RankPool, tiny_run: Path) -> None:
    pytest.importorskip("transformer_engine")
    overrides = [*EXPERTS, "precision.dtype=bf16", "model.hidden_size=128", "model.num_attention_heads=4"]
    (one_by_one,) = ranks.run(1, losses, str(tiny_run), overrides, True)
    (grouped,) = ranks.run(1, losses, str(tiny_run), [*overrides, "model.moe_grouped_gemm=true"], True)
    assert max(abs(a - b) for a, b in zip(one_by_one, grouped, strict=True)) < 2e-2
