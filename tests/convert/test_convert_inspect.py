"""`mlzh convert inspect` says what a directory holds and what is wrong with it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hf_models import make_hf
from safetensors.torch import load_file, save_file

from megatron_lm_zh.cli.main import main_for_arguments
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.inspect import inspect


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A model in bf16 with norms in fp32."""
    make_hf(tmp_path / "hf", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors |= {name: tensor.float() for name, tensor in tensors.items() if "norm" in name}
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "hf"


@pytest.fixture
def checkpoint(hf: Path, tmp_path: Path) -> Path:
    """The same as a checkpoint."""
    from_hf(hf, tmp_path / "megatron")
    return tmp_path / "megatron"


def test_a_hugging_face_directory(hf: Path) -> None:
    found = inspect(hf, values=True)
    assert (found.kind, found.family, found.layers, found.problems) == ("Hugging Face directory", "llama", 3, [])
    assert found.parameters == sum(tensor.numel() for tensor in load_file(hf / "model.safetensors").values())
    assert found.dtypes == {"bfloat16": 23, "float32": 7}
    assert (found.vocab_size, found.padded_vocab_size) == (131, None)
    assert list(found.lines(tensors=False))[1:] == [
        "family llama, 3 layers, vocabulary 131",
        f"{found.parameters:,} parameters, {found.num_bytes:,} bytes of weights; tensors: 23 bfloat16, 7 float32",
        "no problems found",
    ]


def test_a_checkpoint(hf: Path, checkpoint: Path) -> None:
    found = inspect(checkpoint)
    assert found.kind == "checkpoint of weights that from-hf made (torch_dist)"
    assert found.parameters == inspect(hf).parameters  # padding is not counted
    assert (found.vocab_size, found.padded_vocab_size, found.has_optimizer) == (131, 256, False)
    assert "  embedding.word_embeddings.weight  [256, 48]  bfloat16" in found.lines(tensors=True)
    assert not found.problems


def as_run(checkpoint: Path, run: Path) -> Path:
    """The checkpoint as another program's newest one of a run, with a manifest."""
    target = run / "checkpoints" / "iter_0000007"
    shutil.copytree(checkpoint, target)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": ""} for path in target.iterdir() if path.is_file()}
    manifest = {"step": 7, "layout": {"world": 4, "tensor": 2, "pipeline": 1, "sequence": False}, "files": files}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_a_run_directory(checkpoint: Path, tmp_path: Path) -> None:
    found = inspect(as_run(checkpoint, tmp_path / "run"))
    assert found.kind.startswith("run directory, whose newest complete checkpoint is iter_0000007")
    assert found.step == 7 and found.layout is not None
    assert "step 7, without optimizer state; saved by: world 4, tensor 2" in found.lines(tensors=False)
    (tmp_path / "run/checkpoints/iter_0000007/__0_0.distcp").unlink()
    problems = inspect(tmp_path / "run").problems
    assert "__0_0.distcp is missing" in problems and len(problems) == 2


def test_another_programs_files(checkpoint: Path) -> None:
    (checkpoint / "model.yaml").unlink()
    found = inspect(checkpoint)
    assert found.kind == "torch_dist files of another program"
    assert found.family is None and found.parameters is not None and not found.problems


def test_problems_are_found(hf: Path, checkpoint: Path) -> None:
    tensors = load_file(hf / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, hf / "model.safetensors")
    (problem,) = inspect(hf, values=True).problems
    assert "no tensor model.layers.0.mlp.up_proj.weight" in problem
    (hf / "model.safetensors").write_bytes((hf / "model.safetensors").read_bytes()[:-1])
    assert "unreadable" in inspect(hf).problems[0]

    data = checkpoint / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-100])
    assert any("cut short" in problem for problem in inspect(checkpoint).problems)
    (checkpoint / ".metadata").write_bytes(b"")
    assert "unreadable" in inspect(checkpoint).problems[0]


def test_values_are_looked_at_when_asked(hf: Path, tmp_path: Path) -> None:
    tensors = load_file(hf / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    tensors["lm_head.weight"][:2] = math.inf
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    from_hf(hf, tmp_path / "broken")
    assert not inspect(hf).problems
    assert inspect(hf, values=True).problems == [
        "lm_head.weight has 96 numbers that are NaN or infinite",
        "model.norm.weight has 1 numbers that are NaN or infinite",
    ]
    assert len(inspect(tmp_path / "broken", values=True).problems) == 2


def test_the_command_line(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_for_arguments(["convert", "inspect", str(hf), "--json", str(tmp_path / "found.json")]) == 0
    assert capsys.readouterr().out.endswith("no problems found\n")
    assert json.loads((tmp_path / "found.json").read_text())["family"] == "llama"
    (hf / "model.safetensors").unlink()
    assert main_for_arguments(["convert", "inspect", str(hf)]) == 1
    said = capsys.readouterr()
    assert "problem: " in said.out and said.err == ""
    assert main_for_arguments(["convert", "inspect", str(tmp_path / "nowhere")]) == 2
