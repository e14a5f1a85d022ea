"""Packed documents do not see each other: loss and gradients are those of the documents run one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.pool import RankPool

pytestmark = pytest.mark.dist

EOD = 3
LENGTHS = [[7, 1, 12, 12], [20, 2, 10]]  # of the documents in each row of 32 tokens; a row cuts its last one off
EVEN = [[8, 8, 8, 8], [8, 8, 8, 8]]

PACKED = ["data.reset_attention_mask=true"]
GPT = "model.family=gpt"
MLA = [
    GPT,
    "model.multi_latent_attention=true",
    "model.num_query_groups=4",
    "model.kv_lora_rank=16",
    "model.qk_head_dim=16",
    "model.qk_pos_emb_head_dim=8",
    "model.v_head_dim=12",
]
EXPERTS = ["model.family=mixtral", "model.num_moe_experts=4", "model.moe_router_topk=2"]
CASES: dict[str, tuple[list[str], list[list[int]]]] = {
    "rope": ([], LENGTHS),
    "rope-masked-ends": (["data.eod_mask_loss=true"], LENGTHS),
    "learned": ([GPT, "model.position_embedding_type=learned_absolute", "data.reset_position_ids=true"], LENGTHS),
    "alibi": ([GPT, "model.position_embedding_type=alibi"], LENGTHS),
    "window": ([GPT, "model.window_size=[4, 0]"], LENGTHS),
    "mla": (MLA, LENGTHS),
    "experts": (EXPERTS, LENGTHS),
    # Of equal length, since megatron-core 0.19 divides this loss by the labels that a micro-batch has left for it.
    "mtp": ([GPT, "model.mtp_num_layers=1"], EVEN),
}


def text(lengths: list[list[int]]) -> torch.Tensor:
    """Random rows [b, s + 1] of documents of the given lengths, each ended but the last of a row."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(EOD + 1, 400, (len(lengths), sum(lengths[0]) + 1), generator=generator)
    for row, documents in zip(rows, lengths, strict=True):
        row[torch.tensor(documents[:-1]).cumsum(0) - 1] = EOD
    return rows


def packed_and_alone(
    ranks: Any, device: Any, config: str, overrides: list[str], lengths: list[list[int]]
) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Runs in the pool: sums of losses and tokens, and mean gradients, of the packed rows and of each document."""
    from dataclasses import replace

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.data.batch import DocumentEnds, make_batch
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.runtime.groups import process_groups
    from megatron_lm_zh.train.step import run_batches

    loaded = load_config(config, overrides, world=ranks.world)
    loaded = replace(loaded, model=replace(loaded.model, vocab_size=400))
    data = loaded.data
    without = replace(loaded, data=replace(data, reset_attention_mask=False))
    rows = text(lengths)
    alone = []
    for row, documents in zip(rows, lengths, strict=True):
        begin = 0
        for length in documents:
            piece = row[None, begin : begin + length + 1]
            alone.append(make_batch(piece, DocumentEnds(EOD, eod_mask_loss=data.eod_mask_loss)))
            begin += length
    packed = [make_batch(rows, DocumentEnds.of(data, EOD))]
    with process_groups(loaded, ranks, device):
        model = build_model(loaded, device)
        found = []
        for run, batches in ((loaded, packed), (without, alone)):
            model[0].zero_grad_buffer()
            sums = run_batches(run, model, device, iter(batches), len(batches), forward_only=False)
            found.append((sums, {name: +p.main_grad for name, p in model[0].named_parameters()}))
        return found


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_the_documents_alone(name: str, ranks: RankPool, tiny_run: Path) -> None:
    overrides, lengths = CASES[name]
    overrides = [*PACKED, "model.num_layers=2", "model.init_method_std=0.2", *overrides]
    ((packed, alone),) = ranks.run(1, packed_and_alone, str(tiny_run), overrides, lengths)
    masked = sum(len(row) - 1 for row in lengths) if "data.eod_mask_loss=true" in overrides else 0
    assert packed[0][1] == alone[0][1] == 64 - masked
    assert float(packed[0][0] / packed[0][1]) == pytest.approx(float(alone[0][0] / alone[0][1]), abs=1e-6)
    norm = torch.stack([gradient.norm() for gradient in alone[1].values()]).norm()
    assert norm > 0.1
    for key, gradient in packed[1].items():
        assert (gradient - alone[1][key]).norm() <= 2e-6 * norm, key


def test_documents_seen_together_lose_otherwise(ranks: RankPool, tiny_run: Path) -> None:
    overrides = ["model.num_layers=2", "model.init_method_std=0.2", "data.eod_mask_loss=true"]
    ((packed, alone),) = ranks.run(1, packed_and_alone, str(tiny_run), overrides, LENGTHS)
    assert abs(float(packed[0][0] - alone[0][0])) > 1e-2


LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "tp2-sp": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "pp2": (2, ["parallel.pipeline=2"]),
    "dp2": (2, []),
    "cp2": (2, ["parallel.context=2", "parallel.cp_comm_type=all_gather"]),
    "pp2-vpp2-cp2": (4, ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.context=2"]),
}


def first_steps(ranks: Any, device: Any, config: str, overrides: list[str]) -> list[tuple[float, float]]:
    """Runs in the pool: loss and gradient norm of three steps of a run."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.parity.record import record

    loaded = load_config(config, overrides, world=ranks.world)
    return [(step.lm_loss, step.grad_norm) for step in record(loaded, ranks, device, steps=3, from_data=True)]


WHOLE_RUN = [
    "data.reset_attention_mask=true",
    "data.eod_mask_loss=true",
    "data.train.1.loss_weight=2.5",
    "train.rampup_batch_size=[4, 4, 4]",
]


@pytest.fixture(scope="module")
def one_rank(ranks: RankPool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    import yaml
    from support.tiny import tiny_config

    config = tmp_path_factory.mktemp("one_rank") / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tiny_data, config.parent / "run")))
    return ranks.run(1, first_steps, str(config), WHOLE_RUN)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_agree_on_packed_weighted_growing_batches(
    name: str, ranks: RankPool, tiny_run: Path, one_rank: list[tuple[float, float]]
) -> None:
    world, overrides = LAYOUTS[name]
    answers = ranks.run(world, first_steps, str(tiny_run), [*WHOLE_RUN, *overrides])
    for answer in answers:
        for (loss, norm), (wanted_loss, wanted_norm) in zip(answer, one_rank, strict=True):
            assert loss == pytest.approx(wanted_loss, abs=5e-6)
            assert norm == pytest.approx(wanted_norm, rel=1e-4)
