"""Number formats and kernels in megatron-core's words: every argument is a field of the config it is meant for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.pool import RankPool
from support.tiny import tiny_config

from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.models.precision import gradient_arguments, kernel_arguments, precision_arguments
from megatron_lm_zh.runtime.device import Device

CPU = Device("cpu", "a CPU", torch.device("cpu"), "gloo", False)
PLAIN = Device("cuda", "H100", torch.device("cuda"), "nccl", False, (9, 0))
H100 = Device("cuda", "H100", torch.device("cuda"), "nccl", True, (9, 0))

FP8 = ("precision.dtype=bf16", "precision.fp8=hybrid")
MXFP8 = (
    *FP8,
    "precision.fp8_recipe=mxfp8",
    "precision.fp8_param_gather=true",
    "optim.use_distributed_optimizer=true",
    "model.kv_channels=32",
)


def config_of(path: Path, *overrides: str) -> Config:
    """The tiny run with other settings."""
    file = path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_config(path, path / "run")))
    return load_config(file, overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {"params_dtype": torch.float32, "bf16": False, "fp16": False}),
        (("precision.dtype=bf16",), {"params_dtype": torch.bfloat16, "pipeline_dtype": torch.bfloat16, "bf16": True}),
        (("precision.dtype=fp16",), {"params_dtype": torch.float16, "bf16": False, "fp16": True}),
        (FP8, {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_param": False, "fp8_amax_history_len": 1024}),
        (MXFP8, {"fp8_recipe": "mxfp8", "fp8_param": True}),
        (("precision.dtype=bf16", "precision.fp4=e2m1"), {"fp4": "e2m1", "fp4_recipe": "nvfp4"}),
        (
            (*FP8, "precision.fp8_recipe=tensorwise", "precision.first_last_layers_bf16=true"),
            {"first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 1},
        ),
    ],
)
def test_formats(tmp_path: Path, overrides: tuple[str, ...], expected: dict[str, Any]) -> None:
    arguments = precision_arguments(config_of(tmp_path, *overrides))
    assert {name: arguments[name] for name in expected} == expected


def test_what_is_not_asked_for_is_not_said(tmp_path: Path) -> None:
    assert not {"fp8", "fp8_recipe", "fp4"} & set(precision_arguments(config_of(tmp_path)))


def test_gradients_are_reduced_in_fp32(tmp_path: Path) -> None:
    def reduced(*overrides: str) -> Any:
        return gradient_arguments(config_of(tmp_path, *overrides))["grad_reduce_in_fp32"]

    sharded = ("optim.use_distributed_optimizer=true", "optim.use_precision_aware_optimizer=true")
    assert (reduced(), reduced("precision.dtype=bf16"), reduced("precision.dtype=fp16")) == (False, True, True)
    assert not reduced("precision.dtype=bf16", *sharded, "optim.main_grads_dtype=bf16")


def test_mxfp8_weights_are_gathered_through_the_gradients(tmp_path: Path) -> None:
    gathered = gradient_arguments(config_of(tmp_path, *MXFP8))
    assert gathered["fp8_param_gather"] and gathered["reuse_grad_buf_for_mxfp8_param_ag"]
    per_tensor = gradient_arguments(config_of(tmp_path, *MXFP8, "precision.fp8_recipe=tensorwise"))
    assert per_tensor["fp8_param_gather"] and not per_tensor["reuse_grad_buf_for_mxfp8_param_ag"]


def kernels(path: Path, device: Device, *overrides: str) -> set[str]:
    """The kernels that are on."""
    return {name for name, on in kernel_arguments(config_of(path, *overrides), device).items() if on}


def test_kernels_are_what_the_device_has(tmp_path: Path) -> None:
    anywhere = {"bias_activation_fusion", "apply_rope_fusion"}
    on_gpus = {"bias_dropout_fusion", "cross_entropy_loss_fusion"}
    assert kernels(tmp_path, CPU) == anywhere
    assert kernels(tmp_path, PLAIN) == anywhere | on_gpus
    assert kernels(tmp_path, H100) == anywhere | on_gpus | {"gradient_accumulation_fusion"}


def test_kernels_are_what_the_model_has(tmp_path: Path) -> None:
    def on(*overrides: str) -> set[str]:
        return kernels(tmp_path, PLAIN, "model.family=gpt", *overrides)

    assert "bias_activation_fusion" not in on("model.activation=squared_relu")
    assert "bias_activation_fusion" not in on("model.activation=gelu", "model.add_bias_linear=false")
    assert "bias_activation_fusion" in on("model.activation=gelu", "model.add_bias_linear=true")
    assert "apply_rope_fusion" not in on("model.position_embedding_type=learned_absolute")
    assert "apply_rope_fusion" in on("model.rotary_percent=0.5")
    yarn = "model.rope_scaling={kind: yarn, factor: 4.0, original_max_position_embeddings: 8}"
    assert "apply_rope_fusion" not in on(yarn)
    assert "cross_entropy_loss_fusion" not in on("train.z_loss_coeff=1e-4")
    assert "cross_entropy_loss_fusion" not in on("run.deterministic=true")


def test_kernels_are_what_is_asked_for(tmp_path: Path) -> None:
    off = [f"kernels.{name}=false" for name in kernel_arguments(config_of(tmp_path), H100)]
    assert kernels(tmp_path, H100, *off) == set()
    assert "bias_dropout_fusion" in kernels(tmp_path, CPU, "kernels.bias_dropout_fusion=true")


def _unknown_fields(ranks: Any, device: Any, configs: list[Any]) -> list[str]:
    """Runs in the pool: arguments that megatron-core's configs do not have."""
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

    def fields(kind: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    unknown = []
    for config in configs:
        model = precision_arguments(config) | kernel_arguments(config, device)
        unknown += sorted(set(model) - fields(TransformerConfig))
        unknown += sorted(set(gradient_arguments(config)) - fields(DistributedDataParallelConfig))
    return unknown


@pytest.mark.dist
def test_megatron_core_knows_every_argument(ranks: RankPool, tmp_path: Path) -> None:
    asked = ((), FP8, MXFP8, ("precision.dtype=bf16", "precision.fp4=e2m1"))
    configs = [config_of(tmp_path, *overrides) for overrides in asked]
    assert ranks.run(1, _unknown_fields, configs) == [[]]
