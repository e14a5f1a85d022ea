"""Every family: bits and config there and back, logits against transformers, and each config key shown to matter."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_cases import DENSE
from family_models import CASES as WITH_EXPERTS
from family_models import IDS, Case, make, megatron_logits
from hf_models import read_json, same_bits, weights
from support.pool import RankPool
from transformers import AutoConfig

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.engine import Conversion
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.hf_files import HFWeights
from megatron_lm_zh.convert.megatron_files import MODEL_FILE, MegatronWeights
from megatron_lm_zh.convert.model_config import from_hf_config, to_hf_config
from megatron_lm_zh.convert.model_file import read_model_file
from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import FAMILIES, family, huggingface

CASES = {**DENSE, **WITH_EXPERTS}
CASE = pytest.mark.parametrize("name", CASES)
LOST = {"transformers_version", "pretraining_tp", "use_cache", "_name_or_path"}
"""Keys of a config that say nothing of what the model computes."""
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes a case's Hugging Face model in fp32, once; nobody writes to it."""
    return cache(lambda name: make(CASES[name], tmp_path_factory.mktemp(name) / "hf"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Made:
    """Makes a case's checkpoint from that model, once."""

    @cache
    def convert(name: str) -> Path:
        checkpoint = tmp_path_factory.mktemp(name) / "megatron"
        from_hf(made(name), checkpoint)
        return checkpoint

    return convert


def read(case: Case, config: dict[str, Any]) -> Model:
    """Our model section of a config.json."""
    return from_hf_config(family(case.family), config, "config.json")


def test_every_family_has_a_case() -> None:
    assert {case.family for case in CASES.values()} == {kind.name for kind in FAMILIES if kind.huggingface}


@CASE
def test_every_bit_comes_back(tmp_path: Path, made: Made, converted: Made, name: str) -> None:
    to_hf(converted(name), tmp_path / "back")
    assert MegatronWeights(converted(name)).specs["embedding.word_embeddings.weight"].shape[0] == 256
    assert same_bits(weights(made(name)), weights(tmp_path / "back"))


@CASE
def test_every_bit_of_bf16_comes_back(tmp_path: Path, name: str) -> None:
    hf = make(CASES[name], tmp_path / "hf", torch.bfloat16)
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    before = weights(hf)
    assert torch.bfloat16 in {tensor.dtype for tensor in before.values()}
    assert same_bits(before, weights(tmp_path / "back"))


@pytest.mark.dist
@CASE
def test_logits_are_those_of_transformers_and_each_key_matters(
    ranks: RankPool, made: Made, converted: Made, name: str
) -> None:
    case = CASES[name]
    flips = [["model.family=gpt", *case.with_flips, f"model.{key}={value}"] for key, value in case.flips.items()]
    ours, *flipped = megatron_logits(ranks, converted(name), IDS, [[], *flips])
    theirs = case.reference(made(name), IDS)
    difference = (ours - theirs).abs().max().item()
    print(f"{name}: logits of std {theirs.std():.2f} differ by at most {difference:.1e}")
    assert theirs.std() > 0.1
    assert difference <= 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    for key, other in zip(case.flips, flipped, strict=True):
        assert (other - theirs).abs().max() > 1e-4, key


@CASE
def test_every_config_row_is_accounted_for(name: str) -> None:
    case = CASES[name]
    rows = {row.ours for row in huggingface(case.family).config}
    told = [*case.flips, *case.shapes, *case.inert]
    assert len(told) == len(set(told))
    assert rows - set(told) == set()
    assert set(told) - rows == set()


@CASE
def test_other_shapes_are_refused(made: Made, name: str) -> None:
    case = CASES[name]
    model = read(case, read_json(made(name) / "config.json"))
    source = HFWeights(made(name))
    for key, value in case.shapes.items():
        assert getattr(model, key) != value, key
        changed = dataclasses.replace(model, **{key: value})
        assert changed.vocab_size is not None
        with pytest.raises(UserError, match=r"has shape|no tensor|has no place"):
            Conversion.of(huggingface(case.family), changed, changed.vocab_size).plan_to_megatron(source)
            print(f"{name}: {key}={value} fits")


def as_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """The same config.json in the words of transformers 4."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(config.get("rope_parameters", {}))
    if rope:
        old["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return old | {"torch_dtype": config["dtype"]}


@CASE
def test_config_comes_back_in_the_words_of_transformers_4_and_5(tmp_path: Path, made: Made, name: str) -> None:
    case = CASES[name]
    before = read_json(made(name) / "config.json")
    model = read(case, before)
    tokens = {key: value for key, value in before.items() if key.endswith("_token_id")}
    after = json.loads(json.dumps(to_hf_config(family(case.family), model, torch.float32, tokens)))
    kept = {key: value for key, value in before.items() if key not in LOST | set(case.rewritten)}
    assert {key: after.get(key, "absent") for key in kept} == kept
    assert after["torch_dtype"] == after["dtype"] == "float32"

    old = as_transformers_4(before)
    assert read(case, old) == model
    assert read(case, after) == model
    assert read(case, {key: value for key, value in after.items() if key not in ("rope_parameters", "dtype")}) == model
    words = as_transformers_4(after) if "rope_parameters" in after else after
    for key in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
        assert after.get(key) == words.get(key), key

    if case.disguise is None:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(after))
        loaded, own = AutoConfig.from_pretrained(path).to_dict(), AutoConfig.from_pretrained(made(name)).to_dict()
        assert {key: loaded.get(key) for key in own if key not in LOST} == {
            key: value for key, value in own.items() if key not in LOST
        }


@CASE
def test_the_model_file_says_what_the_config_says(made: Made, converted: Made, name: str) -> None:
    model, _ = read_model_file(converted(name) / MODEL_FILE)
    assert model == read(CASES[name], read_json(made(name) / "config.json"))
