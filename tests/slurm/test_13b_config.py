"""The shipped 13B config is Llama-2 13B, and its layout and batches are legal on 128 and on 1,024 ranks."""

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
CONFIG = ROOT / "examples" / "configs" / "13b.yaml"
SCRIPT = ROOT / "examples" / "slurm" / "pretrain_13b.sh"


@pytest.mark.parametrize("world", [128, 1024])
@pytest.mark.parametrize("overrides", [[], ["precision.fp8=hybrid"]])
def test_the_rules_hold(world: int, overrides: list[str]) -> None:
    config = load_config(CONFIG, overrides, world=world)
    assert check(config, world) == []
    assert config.train.global_batch_size % (config.data_parallel_size(world) * config.train.micro_batch_size) == 0


def test_it_has_13_billion_parameters() -> None:
    model = load_config(CONFIG).model
    attention = 2 * model.hidden_size**2 + 2 * model.hidden_size * model.num_query_groups * model.kv_channels
    layer = attention + 3 * model.hidden_size * model.ffn_hidden_size + 2 * model.hidden_size
    assert model.vocab_size is not None
    total = model.num_layers * layer + 2 * model.vocab_size * model.hidden_size + model.hidden_size
    assert total == 13_015_864_320  # meta-llama/Llama-2-13b-hf


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


@pytest.mark.parametrize("nodes", ["16", "128"])
def test_dry_run_shows_the_config_and_the_srun_line(nodes: str, mlzh: str) -> None:
    asked = {"DRY_RUN": "1", "NODES": nodes, "MLZH": mlzh, "EXTRA": "optim.lr=1e-4 train.micro_batch_size=2"}
    done = subprocess.run([SCRIPT], env=outside() | asked, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    *resolved, line = done.stdout.rstrip().splitlines()
    assert "  micro_batch_size: 2" in resolved
    assert "  dir: runs/pretrain_13b" in resolved
    words = shlex.split(line)
    assert words[:3] == ["srun", f"--nodes={nodes}", "--ntasks-per-node=8"]
    assert words[words.index("pretrain") :] == [
        "pretrain",
        "examples/configs/13b.yaml",
        "run.dir=runs/pretrain_13b",
        "optim.lr=1e-4",
        "train.micro_batch_size=2",
    ]


def test_dry_run_refuses_a_layout_that_does_not_fit(mlzh: str) -> None:
    asked = {"DRY_RUN": "1", "NODES": "3", "GPUS_PER_NODE": "2", "MLZH": mlzh}
    done = subprocess.run([SCRIPT], env=outside() | asked, cwd=ROOT, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not divide 6 ranks" in done.stderr


def test_the_docs_name_every_variable_that_the_script_reads() -> None:
    read = set(re.findall(r"\$\{([A-Z_]+):-", SCRIPT.read_text()))
    foreign = ("SLURM_", "CUDA_", "NVTE_", "PYTORCH_", "TRITON_", "TORCHINDUCTOR_", "TMPDIR")
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE))
    assert table == {name for name in read if not name.startswith(foreign)}


def test_the_script_names_no_gpus_cpus_or_partition() -> None:
    options = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --nodes=16" in options
    for refused in ("--gpus", "--gres", "--cpus", "--partition", "--ntasks"):
        assert not [line for line in options if refused in line], f"{refused} is refused where Slurm knows none"
