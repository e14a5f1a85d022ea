"""Scaling a run down keeps its features and its rules; what is said of it is what was done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_lm_zh.config.load import load_config, to_yaml
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.stages import layers_of_stages, parse_layout
from megatron_lm_zh.parity.one_rank import alone
from megatron_lm_zh.parity.report import by_design, changes, kept
from megatron_lm_zh.parity.scale import scaled_down
from megatron_lm_zh.runtime.device import Device

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
DENSE, MOE, DEEPSEEK = (ROOT / "examples" / "parity" / f"{name}.yaml" for name in ("dense", "moe", "deepseek"))
CPU = Device("cpu", "a processor", torch.device("cpu"), "gloo", False)
AXES = ("tensor", "context", "pipeline", "virtual_pipeline", "expert")


def small(path: Path, *overrides: str, fp32: bool = True) -> tuple[Config, Config, int]:
    """A config, and what becomes of it here, on how many ranks."""
    asked = load_config(path, overrides)
    return asked, *scaled_down(asked, CPU, steps=20, ranks=None, fp32=fp32, vocabulary=True)


def check(config: Config, world: int, tmp_path: Path) -> None:
    """Loads the config again, so that every rule is asked, in its layout and on one rank."""
    for size, written in ((world, config), (1, alone(config))):
        path = tmp_path / f"{size}.yaml"
        path.write_text(to_yaml(written), encoding="utf-8")
        assert load_config(path, world=size) == written


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_scale_down_to_a_laptop(path: Path, tmp_path: Path) -> None:
    asked, config, world = small(path)
    check(config, world, tmp_path)
    assert world <= 8
    for axis in AXES:
        assert (getattr(config.parallel, axis) > 1) == (getattr(asked.parallel, axis) > 1), axis
    assert config.parallel.sequence == asked.parallel.sequence
    assert config.optim.use_distributed_optimizer == asked.optim.use_distributed_optimizer
    assert (config.model.num_moe_experts is None) == (asked.model.num_moe_experts is None)
    for name in ("family", "activation", "multi_latent_attention", "qk_layernorm", "tie_embeddings", "mtp_num_layers"):
        assert getattr(config.model, name) == getattr(asked.model, name)


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (DENSE, "parallel.tensor=8 parallel.sequence=true model.num_attention_heads=32 model.num_query_groups=8"),
        (DENSE, "parallel.pipeline=4 parallel.virtual_pipeline=2 model.num_layers=16"),
        (DENSE, "parallel.pipeline=4 parallel.num_layers_in_first_pipeline_stage=1 model.num_layers=10"),
        (
            DENSE,
            "parallel.pipeline=8 parallel.num_layers_in_first_pipeline_stage=5 model.num_layers=32 "
            "parallel.num_layers_in_last_pipeline_stage=3",
        ),
        (
            DENSE,
            "parallel.pipeline=8 model.num_layers=30 parallel.account_for_embedding_in_pipeline_split=true "
            "parallel.account_for_loss_in_pipeline_split=true",
        ),
        (DENSE, "parallel.context=4 model.seq_length=4096 model.window_size=[1023,0] model.window_attn_skip_freq=4"),
        (DENSE, "parallel.tensor=2 data.reset_attention_mask=true data.reset_position_ids=true"),
        (DENSE, "parallel.pipeline=2 train.rampup_batch_size=[4,4,64]"),
        (DENSE, "parallel.tensor=2 precision.dtype=fp16 optim.optimizer=sgd"),
        (DENSE, "model.recompute_granularity=full model.recompute_method=block model.recompute_num_layers=3"),
        (MOE, "parallel.expert=8 model.num_moe_experts=64 model.moe_router_topk=8 model.moe_layer_freq=2"),
        (MOE, "parallel.expert=4 parallel.tensor=4 parallel.sequence=true parallel.expert_tensor=1 "
         "model.num_query_groups=4"),
        (DEEPSEEK, "parallel.expert=4 model.num_moe_experts=64 model.moe_router_topk=8 model.moe_router_num_groups=8 "
         "model.moe_router_group_topk=4"),
        (DEEPSEEK, "parallel.pipeline=4 'parallel.pipeline_model_parallel_layout=Et|t|tt|mL'"),
    ],
)  # fmt: skip
def test_rules_stay_kept(path: Path, overrides: str, tmp_path: Path) -> None:
    import shlex

    for fp32 in (True, False):
        asked, config, world = small(path, *shlex.split(overrides), fp32=fp32)
        check(config, world, tmp_path)
        assert config.precision.dtype == ("fp32" if fp32 else asked.precision.dtype)
        assert config.optim.clip_grad <= 0.1


def test_uneven_stages_stay_uneven() -> None:
    layout = "Et*3|(tt|)*29m|L"
    overrides = ["model.num_layers=61", "model.moe_layer_freq=1", "parallel.pipeline=16", "parallel.virtual_pipeline=2"]
    _, config, _ = small(DEEPSEEK, *overrides, f"parallel.pipeline_model_parallel_layout={layout}")
    assert config.parallel.pipeline_model_parallel_layout is not None
    assert parse_layout(config.parallel.pipeline_model_parallel_layout) == ["Ett", "t", "t", "t", "m", "L"]
    first = "parallel.num_layers_in_first_pipeline_stage=3"
    _, config, _ = small(DENSE, "model.num_layers=33", "parallel.pipeline=6", first)
    assert layers_of_stages(config) == [1, 2]


def test_patterns_keep_both_kinds_of_layer() -> None:
    frequency = [0, 0, 0, *([1] * 57), 0]
    _, config, _ = small(DEEPSEEK, "model.num_layers=61", f"model.moe_layer_freq={frequency}")
    assert config.model.moe_layer_freq == (0, 1, 1, 0)
    _, config, _ = small(DEEPSEEK, "model.num_layers=61", f"model.moe_layer_freq={[0] + [1] * 60}")
    assert config.model.moe_layer_freq == (0, 1, 1, 1)


def test_what_a_cpu_lacks_is_switched_off() -> None:
    config = load_config(
        ROOT / "examples/configs/8x7b.yaml", ["precision.fp8=hybrid", "precision.fp8_recipe=tensorwise"]
    )
    here, _ = scaled_down(config, CPU, steps=20, ranks=None, fp32=False, vocabulary=True)
    assert config.model.moe_grouped_gemm and not here.model.moe_grouped_gemm
    assert here.precision.dtype == "bf16" and here.precision.fp8 is None
    said = " ".join(changes(config, here))
    assert "moe_grouped_gemm true -> false" in said
    assert "fp8 hybrid -> null" in said
    assert "overlap_grad_reduce" in " ".join(kept(config, here))


def test_it_says_where_layouts_differ_by_design() -> None:
    sequence = ["parallel.tensor=2", "parallel.sequence=true", "model.moe_expert_capacity_factor=1.0"]
    capacity = load_config(MOE, sequence)
    notes = [" ".join(note.split()) for note in by_design(capacity, 2)]
    assert any("capacity" in note and "moe_expert_capacity_factor=null" in note for note in notes)
    whole = load_config(MOE, ["parallel.expert=2", "model.moe_router_load_balancing_type=global_aux_loss"])
    assert any("global_aux_loss" in note for note in by_design(whole, 2))
    assert not any("global_aux_loss" in note for note in by_design(whole, 1))
    assert not list(by_design(load_config(DENSE), 8))
