"""`mlzh pretrain` on a real Slurm, through the shipped script: it completes, and a USR1 half-way changes no loss."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from private_slurm import ROOT, Slurm

SCRIPT = "examples/slurm/pretrain_13b.sh"
STEPS = 150
CONFIG = """\
run: {{dir: replaced-by-RUN_DIR}}
model: {{num_layers: 2, hidden_size: 64, num_attention_heads: 4, num_query_groups: 2, seq_length: 64}}
parallel: {{tensor: 2, sequence: true}}
precision: {{dtype: fp32}}
data:
  tokenizer: {{type: SentencePiece, path: {place}/tokenizer}}
  train: [{{path: {place}/all_text_document}}]
  split: 9,1,0
train: {{steps: {steps}, micro_batch_size: 2, global_batch_size: 4}}
optim: {{lr: 1.0e-3}}
schedule: {{kind: cosine, warmup_steps: 5}}
checkpoint: {{interval: 1000}}
evaluate: {{interval: 1000, batches: 2}}
log: {{interval: 1, tensorboard: false}}
"""
pytestmark = pytest.mark.slurm


@dataclass
class Job:
    """A job that has ended."""

    state: dict[str, str]
    run: Path
    log: str

    def losses(self) -> list[tuple[int, float, float]]:
        """Step, loss and gradient norm of every training row, in the order of the file."""
        return [(row["step"], row["lm_loss"], row["grad_norm"]) for row in rows(self.run) if row["kind"] == "train"]


def rows(run: Path) -> list[dict]:
    """The whole lines of a run's metrics."""
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="module")
def asked(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The script's environment: a tiny TP2 config on a tiny bilingual dataset, one rank a node."""
    place = tmp_path_factory.mktemp("tiny")
    texts = [
        f"第{n}天，气温是{n % 40}度。 On day {n} it was {n % 40} degrees. {n} + {n} = {2 * n}。" for n in range(400)
    ]
    (place / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    program = place / "mlzh"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m megatron_lm_zh "$@"\n')
    program.chmod(0o755)
    train = f"tokenizer train --input {place}/text.jsonl --vocab-size 320 --output {place}/tokenizer"
    preprocess = f"preprocess --input {place}/text.jsonl --output-prefix {place}/all --append-eod"
    tokenizer = f"--tokenizer-type SentencePiece --tokenizer-model {place}/tokenizer"
    for command in (train, f"{preprocess} {tokenizer}"):
        done = subprocess.run([program, *command.split()], text=True, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    (place / "tiny.yaml").write_text(CONFIG.format(place=place, steps=STEPS))
    return {
        "MLZH": str(program),
        "CONFIG": str(place / "tiny.yaml"),
        "GPUS_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def submit(slurm: Slurm, asked: dict[str, str], place: Path) -> str:
    return slurm.submit(place / "log", "--nodes=2", SCRIPT, **asked, RUN_DIR=str(place / "run"))


def end_of(slurm: Slurm, job: str, place: Path) -> Job:
    state = slurm.wait(job, 240)
    return Job(state, place / "run", (place / "log").read_text())


@pytest.fixture(scope="module")
def whole(slurm: Slurm, asked: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run that nothing interrupts."""
    place = tmp_path_factory.mktemp("whole")
    return end_of(slurm, submit(slurm, asked, place), place)


def test_a_tensor_parallel_run_completes_on_two_nodes(whole: Job) -> None:
    assert (whole.state["JobState"], whole.state["ExitCode"], whole.state["Restarts"]) == ("COMPLETED", "0:0", "0"), (
        whole.log
    )
    assert (whole.run / "DONE").exists()
    assert [step for step, _, _ in whole.losses()] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows(whole.run) if row["kind"] == "valid"] == [STEPS]
    assert whole.losses()[-1][1] < whole.losses()[0][1] - 1
    tracker = whole.run / "checkpoints" / "latest_checkpointed_iteration.txt"
    assert tracker.read_text().strip() == str(STEPS)
    assert (whole.run / "checkpoints" / f"iter_{STEPS:07d}").is_dir()


def test_usr1_saves_requeues_and_changes_no_loss(
    slurm: Slurm, asked: dict[str, str], whole: Job, tmp_path: Path
) -> None:
    job = submit(slurm, asked, tmp_path)
    deadline = time.monotonic() + 120
    while len(rows(tmp_path / "run")) < STEPS // 10:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.02)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    ended = end_of(slurm, job, tmp_path)
    assert (ended.state["JobState"], ended.state["Restarts"]) == ("COMPLETED", "1"), ended.log
    assert "requeued" in ended.log
    assert (ended.run / "DONE").exists()
    attempts = {row["attempt"] for row in rows(ended.run) if row["kind"] == "train"}
    assert len(attempts) == 2
    assert ended.losses() == whole.losses()
