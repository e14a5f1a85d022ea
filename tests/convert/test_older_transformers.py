"""What to-hf writes loads in transformers 4.45, 4.51 and 4.57, no key amiss, with the logits of 5 (make test-hf4)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_cases import DENSE
from family_models import CASES as WITH_EXPERTS
from family_models import IDS, make
from hf_models import logits, read_json
from torch import Tensor

from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.to_hf import to_hf

pytestmark = pytest.mark.slow

OLDER = Path(sys.prefix) / "hf4"
VERSIONS = ("4.45.2", "4.51.3", "4.57.3")
CASES = {**DENSE, **WITH_EXPERTS}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

SINCE: Mapping[str, tuple[str, str]] = {
    "glm4": ("4.46", "GlmForCausalLM"),
    "glm4_0414": ("4.51.3", "Glm4ForCausalLM"),
    "qwen3": ("4.51", "Qwen3ForCausalLM"),
    "qwen3_moe": ("4.51", "Qwen3MoeForCausalLM"),
    "deepseek_v3": ("4.51", "DeepseekV3ForCausalLM"),
    "deepseek_v2": ("4.54", "DeepseekV2ForCausalLM"),
    "glm4_moe": ("4.54", "Glm4MoeForCausalLM"),
}
"""Family to the first transformers that has it, and its class; those that are not here are in all of `VERSIONS`."""

SHAPES_SINCE: Mapping[str, tuple[str, str]] = {
    "mixtral_window": ("4.47", "a Mixtral whose head_dim is not hidden_size / heads"),
    "deepseek_v3_without_groups": ("4.53", "a DeepSeek-V3 without q_lora_rank"),
}
"""Case to the first transformers that has a network of its shape, and what that is."""


@dataclass(frozen=True)
class Difference:
    """What a version computes otherwise."""

    what: str
    config: Callable[[dict[str, Any]], dict[str, Any]]
    """Of a config.json: the keys with which transformers 5 computes the same as the older one."""


def _without_mscale(config: dict[str, Any]) -> dict[str, Any]:
    rope = {key: value for key, value in config["rope_parameters"].items() if not key.startswith("mscale")}
    return {"rope_parameters": rope | {"attention_factor": 1.0}, "rope_scaling": None}


def _windows(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {"layer_types": [kind] * config["num_hidden_layers"], "max_window_layers": 0}


NO_MSCALE = Difference("the scores lack the factor of mscale_all_dim, as in 4.54 to 5.14", _without_mscale)
NO_WINDOW = Difference("no window without flash attention", _windows("full_attention"))
EVERY_WINDOW = Difference("every layer has the window, whatever max_window_layers says", _windows("sliding_attention"))
DIFFERENCES: Mapping[tuple[str, str], Difference] = {
    ("4.45.2", "qwen2_window"): NO_WINDOW,
    ("4.51.3", "qwen2_window"): EVERY_WINDOW,
    ("4.51.3", "qwen3_tied_window"): EVERY_WINDOW,
    ("4.57.3", "deepseek_v2_lite"): NO_MSCALE,
}

CHILD = """
import sys
import torch, transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
job = torch.load(sys.argv[1])
found = {"version": transformers.__version__, "model_types": list(CONFIG_MAPPING_NAMES)}
for name, paths in job["models"].items():
    found[name] = {}
    for dtype, path in paths.items():
        print(name, dtype, file=sys.stderr)
        model, info = AutoModelForCausalLM.from_pretrained(path, torch_dtype="auto", output_loading_info=True)
        with torch.no_grad():
            logits = model.eval()(job["ids"]).logits
        dtypes = {key: tensor.dtype for key, tensor in model.state_dict().items()}
        found[name][dtype] = {"class": type(model).__name__, "info": info, "logits": logits, "dtypes": dtypes}
torch.save(found, sys.argv[2])
"""
Export = Callable[[str], dict[str, Path]]


def unknown(version: str, name: str) -> str:
    """Why this transformers cannot load this case; nothing where it can."""
    if CASES[name].disguise is not None:
        return "the class comes with the model's own files, which are not here"
    for entry in (SINCE.get(CASES[name].family), SHAPES_SINCE.get(name)):
        if entry is not None and number(version) < number(entry[0]):
            return f"transformers {version} does not have {entry[1]}, which came in {entry[0]}"
    return ""


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Makes a case's model with transformers 5, takes it through a checkpoint and back, in each dtype, once."""

    @cache
    def export(name: str) -> dict[str, Path]:
        root = tmp_path_factory.mktemp(name)
        for word, dtype in DTYPES.items():
            from_hf(make(CASES[name], root / word / "hf", dtype), root / word / "megatron")
            to_hf(root / word / "megatron", root / word / "back")
        return {word: root / word / "back" for word in DTYPES}

    return export


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, exported: Export) -> Callable[[str], dict[str, Any]]:
    """Loads every case that a version knows in one process of that version, once."""

    @cache
    def load(version: str) -> dict[str, Any]:
        root = tmp_path_factory.mktemp(version)
        models = {name: {dtype: str(path) for dtype, path in exported(name).items()} for name in known(version)}
        torch.save({"models": models, "ids": IDS}, root / "job.pt")
        environment = {**os.environ, "PYTHONPATH": str(OLDER / version), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", CHILD, str(root / "job.pt"), str(root / "found.pt")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return torch.load(root / "found.pt")  # type: ignore[no-any-return]

    return load


def known(version: str) -> list[str]:
    return [name for name in CASES if not unknown(version, name)]


def computed_as(difference: Difference, export: Path, directory: Path) -> Tensor:
    """Logits under transformers 5 with what the older one computes otherwise."""
    shutil.copytree(export, directory)
    config = read_json(directory / "config.json")
    (directory / "config.json").write_text(json.dumps(config | difference.config(config)))
    return logits(directory, IDS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_an_export_loads_with_the_same_logits(
    version: str, name: str, exported: Export, loaded: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    if not (OLDER / version).is_dir():
        pytest.skip(f"transformers {version} is not there: make test-hf4 installs it")
    if reason := unknown(version, name):
        pytest.skip(reason)
    assert loaded(version)["version"] == version
    found, paths = loaded(version)[name], exported(name)
    for one in found.values():
        assert one["class"] == CASES[name].model
        assert {what: keys for what, keys in one["info"].items() if keys} == {}
    theirs, expected = found["fp32"]["logits"], logits(paths["fp32"], IDS)
    if difference := DIFFERENCES.get((version, name)):
        assert (theirs - expected).abs().max() > 1e-3, f"{version} computes {name} as 5 does; take it from the table"
        expected = computed_as(difference, paths["fp32"], tmp_path / "changed")
    largest = (theirs - expected).abs().max().item()
    print(f"{version} {name}: {largest:.1e} {difference.what if difference else ''}")
    assert theirs.dtype == torch.float32 and largest <= 1e-5
    assert torch.equal(theirs.argmax(-1), expected.argmax(-1))
    for word, dtype in DTYPES.items():
        # a class may keep the router's biases in fp32
        dtypes = {kind for key, kind in found[word]["dtypes"].items() if not key.endswith("e_score_correction_bias")}
        assert dtypes == {dtype}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_version_is_said_not_to_have_is_not_there(
    version: str, exported: Export, loaded: Callable[[str], dict[str, Any]]
) -> None:
    if not (OLDER / version).is_dir():
        pytest.skip(f"transformers {version} is not there: make test-hf4 installs it")
    model_types = loaded(version)["model_types"]
    for name, case in CASES.items():
        if case.disguise is None:
            has = read_json(exported(name)["fp32"] / "config.json")["model_type"] in model_types
            assert has == (case.family not in SINCE or number(version) >= number(SINCE[case.family][0])), name
