"""`mlzh convert verify` finds models that are the same the same, and names the first place where they are not."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_hf, make_tokenizer, mlzh, run_python
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from megatron_lm_zh.cli.main import main_for_arguments
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.hf_states import hf_states, ids_of
from megatron_lm_zh.convert.states import compare_states
from megatron_lm_zh.convert.verify import Side, compare_weights, random_ids
from megatron_lm_zh.errors import UserError

Tensors = dict[str, torch.Tensor]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 model with a tokenizer, and as `megatron` beside it the checkpoint of it."""
    directory = tmp_path_factory.mktemp("verify")
    make_hf(directory / "hf", dtype=torch.bfloat16, vocab_size=400)
    make_tokenizer(directory / "hf")
    from_hf(directory / "hf", directory / "megatron")
    return directory / "hf"


def changed(hf: Path, target: Path, change: Callable[[Tensors], Any]) -> Path:
    """A copy of the model with a change to its tensors."""
    shutil.copytree(hf, target)
    tensors = load_file(hf / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def weights_of(one: Path, two: Path, tolerance: float = 0.0) -> Any:
    return compare_weights(Side(one), Side(two), tolerance=tolerance, workers=2)


def flip(tensors: Tensors) -> None:
    tensors[DOWN].view(torch.int16)[0, 0] ^= 1


def test_a_checkpoint_and_its_source(hf: Path) -> None:
    report = weights_of(hf, hf.parent / "megatron")
    assert report.agrees and report.compared == 30 and not report.differences
    assert list(report.lines()) == ["weights: all 30 tensors (91,728 numbers) are the same"]


def test_one_bit_is_found(hf: Path, tmp_path: Path) -> None:
    other = changed(hf, tmp_path / "other", flip)
    report = weights_of(hf.parent / "megatron", other)
    (difference,) = report.differences
    assert (difference.key, difference.layer) == (DOWN, 1)
    assert 0 < difference.max_abs < 0.01 and not report.agrees
    assert f"1 of 30 differ, the first {DOWN} (layer 1): max difference" in next(report.lines())
    assert weights_of(hf.parent / "megatron", other, tolerance=0.01).agrees


CHANGES: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "nan": (lambda tensors: tensors[DOWN].view(torch.bfloat16)[3].fill_(math.nan), "max difference nan"),
    "dtype": (lambda tensors: tensors.update({DOWN: tensors[DOWN].float()}), "bfloat16 and float32, max difference 0"),
    "first": (lambda tensors: [tensors[name].add_(1) for name in tensors if "down" in name], "model.layers.0.mlp.down"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_differences_are_named(hf: Path, tmp_path: Path, name: str) -> None:
    change, words = CHANGES[name]
    report = weights_of(hf, changed(hf, tmp_path / "other", change))
    assert not report.agrees and words in next(report.lines())


def test_key_sets_are_compared(hf: Path, tmp_path: Path) -> None:
    def move(tensors: Tensors) -> None:
        tensors["model.layers.1.extra"] = tensors.pop(DOWN)

    report = weights_of(hf, changed(hf, tmp_path / "other", move))
    assert (report.only_a, report.only_b, report.compared) == ((DOWN,), ("model.layers.1.extra",), 29)
    assert not report.agrees


def test_the_first_layer_that_differs_is_named(hf: Path, tmp_path: Path) -> None:
    other = changed(hf, tmp_path / "other", lambda tensors: tensors[DOWN].add_(0.05))
    ids = ids_of(hf, "The cat sat on the mat. 天下大势", 40)
    one, two = (hf_states(path, ids, torch.float32) for path in (hf, other))
    report = compare_states(one, two, 1e-4)
    assert not report.agrees and report.first_different == "layer 1"
    assert [name for name, _ in report.rows] == ["embedding", "layer 0", "layer 1", "layer 2 and final norm"]
    assert "first that differs: layer 1" in list(report.lines())
    same = compare_states(one, one, 1e-4)
    assert same.agrees and same.argmax_agreement == 1 and same.first_different is None


def test_random_ids_are_those_of_the_smaller_vocabulary(hf: Path) -> None:
    ids = random_ids([Side(hf).model], 64)
    assert ids.shape == (1, 64) and 0 <= int(ids.min()) <= int(ids.max()) < 400


def test_a_config_that_differs_shows_in_the_logits(hf: Path, tmp_path: Path) -> None:
    shutil.copytree(hf, tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    done = mlzh("convert", "verify", hf.parent / "megatron", tmp_path / "other", "--json", tmp_path / "report.json")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("weights: all 30 tensors") and lines[1].startswith("logits: max difference ")
    assert lines[2] == "first that differs: layer 0" and len(lines) == 3 + 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["weights"]["agrees"] and not report["agrees"] and report["logits"]["first_different"] == "layer 0"


@pytest.mark.slow
def test_logits_of_a_checkpoint_with_experts(tmp_path: Path) -> None:
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = MixtralConfig(**shape, intermediate_size=80, vocab_size=131, num_local_experts=4)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "megatron")
    (tmp_path / "text").write_text("天下大势")
    done = mlzh("convert", "verify", tmp_path / "hf", tmp_path / "megatron", "--text", tmp_path / "text")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no tokenizer on either side: the ids are random" in done.stdout
    assert "argmax the same at 100.00 % of 256 tokens" in done.stdout


def test_the_command_line(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = changed(hf, tmp_path / "other", flip)
    asked = ["convert", "verify", str(hf), str(other), "--weights-only", "--json", str(tmp_path / "report.json")]
    assert main_for_arguments(asked) == 1
    said = capsys.readouterr()
    assert DOWN in said.out and said.err == ""
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["weights"]["differences"][0]["layer"] == 1 and report["logits"] is None
    assert main_for_arguments(["convert", "verify", str(hf), str(hf.parent / "megatron"), "--weights-only"]) == 0
    assert main_for_arguments(["convert", "verify", str(hf)]) == 2
    assert main_for_arguments(["convert", "verify", str(hf), str(tmp_path / "nowhere")]) == 2


@pytest.mark.slow
def test_the_twin(hf: Path, tmp_path: Path) -> None:
    twin = Path(__file__).parents[2] / "checkpoints_convert" / "verify.py"
    command = [sys.executable, twin, hf, changed(hf, tmp_path / "other", flip), "--weights-only"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1 and DOWN in done.stdout and done.stderr == ""


def test_a_checkpoint_runs_without_transformers() -> None:
    code = """
import sys
from megatron_lm_zh.runtime import engine
engine.prepare()
from megatron_lm_zh.train import states
print("transformers" in sys.modules)
"""
    assert run_python(code).endswith("False\n")


def test_nothing_to_compare(hf: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        Side(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint"):
        Side(tmp_path / "empty")
