"""Families with experts: a run begins with a Hugging Face model's weights at any layout, and exports them again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from family_models import CASES, make, run_config
from hf_models import make_tokenizer, same_bits, weights
from prediction_models import add_predictions, keep_biases_in_fp32
from support.pool import RankPool
from support.training import pretrain
from test_init_from import start_and_save

from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.megatron_files import MODEL_FILE, MegatronWeights, find_checkpoint
from megatron_lm_zh.convert.model_file import read_model_file
from megatron_lm_zh.convert.to_hf import to_hf

TENSOR = ("parallel.tensor=2", "parallel.sequence=true")
PIPELINE = ("parallel.pipeline=2", "parallel.num_layers_in_first_pipeline_stage=2")
LAYOUTS = {
    "tensor2-expert2": (4, [*TENSOR, "parallel.expert=2"]),
    "tensor2-pipeline2-expert2": (4, [*TENSOR, *PIPELINE, "parallel.expert=2", "parallel.expert_tensor=1"]),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def published(name: str, directory: Path, precision: str) -> Path:
    """A model of a case with more ids than the tokenizer has; DeepSeek-V3 with a prediction module and fp32 biases."""
    case = CASES[name]
    make(dataclasses.replace(case, options={**case.options, "vocab_size": 400}), directory, DTYPES[precision])
    return keep_biases_in_fp32(add_predictions(directory, 1)) if name == "deepseek_v3" else directory


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("mixtral", "bf16"),
        ("deepseek_v3", "bf16"),
        pytest.param("mixtral", "fp32", marks=pytest.mark.slow),
        pytest.param("deepseek_v3", "fp32", marks=pytest.mark.slow),
    ],
)
def test_every_layout_begins_with_exactly_those_weights_and_exports_them(
    ranks: RankPool, tmp_path: Path, name: str, precision: str
) -> None:
    hf = published(name, tmp_path / "hf", precision)
    from_hf(hf, tmp_path / "megatron")
    expected = MegatronWeights(tmp_path / "megatron")
    config = run_config(tmp_path / "megatron")
    for layout, (world, overrides) in LAYOUTS.items():
        run = tmp_path / layout
        make_tokenizer(run / "tokenizer")
        overrides = [*overrides, f"run.dir={run}", f"precision.dtype={precision}"]
        ranks.run(world, start_and_save, str(config), overrides, str(hf), timeout_s=120)
        saved = MegatronWeights(find_checkpoint(run))
        assert saved.specs == expected.specs
        assert all(torch.equal(saved.read(key), expected.read(key)) for key in saved.specs)
        to_hf(run, tmp_path / f"{layout}_hf")
        assert same_bits(weights(tmp_path / f"{layout}_hf"), weights(hf))


@pytest.mark.dist
def test_a_run_trains_from_them(ranks: RankPool, tiny_run: Path, tmp_path: Path) -> None:
    hf = published("deepseek_v3", tmp_path / "hf", "fp32")
    from_hf(hf, tmp_path / "megatron")
    model, _ = read_model_file(tmp_path / "megatron" / MODEL_FILE)
    told = yaml.safe_load(tiny_run.read_text())
    told["model"] = json.loads(json.dumps(dataclasses.asdict(model) | {"seq_length": 32}))
    tiny_run.write_text(yaml.safe_dump(told))
    overrides = ["optim.lr=1e-30", "optim.weight_decay=0", "train.steps=1", "schedule.warmup_steps=0", *TENSOR]
    overrides += ["parallel.expert=2", "parallel.expert_tensor=1", "model.moe_router_bias_update_rate=1e-30"]
    outcome = pretrain(ranks, tiny_run, *overrides, world=2, init_from=hf)
    assert (outcome.exit_code, outcome.error) == (0, "")
    assert f"first weights from {hf}" in outcome.out
    to_hf(tmp_path / "run", tmp_path / "exported")
    assert same_bits(weights(tmp_path / "exported"), weights(hf))


OTHERS = {
    "layers": (["model.moe_layer_freq=[1,1,1]"], "first_k_dense_replace is [0, 1, 1], model.moe_layer_freq [1, 1, 1]"),
    "score": (
        ["model.moe_router_score_function=softmax", "model.moe_router_enable_expert_bias=false"],
        "moe_router_score_function is sigmoid, model.moe_router_score_function softmax",
    ),
    "width": (["model.moe_ffn_hidden_size=48"], "moe_intermediate_size is 32, model.moe_ffn_hidden_size 48"),
    "modules": (["model.mtp_num_layers=2"], "num_nextn_predict_layers is 1, model.mtp_num_layers 2"),
    "scale": (["model.moe_router_topk_scaling_factor=null"], "routed_scaling_factor is 2.5"),
}


def refusals(ranks: Any, device: Any, config: str, variants: list[list[str]], hf: str) -> list[str]:
    """Runs in the pool: what is said of a directory whose model is not the config's, for each variant of the config."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.errors import UserError
    from megatron_lm_zh.train.start import conversion_for

    said = []
    for overrides in variants:
        try:
            conversion_for(Path(hf), load_config(config, overrides, world=1).model)
            said.append("")
        except UserError as error:
            said.append(str(error))
    return said


@pytest.mark.dist
def test_another_router_is_refused(ranks: RankPool, tmp_path: Path) -> None:
    hf = published("deepseek_v3", tmp_path / "hf", "fp32")
    from_hf(hf, tmp_path / "megatron")
    config = run_config(tmp_path / "megatron")
    variants = [[], *(overrides for overrides, _ in OTHERS.values())]
    (said,) = ranks.run(1, refusals, str(config), variants, str(hf), timeout_s=60)
    assert said[0] == ""
    for message, (_, words) in zip(said[1:], OTHERS.values(), strict=True):
        assert words in message
