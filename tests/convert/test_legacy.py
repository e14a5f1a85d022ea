"""Checkpoints of Megatron-LM's own, of one file a rank or with stacked layers, are the same weights as ours."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from legacy_ranks import CONFIG, DEEPSEEK, save_ranks
from support.pool import RankPool

from megatron_lm_zh.convert.inspect import inspect
from megatron_lm_zh.convert.legacy.archive import read_archive
from megatron_lm_zh.convert.legacy.find import Asked, Opened, find_plain, open_plain
from megatron_lm_zh.convert.to_hf import ToHF
from megatron_lm_zh.convert.verify import Side, compare_weights
from megatron_lm_zh.errors import UserError

LLAMA = "family: llama, num_query_groups: 2"
TIED = "family: qwen3, num_query_groups: 2, tie_embeddings: true"
MIXTRAL = "family: mixtral, num_query_groups: 2, num_moe_experts: 4, moe_ffn_hidden_size: 32"
CASES = {
    "tp2-pp2": (LLAMA, 4, "tensor: 2, pipeline: 2"),
    "tp2-pp2-vpp2-tied": (TIED, 4, "tensor: 2, pipeline: 2, virtual_pipeline: 2"),
    "uneven": (LLAMA, 2, "pipeline: 2, num_layers_in_first_pipeline_stage: 1"),
    "ep2": (MIXTRAL, 2, "expert: 2"),
    "tp2-pp2-ep2-etp1": (MIXTRAL, 4, "tensor: 2, sequence: true, pipeline: 2, expert: 2, expert_tensor: 1"),
    "tp2-ep2-etp2": (MIXTRAL, 4, "tensor: 2, sequence: true, expert: 2, expert_tensor: 2"),
    "mla-tp2-ep2": (DEEPSEEK, 2, "tensor: 2, sequence: true, expert: 2, expert_tensor: 1"),
}
SLOW = ("uneven", "ep2", "tp2-ep2-etp2")
FAMILY_OF = {LLAMA: "llama", TIED: "qwen3", MIXTRAL: "mixtral", DEEPSEEK: "deepseek_v3"}


def saved(pool: RankPool, root: Path, model: str, world: int, parallel: str, *, stacked: bool = False) -> Path:
    root.mkdir()
    (root / "config.yaml").write_text(CONFIG.format(run=root, vocab=131, model=model, parallel=parallel))
    checkpoint = root / "iter_0000007"
    checkpoint.mkdir()
    pool.run(world, save_ranks, str(root / "config.yaml"), str(checkpoint), stacked)
    return checkpoint


def converted(opened: Opened) -> dict[str, torch.Tensor]:
    """Every Hugging Face tensor."""
    found: dict[str, torch.Tensor] = {}
    for step in opened.conversion.steps:
        found |= opened.conversion.to_hf(step, opened.source)
    return found


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    different = [name for name, tensor in one.items() if not torch.equal(tensor, two[name])]
    assert not different, different


@pytest.fixture(scope="module")
def expected(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each model, from a torch_dist checkpoint of one rank whose layers have keys of their own."""
    found = {}
    for model, name in FAMILY_OF.items():
        checkpoint = saved(ranks, tmp_path_factory.mktemp("one") / name, model, 1, "", stacked=True)
        found[model] = converted(open_plain(checkpoint, Asked(family=name)))
    return found


@pytest.mark.dist
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_ranks_are_put_together(
    name: str, ranks: RankPool, expected: dict[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model, world, parallel = CASES[name]
    checkpoint = saved(ranks, tmp_path / "save", model, world, parallel)
    (checkpoint.parent / "latest_checkpointed_iteration.txt").write_text("7\n")
    assert find_plain(checkpoint.parent) == checkpoint == find_plain(checkpoint)
    opened = open_plain(checkpoint, Asked(family=FAMILY_OF[model]))
    opened.conversion.plan_to_hf(opened.source)
    assert_same(converted(opened), expected[model])
    by_config = open_plain(checkpoint, Asked(config=checkpoint.parent / "config.yaml"))
    assert_same(converted(by_config), expected[model])


@pytest.mark.dist
@pytest.mark.parametrize("model", [LLAMA, MIXTRAL], ids=["dense", "experts"])
def test_stacked_layers_are_taken_apart(
    model: str, ranks: RankPool, expected: dict[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    expert = ", expert: 2, expert_tensor: 1" if "moe" in model else ""
    checkpoint = saved(
        ranks, tmp_path / "save", model, 4, f"tensor: 2, sequence: true, pipeline: 2{expert}", stacked=True
    )
    opened = open_plain(checkpoint, Asked(family=FAMILY_OF[model]))
    assert_same(converted(opened), expected[model])
    if model == LLAMA:
        stacked = opened.source.stored  # type: ignore[attr-defined]
        assert stacked["decoder.layers.self_attention.linear_qkv.weight"].shape[0] == 4


@pytest.fixture(scope="module")
def four_ranks(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A save directory whose newest checkpoint four ranks saved."""
    root = tmp_path_factory.mktemp("ranks") / "save"
    saved(ranks, root, LLAMA, 4, "tensor: 2, pipeline: 2")
    (root / "latest_checkpointed_iteration.txt").write_text("7\n")
    return root


@pytest.mark.dist
def test_inspect_and_verify_see_the_ranks_as_one_model(
    four_ranks: Path, expected: dict[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    found = inspect(four_ranks, values=True)
    assert found.kind == "save directory, whose newest checkpoint is iter_0000007: Megatron-LM, legacy (mp_rank)"
    assert found.family is not None and found.family.startswith("llama or ") and not found.problems
    assert (found.layers, found.vocab_size, found.padded_vocab_size) == (4, 131, 256)
    assert (found.step, found.has_optimizer, found.layout) == (7, True, {"tensor": 2, "pipeline": 2})
    assert found.parameters == sum(tensor.numel() for tensor in expected[LLAMA].values())
    assert inspect(four_ranks / "iter_0000007", Asked(family="llama")).kind == "Megatron-LM, legacy (mp_rank)"

    side = Side(four_ranks, Asked(family="llama"))
    ToHF(four_ranks, Asked(family="llama")).run(tmp_path / "hf")
    report = compare_weights(side, Side(tmp_path / "hf"), tolerance=0.0, workers=2)
    assert report.agrees and report.compared == len(expected[LLAMA])


@pytest.mark.dist
def test_values_of_experts_are_looked_at(ranks: RankPool, tmp_path: Path) -> None:
    checkpoint = saved(ranks, tmp_path / "save", MIXTRAL, 1, "")
    weights = read_archive(checkpoint / "mp_rank_00" / "model_optim_rng.pt")["model"]
    weight = next(weight for name, weight in weights.items() if name.endswith("local_experts.3.linear_fc2.weight"))
    with weight.path.open("r+b") as file:
        file.seek(weight.offset + weight.first * 4)
        file.write(torch.full((5,), torch.nan).numpy().tobytes())
    (problem,) = inspect(checkpoint, values=True).problems
    assert problem.endswith("mlp.experts.experts.linear_fc2.weight has 5 numbers that are NaN or infinite")


@pytest.mark.dist
def test_what_is_missing_is_one_line(four_ranks: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(four_ranks / "iter_0000007", tmp_path / "iter_0000007")
    with pytest.raises(UserError, match=r"the model may be of llama, .* name one: --family"):
        open_plain(checkpoint, Asked())
    file = checkpoint / "mp_rank_01_001" / "model_optim_rng.pt"
    content = file.read_bytes()
    file.write_bytes(content[:-2000])
    with pytest.raises(UserError, match="unreadable"):
        open_plain(checkpoint, Asked(family="llama"))
    assert "unreadable" in inspect(checkpoint).problems[0]
    file.unlink()
    with pytest.raises(UserError, match=r"no decoder|parts of|on its ranks|missing"):
        open_plain(checkpoint, Asked(family="llama"))


class Malicious:
    """Runs a command where an unpickler calls what it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    weight = torch.arange(24.0).reshape(4, 6)
    content = {"args": argparse.Namespace(a=1, b=Malicious(tmp_path / "ran")), "model": {"w": weight.t()[1:]}}
    torch.save(content, tmp_path / "file.pt")
    found = read_archive(tmp_path / "file.pt")
    assert not (tmp_path / "ran").exists()
    assert found["args"].a == 1
    assert torch.equal(found["model"]["w"].read(), weight.t()[1:])
