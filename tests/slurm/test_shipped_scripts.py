"""The shipped large configs are legal at the worlds they name, and their scripts start them as they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.rules import check

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "examples" / "configs"
SLURM = ROOT / "examples" / "slurm"
SCRIPT = SLURM / "pretrain_13b.sh"
BODY = SLURM / "pretrain.sh"

FP8 = ["precision.fp8=hybrid"]
SELECTIVE = [
    *("model.recompute_granularity=selective", "model.recompute_modules=[mla_up_proj,mlp,moe]"),
    *("model.recompute_method=null", "model.recompute_num_layers=null"),
]
LEGAL: dict[str, tuple[list[int], list[list[str]]]] = {
    # config: worlds, overrides that its comments name
    "13b": ([128, 1024], [FP8, ["train.global_batch_size=2048"]]),
    "70b": ([128, 512, 1024], [["model.vocab_size=32000", "model.rotary_base=10000", "model.seq_length=4096"]]),
    "8x7b": ([64, 128, 1024], [["train.global_batch_size=2048"]]),
    "qwen3_30b_a3b": ([64, 128, 512], []),
    "deepseek_v3": (
        [1024, 2048],
        [SELECTIVE, ["precision.fp8=e4m3", "precision.fp8_recipe=blockwise"], ["model.moe_token_dispatcher_type=flex"]],
    ),
}


@pytest.mark.parametrize(("name", "world"), [(name, world) for name, (worlds, _) in LEGAL.items() for world in worlds])
def test_the_rules_hold(name: str, world: int) -> None:
    path = CONFIGS / f"{name}.yaml"
    for overrides in ([], *LEGAL[name][1]):
        config = load_config(path, overrides, world=world)
        assert check(config, world) == []
        micro = config.data_parallel_size(world) * config.train.micro_batch_size
        assert all(size % micro == 0 for size in config.batch_sizes.sizes())


@pytest.mark.parametrize("name", LEGAL)
def test_the_comments_name_these_worlds(name: str) -> None:
    head = "".join(
        line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines(keepends=True) if line.startswith("#")
    )
    for world in LEGAL[name][0]:
        assert f"{world:,}" in head.partition("\n# A ")[0], f"{world} ranks"


def outside() -> dict[str, str]:
    """The environment of a prompt that is in no job."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}


@pytest.fixture
def mlzh(tmp_path: Path) -> str:
    """The console script, whether or not the package is installed."""
    program = tmp_path / "mlzh"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m megatron_lm_zh "$@"\n')
    program.chmod(0o755)
    return str(program)


def dry_run(script: Path, mlzh: str, **asked: str) -> subprocess.CompletedProcess[str]:
    environment = outside() | {"DRY_RUN": "1", "MLZH": mlzh} | asked
    return subprocess.run([script], env=environment, cwd=ROOT, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("nodes", ["16", "128"])
def test_dry_run_shows_the_config_the_layout_and_the_srun_line(nodes: str, mlzh: str) -> None:
    done = dry_run(SCRIPT, mlzh, NODES=nodes, EXTRA="optim.lr=1e-4 train.micro_batch_size=2")
    assert done.returncode == 0, done.stderr
    *resolved, line = done.stdout.rstrip().splitlines()
    assert "  micro_batch_size: 2" in resolved
    assert "  dir: runs/pretrain_13b" in resolved
    assert f"{int(nodes) * 8:,} ranks on {nodes} nodes: tensor 2 x data {int(nodes) * 2} x pipeline 2" in done.stdout
    words = shlex.split(line)
    assert words[:3] == ["srun", f"--nodes={nodes}", "--ntasks-per-node=8"]
    assert words[words.index("pretrain") :] == [
        "pretrain",
        "examples/configs/13b.yaml",
        "run.dir=runs/pretrain_13b",
        "optim.lr=1e-4",
        "train.micro_batch_size=2",
    ]


@pytest.mark.parametrize(
    ("script", "asked", "nodes", "config", "run"),
    [
        ("pretrain_70b", {}, 16, "70b", "pretrain_70b"),
        ("pretrain_moe", {}, 8, "8x7b", "pretrain_8x7b"),
        ("pretrain_moe", {"CONFIG": "deepseek_v3", "NODES": "128"}, 128, "deepseek_v3", "pretrain_deepseek_v3"),
        ("pretrain_moe", {"CONFIG": "qwen3_30b_a3b", "RUN_DIR": "runs/mine"}, 8, "qwen3_30b_a3b", "mine"),
    ],
)
def test_the_other_scripts(script: str, asked: dict[str, str], nodes: int, config: str, run: str, mlzh: str) -> None:
    path = f"examples/configs/{config}.yaml"
    asked = asked | ({"CONFIG": path} if "CONFIG" in asked else {})
    done = dry_run(SLURM / f"{script}.sh", mlzh, **asked)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.rstrip().splitlines()[-1])
    assert words[1] == f"--nodes={nodes}"
    assert words[words.index("pretrain") :] == ["pretrain", path, f"run.dir=runs/{run}"]


def test_dry_run_refuses_a_layout_that_does_not_fit(mlzh: str) -> None:
    done = dry_run(SCRIPT, mlzh, NODES="3", GPUS_PER_NODE="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not divide 6 ranks" in done.stderr


def test_the_docs_name_every_variable_that_the_script_reads() -> None:
    read = set(re.findall(r"\$\{([A-Z_]+):-", SCRIPT.read_text() + BODY.read_text()))
    foreign = ("SLURM_", "CUDA_", "NVTE_", "PYTORCH_", "TRITON_", "TORCHINDUCTOR_", "TMPDIR")
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE))
    assert table == {name for name in read if not name.startswith(foreign)}


@pytest.mark.parametrize(("script", "nodes"), [("pretrain_13b", 16), ("pretrain_70b", 16), ("pretrain_moe", 8)])
def test_the_scripts_name_no_gpus_cpus_or_partition(script: str, nodes: int) -> None:
    lines = (SLURM / f"{script}.sh").read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert options[:2] == [f"#SBATCH --job-name={script}", f"#SBATCH --nodes={nodes}"]
    for refused in ("--gpus", "--gres", "--cpus", "--partition", "--ntasks"):
        assert not [line for line in options if refused in line], f"{refused} is refused where Slurm knows none"


def test_the_scripts_differ_in_their_first_lines_alone() -> None:
    tails = {path.read_text().partition("\nNODES=")[2].partition("\n")[2] for path in SLURM.glob("pretrain_*.sh")}
    assert len(tails) == 1
