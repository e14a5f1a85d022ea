"""A manifest's layout: every axis that says which rank holds what, and manifests from before some of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from megatron_lm_zh.checkpoint.manifest import Layout, Manifest, read_manifest
from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

FORMAT_1 = {
    "format_version": 1,
    "step": 2,
    "consumed_samples": 16,
    "layout": {"world": 4, "tensor": 2, "pipeline": 1, "sequence": True},
    "files": {"common.pt": {"bytes": 3, "sha256": "0" * 64}},
}

TP2 = ["parallel.tensor=2", "parallel.sequence=true"]
VPP2 = ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]
EXPERTS = ["model.family=gpt", "model.num_moe_experts=4"]
LAYOUTS = {
    "virtual_pipeline": VPP2,
    "pipeline_model_parallel_layout": ["parallel.pipeline=2", "parallel.pipeline_model_parallel_layout=Ett|ttL"],
    "num_layers_in_first_pipeline_stage": ["parallel.pipeline=2", "parallel.num_layers_in_first_pipeline_stage=1"],
    "num_layers_in_last_pipeline_stage": ["parallel.pipeline=2", "parallel.num_layers_in_last_pipeline_stage=1"],
    "context": ["parallel.context=2"],
    "expert": [*EXPERTS, "parallel.expert=2"],
    "expert_tensor": [*EXPERTS, *TP2, "parallel.expert=2", "parallel.expert_tensor=1"],
    "order": ["parallel.order=tp-cp-ep-pp-dp"],
}


def config(path: Path, *overrides: str) -> Config:
    return load_config(path, overrides, world=4)


def test_a_manifest_without_the_newer_axes_has_none_of_them(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(FORMAT_1))
    manifest = read_manifest(tmp_path)
    assert manifest.layout == Layout.of(config(tiny_run, *TP2), 4)
    assert manifest.layout != Layout.of(config(tiny_run, *TP2, "parallel.context=2"), 4)
    assert manifest.distrib_optim_sharding_type == "fully_reshardable"


@pytest.mark.parametrize("axis", LAYOUTS)
def test_every_axis_makes_another_layout(axis: str, tiny_run: Path) -> None:
    changes = LAYOUTS[axis]
    here = asdict(Layout.of(config(tiny_run, *changes), 4))
    without = [change for change in changes if not change.startswith(f"parallel.{axis}=")]
    before = asdict(Layout.of(config(tiny_run, *without), 4))
    assert [name for name in here if here[name] != before[name]] == [axis]


def test_experts_axes_count_where_there_are_experts(tiny_run: Path) -> None:
    assert Layout.of(config(tiny_run, *TP2), 4).expert_tensor == 1
    assert Layout.of(config(tiny_run, *TP2, *EXPERTS), 4).expert_tensor == 2


def test_what_is_written_is_read(tmp_path: Path) -> None:
    layout = Layout(8, 2, 2, True, virtual_pipeline=2, pipeline_model_parallel_layout="Et|t|t|tL", context=2)
    manifest = Manifest(2, 10, 80, layout, {}, "dp_reshardable")
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest


def test_another_format_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(FORMAT_1 | {"format_version": 3}))
    with pytest.raises(UserError, match=r"format version 3; expected version 1 or 2"):
        read_manifest(tmp_path)
