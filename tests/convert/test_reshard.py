"""Training goes on from a rewritten checkpoint in another layout, with another padding, with the same moments."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.pool import RankPool
from support.tiny import tiny_config
from support.training import pretrain, rows

from megatron_lm_zh.convert.boxes import StoredTensors
from megatron_lm_zh.convert.megatron_files import MegatronWeights, is_weight
from megatron_lm_zh.convert.model_file import read_model_file
from megatron_lm_zh.convert.records import find_record
from megatron_lm_zh.convert.reshard import reshard
from megatron_lm_zh.errors import UserError

pytestmark = pytest.mark.dist

STEPS = ["train.steps=4", "checkpoint.interval=2", "evaluate.interval=4", "evaluate.batches=1", "model.seq_length=16"]
DISTRIBUTED = ["optim.use_distributed_optimizer=true"]
BY_RANK = ["checkpoint.distrib_optim_sharding_type=dp_reshardable"]
TWO_LAYERS = ["model.num_layers=2"]
TP2 = ["parallel.tensor=2", "parallel.sequence=true"]
# without clipping the update does not depend on how the buckets cut the gradients' norm
SMALL_BUCKETS = ["ddp.overlap_grad_reduce=true", "ddp.megatron.bucket_size=3000", "optim.clip_grad=0"]
EXPERTS = ["model.family=gpt", "model.num_moe_experts=4", "model.moe_ffn_hidden_size=64", "model.moe_layer_freq=[0,1]"]
LATENT = ["model.family=gpt", "model.multi_latent_attention=true", "model.num_query_groups=4", "model.q_lora_rank=32"]
LATENT += ["model.kv_lora_rank=16", "model.qk_head_dim=8", "model.qk_pos_emb_head_dim=8", "model.v_head_dim=8"]


@dataclass(frozen=True)
class Case:
    """A model, and the layout that saves it rank by rank."""

    model: list[str]
    world: int
    layout: list[str]
    slow: bool = True


CASES = {
    "dp2": Case(
        [*TWO_LAYERS, "model.qk_layernorm=true", "model.sandwich_norm=true", "model.family=gpt"], 2, [], slow=False
    ),
    "tp2-dp2-small-buckets-bf16": Case([*TWO_LAYERS, "precision.dtype=bf16", *SMALL_BUCKETS], 4, TP2),
    "pp2-vpp2-tied": Case(
        ["model.tie_embeddings=true"], 2, ["parallel.pipeline=2", "parallel.virtual_pipeline=2"], slow=False
    ),
    "ep2-dp2": Case([*TWO_LAYERS, *EXPERTS, "model.add_bias_linear=false"], 4, ["parallel.expert=2"]),
    "ep2-tp2": Case([*TWO_LAYERS, *EXPERTS], 2, [*TP2, "parallel.expert=2", "parallel.expert_tensor=1"], slow=False),
    "experts-dp2": Case([*TWO_LAYERS, *EXPERTS], 2, []),
    "latent-tp2": Case([*TWO_LAYERS, *LATENT], 2, TP2),
    "prediction": Case([*TWO_LAYERS, "model.family=gpt", "model.mtp_num_layers=1"], 2, []),
}


def cases(*names: str) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if CASES[name].slow else []) for name in names or CASES]


def train(pool: RankPool, data: Path, root: Path, world: int, *overrides: str) -> Path:
    """A run directory as it was after two of four steps."""
    root.mkdir(exist_ok=True)
    config = root / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(data, root / "run")))
    outcome = pretrain(pool, config, *STEPS, *DISTRIBUTED, *overrides, world=world)
    assert outcome.complete, outcome.error
    return root / "run"


def results(run: Path) -> dict[int, tuple[float, float]]:
    return {row["step"]: (row["lm_loss"], row["grad_norm"]) for row in rows(run)}


def resumed(
    pool: RankPool, data: Path, run: Path, checkpoint: Path, root: Path, world: int, *overrides: str
) -> dict[int, tuple[float, float]]:
    """What another run gives that begins with a rewritten checkpoint."""
    (root / "run/checkpoints").mkdir(parents=True)
    shutil.copytree(checkpoint, root / "run/checkpoints/iter_0000002")
    shutil.copy(run / "metrics.jsonl", root / "run/metrics.jsonl")
    train(pool, data, root, world, *overrides)
    return results(root / "run")


@pytest.mark.parametrize("name", cases())
def test_flat_shards_become_the_tensors_that_training_would_have_saved(
    name: str, ranks: RankPool, tiny_data: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    by_rank = train(ranks, tiny_data, tmp_path / "by_rank", case.world, *case.model, *case.layout, *BY_RANK)
    whole = train(ranks, tiny_data, tmp_path / "whole", case.world, *case.model, *case.layout)
    reshard(by_rank / "checkpoints/iter_0000002", tmp_path / "new")
    found, expected = StoredTensors(tmp_path / "new"), StoredTensors(whole / "checkpoints/iter_0000002")
    assert found.specs == expected.specs
    assert sum("exp_avg_sq" in key for key in found.specs) > 10
    different = [key for key in found.specs if not torch.equal(found.read(key), expected.read(key))]
    assert not different, different


def test_masters_that_are_not_the_weights_are_refused(ranks: RankPool, tiny_data: Path, tmp_path: Path) -> None:
    # as megatron-core's own fully_reshardable has them where one of several buckets ends in padding
    run = train(ranks, tiny_data, tmp_path / "moved", 1, *TWO_LAYERS, "precision.dtype=bf16")
    checkpoint = run / "checkpoints/iter_0000002"
    master = "optimizer.state.param.decoder.layers.1.mlp.linear_fc2.weight"
    places = StoredTensors(checkpoint).metadata.storage_data
    place = next(place for index, place in places.items() if index.fqn == master)
    path = checkpoint / place.relative_path
    numbers = find_record(path, place.offset, place.length)
    with path.open("r+b") as file:
        file.seek(numbers.offset)
        file.write(bytes(numbers.length))
    with pytest.raises(UserError, match="the master weights of .*fc2.weight are not its weights; .*--weights-only"):
        reshard(checkpoint, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_training_goes_on_in_any_layout(ranks: RankPool, tiny_data: Path, tmp_path: Path) -> None:
    model = CASES["dp2"].model
    run = train(ranks, tiny_data, tmp_path / "saved", 2, *model, *BY_RANK)
    expected, checkpoint = results(run), run / "checkpoints/iter_0000002"
    new = tmp_path / "iter_0000002"
    reshard(checkpoint, new)
    manifest = json.loads((new / "manifest.json").read_text())
    assert manifest["distrib_optim_sharding_type"] == "fully_reshardable" and manifest["step"] == 2
    assert len(list(new.glob("*.distcp"))) == 2
    same = resumed(ranks, tiny_data, run, new, tmp_path / "same", 2, *model, *BY_RANK)
    assert {step: same[step] for step in (3, 4)} == {step: expected[step] for step in (3, 4)}

    padded = tmp_path / "padded"
    reshard(checkpoint, padded, make_vocab_size_divisible_by=192, vocab_size=None)
    rows_before = MegatronWeights(checkpoint).specs["output_layer.weight"].shape[0]
    tensors = StoredTensors(padded)
    vocabulary = [key for key in tensors.specs if key.endswith(("word_embeddings.weight", "output_layer.weight"))]
    assert len(vocabulary) == 8 and {tensors.specs[key].shape[0] for key in vocabulary} == {576} != {rows_before}
    assert not any(tensors.read(key)[rows_before:].any() for key in vocabulary)
    options = [*model, "model.make_vocab_size_divisible_by=192", *TP2]
    other = resumed(ranks, tiny_data, run, padded, tmp_path / "other", 2, *options)
    for step in (3, 4):
        assert other[step][0] == pytest.approx(expected[step][0], abs=1e-5)
        assert other[step][1] == pytest.approx(expected[step][1], rel=1e-3)
    back = tmp_path / "back"
    reshard(tmp_path / "other/run/checkpoints/iter_0000002", back, make_vocab_size_divisible_by=128)
    assert StoredTensors(back).specs == StoredTensors(new).specs


def test_weights_alone_and_what_is_refused(ranks: RankPool, tiny_data: Path, tmp_path: Path) -> None:
    run = train(ranks, tiny_data, tmp_path / "saved", 2, *TWO_LAYERS, *BY_RANK)
    reshard(run, tmp_path / "weights", weights_only=True)
    assert (tmp_path / "weights/model.yaml").is_file() and not (tmp_path / "weights/manifest.json").exists()
    assert read_model_file(tmp_path / "weights/model.yaml")[0].num_layers == 2
    found, expected = StoredTensors(tmp_path / "weights"), MegatronWeights(run / "checkpoints/iter_0000004")
    assert found.specs == expected.specs and all(is_weight(key) for key in found.specs)
    assert all(torch.equal(found.read(key), expected.read(key)) for key in found.specs)
    with pytest.raises(UserError, match=r"the name of another step; expected iter_0000004"):
        reshard(run, tmp_path / "iter_0000002")
    with pytest.raises(UserError, match="the output exists already"):
        reshard(run, tmp_path / "weights")
    config = run / "checkpoints/iter_0000004/config.yaml"
    config.write_text(config.read_text().replace("num_layers: 2", "num_layers: 1"))
    with pytest.raises(UserError, match="do not lie as the config's layout lays them"):
        reshard(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()
