"""Resume of everything that a layout can be: bit for bit where it stays, within rounding where it changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.pool import RankPool
from support.tiny import tiny_config
from support.training import pretrain, rows

pytestmark = pytest.mark.dist

STEPS = ["train.steps=4", "checkpoint.interval=2", "evaluate.interval=4", "evaluate.batches=1", "model.seq_length=16"]
DROPOUT = ["model.hidden_dropout=0.1", "model.attention_dropout=0.1"]
DISTRIBUTED = ["optim.use_distributed_optimizer=true"]
BUCKETS = ["ddp.overlap_grad_reduce=true", "ddp.megatron.bucket_size=3000"]
BY_RANK = ["checkpoint.distrib_optim_sharding_type=dp_reshardable"]
TP2, PP2, CP2, EP2 = (["parallel." + axis + "=2"] for axis in ("tensor", "pipeline", "context", "expert"))
SEQUENCE = [*TP2, "parallel.sequence=true"]
VPP2 = [*PP2, "parallel.virtual_pipeline=2"]

TWO_LAYERS = ["model.num_layers=2"]
THREE_LAYERS = ["model.num_layers=3"]
EXPERTS = [
    *TWO_LAYERS,
    "model.family=gpt",
    "model.num_moe_experts=4",
    "model.moe_ffn_hidden_size=64",
    "model.moe_aux_loss_coeff=0.01",
]
NO_LOSS = "model.moe_aux_loss_coeff=0"  # that of a part of the sequence is another one's
BIAS = [
    "model.moe_router_score_function=sigmoid",
    "model.moe_router_load_balancing_type=none",
    "model.moe_aux_loss_coeff=0",
    "model.moe_router_enable_expert_bias=true",
    "model.moe_router_bias_update_rate=0.05",
]
LATENT = [
    *TWO_LAYERS,
    "model.family=gpt",
    "model.multi_latent_attention=true",
    "model.num_query_groups=4",
    "model.q_lora_rank=32",
    "model.kv_lora_rank=16",
    "model.qk_head_dim=8",
    "model.qk_pos_emb_head_dim=8",
    "model.v_head_dim=8",
]
PREDICTION = [*TWO_LAYERS, "model.family=gpt", "model.mtp_num_layers=1"]
FP16 = [*TWO_LAYERS, "precision.dtype=fp16", "precision.hysteresis=1", "precision.loss_scale_window=1"]
OVERFLOWING = "precision.initial_loss_scale=4294967296"
UNEVEN = [*PP2, "parallel.num_layers_in_first_pipeline_stage=2"]


@dataclass(frozen=True)
class Case:
    """A model, the layout that saves it (ranks, overrides), and layouts that resume it."""

    model: list[str]
    world: int
    layout: list[str]
    others: dict[str, tuple[int, list[str]]]
    slow: bool = True


CASES = {
    "pp2-vpp2-dropout": Case(DROPOUT, 2, VPP2, {}),
    "pp2-vpp2": Case([], 2, VPP2, {"one-rank": (1, [])}, slow=False),
    "uneven": Case(THREE_LAYERS, 2, UNEVEN, {"one-rank": (1, [])}),
    "ep2": Case([*EXPERTS, NO_LOSS], 2, EP2, {"ep1": (1, []), "tp2": (2, SEQUENCE)}, slow=False),
    "ep1": Case(EXPERTS, 1, [], {"ep2": (2, EP2)}),
    "ep2-distributed": Case([*EXPERTS, *DISTRIBUTED], 2, EP2, {"ep1": (1, []), "dp2": (2, [])}),
    "ep2-bias-distributed-bf16": Case([*EXPERTS, *BIAS, *DISTRIBUTED, "precision.dtype=bf16"], 2, EP2, {}),
    "ep2-tp2-sequence-dropout": Case([*EXPERTS, *DROPOUT], 4, [*EP2, *SEQUENCE, "parallel.expert_tensor=1"], {}),
    "ep2-bias": Case([*EXPERTS, *BIAS], 2, EP2, {"ep1": (1, [])}),
    "ep2-tp2-sequence": Case(
        [*EXPERTS, NO_LOSS], 4, [*EP2, *SEQUENCE, "parallel.expert_tensor=1"], {"one-rank": (1, [])}
    ),
    "ep2-pp2-dense-first": Case(
        [*EXPERTS, "model.moe_layer_freq=[0,1]"], 4, [*EP2, *PP2], {"one-rank": (1, []), "ep2": (2, EP2)}
    ),
    "cp2": Case(TWO_LAYERS, 2, CP2, {"one-rank": (1, [])}),
    "prediction": Case(PREDICTION, 2, PP2, {"one-rank": (1, [])}),
    "latent": Case(LATENT, 2, TP2, {"one-rank": (1, [])}),
    "fp16": Case([*FP16, "precision.initial_loss_scale=16384"], 2, PP2, {}),
    "fp16-distributed": Case([*FP16, *DISTRIBUTED, "precision.initial_loss_scale=16384"], 2, [], {}),
    "fp16-before-its-first-update": Case([*FP16, OVERFLOWING], 1, [], {}),
    "fp16-distributed-before-its-first-update": Case([*FP16, *DISTRIBUTED, OVERFLOWING], 2, [], {}),
    "decoupled-lr": Case([*TWO_LAYERS, "optim.decoupled_lr=0.0005"], 1, [], {"pp2": (2, PP2)}),
    "decoupled-lr-distributed": Case([*TWO_LAYERS, *DISTRIBUTED, "optim.decoupled_lr=0.0005"], 2, [], {}),
    "buckets": Case([*TWO_LAYERS, *DISTRIBUTED, *BUCKETS], 2, [], {"one-rank": (1, []), "tp2": (2, TP2)}, slow=False),
    "by-rank": Case([*TWO_LAYERS, *DISTRIBUTED, *BY_RANK], 2, [], {}, slow=False),
    "by-rank-ep2": Case([*EXPERTS, *DISTRIBUTED, *BY_RANK], 2, EP2, {}),
    "sgd": Case([*TWO_LAYERS, "optim.optimizer=sgd"], 2, PP2, {"one-rank": (1, [])}),
}


def cases(pairs: list[tuple[str, ...]]) -> list[Any]:
    marks = {name: [pytest.mark.slow] if case.slow else [] for name, case in CASES.items()}
    return [pytest.param(*pair, id="-to-".join(pair), marks=marks[pair[0]]) for pair in pairs]


@pytest.fixture(scope="module")
def stopped(ranks: RankPool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The curve of a case's run of 4 steps, and the run directory as a kill before its third step had left it."""
    known: dict[str, tuple[Any, Path]] = {}

    def run(name: str, directory: Path) -> tuple[Any, Path]:
        if name not in known:
            case, whole = CASES[name], tmp_path_factory.mktemp("whole")
            config = whole / "tiny.yaml"
            config.write_text(yaml.safe_dump(tiny_config(tiny_data, whole / "run")))
            outcome = pretrain(ranks, config, *STEPS, *case.model, *case.layout, world=case.world)
            assert outcome.complete, outcome.error
            known[name] = results(whole / "run"), whole
            shutil.rmtree(whole / "run/checkpoints/iter_0000004")
            (whole / "run/DONE").unlink()
        expected, whole = known[name]
        shutil.copytree(whole, directory / "copy")
        return expected, directory / "copy/tiny.yaml"

    return run


def test_what_was_saved_by_rank_is_refused_to_another_layout(
    ranks: RankPool, stopped: Callable[..., Any], tmp_path: Path
) -> None:
    case, (_, config) = CASES["by-rank"], stopped("by-rank", tmp_path)
    before = (config.parent / "run/metrics.jsonl").read_bytes()
    outcome = pretrain(ranks, config, f"run.dir={config.parent / 'run'}", *STEPS, *case.model, world=1)
    assert outcome.exit_code == 2 and len(outcome.error.splitlines()) == 1
    assert (
        "saved as dp_reshardable, which only the layout that saved it can read; world was 2 and is 1" in outcome.error
    )
    assert "checkpoint.distrib_optim_sharding_type=fully_reshardable" in outcome.error
    assert (config.parent / "run/metrics.jsonl").read_bytes() == before


def resume(pool: RankPool, config: Path, *overrides: str, world: int) -> dict[int, Any]:
    run = config.parent / "run"
    outcome = pretrain(pool, config, f"run.dir={run}", *STEPS, *overrides, world=world)
    assert outcome.complete, outcome.error
    assert "(step 2)" in outcome.out
    return results(run)


def results(run: Path) -> dict[int, tuple[Any, ...]]:
    """Loss, gradient norm, learning rate, loss scale and skipped updates of every step."""
    names = ("lm_loss", "grad_norm", "lr", "loss_scale", "skipped_steps")
    return {row["step"]: tuple(row.get(name) for name in names) for row in rows(run)}


@pytest.mark.parametrize("name", cases([(name,) for name in CASES]))
def test_the_same_layout_goes_on_bit_for_bit(
    name: str, ranks: RankPool, stopped: Callable[..., Any], tmp_path: Path
) -> None:
    case, (expected, config) = CASES[name], stopped(name, tmp_path)
    found = resume(ranks, config, *case.model, *case.layout, world=case.world)
    assert list(found) == [1, 2, 3, 4]
    assert found == expected
    assert ("fp16" in name) == (len({scale for *_, scale, _ in found.values()}) > 1), (
        "the loss scale moves, and is kept"
    )


@pytest.mark.parametrize(("name", "other"), cases([(name, other) for name in CASES for other in CASES[name].others]))
def test_another_layout_goes_on_within_rounding(
    name: str, other: str, ranks: RankPool, stopped: Callable[..., Any], tmp_path: Path
) -> None:
    case, (expected, config) = CASES[name], stopped(name, tmp_path)
    world, layout = case.others[other]
    found = resume(ranks, config, *case.model, *layout, world=world)
    for step in (3, 4):
        assert found[step][0] == pytest.approx(expected[step][0], abs=1e-5)
        assert found[step][1] == pytest.approx(expected[step][1], rel=1e-3)
        assert found[step][2] == expected[step][2]
    differences = [abs(a / b - 1) for s in (3, 4) for a, b in zip(found[s][:2], expected[s][:2], strict=True)]
    print(f"{name} to {other}: loss and gradient norm within {max(differences):.1e} relative")
