"""What a machine lacks is one line that names the key, the machine and what would do; on made-up devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.tiny import tiny_config

from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserErrors
from megatron_lm_zh.runtime import capabilities
from megatron_lm_zh.runtime.capabilities import REQUIREMENTS, check_device
from megatron_lm_zh.runtime.device import Device, detect
from megatron_lm_zh.runtime.needs import Software, installed

CPU = Device("cpu", "a CPU", torch.device("cpu"), "gloo", False)
EVERYTHING = Software((2, 9, 0), (12, 9), frozenset({"deep_ep", "einops", "fused_weight_gradient_mlp_cuda"}), True)
BARE = Software()


def gpu(name: str, major: int, minor: int, *, transformer_engine: bool = True) -> Device:
    return Device("cuda", name, torch.device("cuda"), "nccl", transformer_engine, (major, minor))


A100, L40, H100 = gpu("A100", 8, 0), gpu("L40", 8, 9), gpu("H100", 9, 0)
B200, RTX_PRO = gpu("B200", 10, 0), gpu("RTX PRO 6000", 12, 0)
H100_ALONE = gpu("H100", 9, 0, transformer_engine=False)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path, tmp_path / "run")))
    return load_config(path)


def changed(config: Config, settings: dict[str, Any]) -> Config:
    """The config with other values of some keys, whatever the rules say: a device is asked about each by itself."""
    for key, value in settings.items():
        section, field = key.split(".")
        inner = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: inner})
    return config


def complaints(config: Config, device: Device, software: Software, settings: dict[str, Any]) -> list[str]:
    try:
        check_device(changed(config, settings), device, software)
    except UserErrors as errors:
        return str(errors).splitlines()
    return []


FP8: dict[str, Any] = {"precision.dtype": "bf16", "precision.fp8": "hybrid"}
MOE: dict[str, Any] = {"model.num_moe_experts": 4}

# Settings, a machine that lacks what they need, words of the line, a machine that has it.
LACKING: list[tuple[dict[str, Any], Device, Software, str, Device]] = [
    (
        FP8,
        CPU,
        BARE,
        "precision.fp8_recipe: delayed needs a GPU; FP8 tensor cores came with Ada and Hopper; this is a CPU; "
        "remove precision.fp8 and precision.fp4: bf16 runs here",
        L40,
    ),
    (FP8, A100, EVERYTHING, "needs compute capability 8.9 or higher", L40),
    (FP8, H100_ALONE, BARE, "needs Transformer Engine (mlzh doctor says how to get it)", H100),
    (FP8 | {"precision.fp8_recipe": "tensorwise"}, H100, Software((2, 1)), "Transformer Engine 2.2 or newer", H100),
    (
        FP8 | {"precision.fp8_recipe": "blockwise"},
        L40,
        EVERYTHING,
        "needs compute capability 9.0 or higher; products of scaled blocks came with Hopper and CUDA 12.9; "
        "this is L40 (compute capability 8.9); "
        "here would do: precision.fp8: hybrid with fp8_recipe delayed or tensorwise, and bf16",
        H100,
    ),
    (
        FP8 | {"precision.fp8_recipe": "blockwise"},
        H100,
        Software((2, 9), (12, 8)),
        "needs a torch built with CUDA 12.9 or newer",
        H100,
    ),
    (
        FP8 | {"precision.fp8_recipe": "mxfp8"},
        H100,
        EVERYTHING,
        "needs compute capability 10.0 or higher and below 12.0; tensor cores that scale blocks of 32 came with the "
        "data-centre Blackwell; this is H100 (compute capability 9.0); "
        "here would do: precision.fp8: hybrid with fp8_recipe delayed or tensorwise or blockwise, and bf16",
        B200,
    ),
    (FP8 | {"precision.fp8_recipe": "mxfp8"}, RTX_PRO, EVERYTHING, "and below 12.0", B200),
    ({"precision.fp4": "e2m1"}, H100, EVERYTHING, "precision.fp4: e2m1 needs compute capability 10.0", RTX_PRO),
    ({"precision.fp4": "e2m1"}, B200, Software((2, 6)), "needs Transformer Engine 2.7 or newer", B200),
    (
        {"optim.optimizer": "muon"},
        H100,
        BARE,
        "optim.optimizer: muon needs megatron-core 0.19 and emerging-optimizers 0.2 or newer; "
        "megatron-core takes Muon from there; this is H100 (compute capability 9.0); pip install",
        CPU,
    ),
    (
        {"optim.use_precision_aware_optimizer": True},
        CPU,
        BARE,
        "needs a GPU; only Transformer Engine's Adam keeps its states in other formats",
        A100,
    ),
    ({"optim.optimizer_cpu_offload": True}, CPU, EVERYTHING, "optim.optimizer_cpu_offload: needs a GPU", H100_ALONE),
    ({"ddp.use_megatron_fsdp": True}, H100, BARE, "needs the package einops", H100),
    ({"parallel.tp_comm_overlap": True}, H100_ALONE, EVERYTHING, "parallel.tp_comm_overlap: needs Transf", H100),
    (
        {"parallel.context": 2, "parallel.cp_comm_type": "p2p"},
        CPU,
        EVERYTHING,
        "parallel.cp_comm_type: p2p needs a GPU; Transformer Engine's attention does this exchange; "
        "this is a CPU; use all_gather, which runs on any device",
        H100,
    ),
    (MOE | {"model.moe_grouped_gemm": True}, CPU, EVERYTHING, "model.moe_grouped_gemm: needs a GPU", A100),
    (MOE | {"model.moe_permute_fusion": True}, H100, Software((2, 0)), "needs Transformer Engine 2.1", H100),
    (MOE | {"model.moe_shared_expert_overlap": True}, CPU, EVERYTHING, "between CUDA streams", H100_ALONE),
    (
        MOE | {"model.moe_token_dispatcher_type": "flex"},
        H100,
        BARE,
        "flex needs the package deep_ep; DeepEP and HybridEP are what sends the tokens",
        H100,
    ),
    ({"model.cuda_graph_impl": "local"}, CPU, EVERYTHING, "cuda_graph_impl: local needs a GPU", H100_ALONE),
    ({"model.cuda_graph_impl": "transformer_engine"}, H100_ALONE, EVERYTHING, "records these graphs", H100),
    ({"model.fine_grained_activation_offloading": True}, CPU, EVERYTHING, "offloading: needs a GPU", H100_ALONE),
    (
        FP8
        | {
            "precision.fp8_recipe": "tensorwise",
            "model.recompute_granularity": "selective",
            "model.recompute_modules": ("layernorm",),
        },
        H100,
        Software((2, 5)),
        "needs Transformer Engine 2.6 or newer",
        H100,
    ),
    (
        {"kernels.gradient_accumulation_fusion": True},
        H100_ALONE,
        BARE,
        "needs Transformer Engine (mlzh doctor says how to get it) or the package fused_weight_gradient_mlp_cuda",
        H100_ALONE,
    ),
    (
        {"parallel.context": 2, "model.multi_latent_attention": True, "parallel.sequence": True},
        H100,
        EVERYTHING,
        "its attention gathers no keys and values of different widths; this is H100 (compute capability 9.0); use p2p",
        CPU,
    ),
    (
        {"parallel.context": 2, "data.reset_attention_mask": True},
        H100,
        EVERYTHING,
        "expects every document cut into chunks of its own",
        H100_ALONE,
    ),
    (
        {"parallel.tensor": 2, "model.multi_latent_attention": True},
        H100,
        EVERYTHING,
        "set parallel.sequence: true",
        CPU,
    ),
    ({"kernels.cross_entropy_loss_fusion": True}, CPU, EVERYTHING, "leave it out: the default takes", H100_ALONE),
    ({"kernels.bias_dropout_fusion": True}, CPU, EVERYTHING, "torch.compile makes it for GPUs", H100_ALONE),
    (
        {"kernels.apply_rope_fusion": True, "model.multi_latent_attention": True},
        CPU,
        EVERYTHING,
        "kernel for latent attention is triton's",
        H100_ALONE,
    ),
]


@pytest.mark.parametrize(("settings", "device", "software", "words", "able"), LACKING)
def test_what_is_lacking_is_one_line(
    config: Config, settings: dict[str, Any], device: Device, software: Software, words: str, able: Device
) -> None:
    (line,) = complaints(config, device, software, settings)
    assert words in line
    assert f"this is {device.name}" in line
    assert complaints(config, able, EVERYTHING, settings) == []


def test_a_separate_softmax_is_nowhere(config: Config) -> None:
    for device in (CPU, B200):
        (line,) = complaints(config, device, EVERYTHING, {"kernels.masked_softmax_fusion": True})
        assert "needs an attention with a separate softmax" in line


def test_every_row_is_lacking_somewhere(config: Config) -> None:
    settings = [settings for settings, *_ in LACKING] + [{"kernels.masked_softmax_fusion": True}]
    machines = [capabilities.Machine(device, software) for _, device, software, *_ in LACKING]
    for row in REQUIREMENTS:
        configs = [changed(config, chosen) for chosen in settings]
        assert any(row.check(tried, machine) for tried in configs for machine in machines), row.key
        assert row.reason


def test_all_that_is_lacking_is_reported_together(config: Config) -> None:
    settings = FP8 | {"optim.optimizer": "muon", "model.cuda_graph_impl": "local"}
    assert len(complaints(config, CPU, BARE, settings)) == 3


def test_nothing_is_asked_of_a_plain_run(config: Config) -> None:
    for device in (CPU, H100_ALONE, B200):
        assert complaints(config, device, BARE, {}) == []
        assert complaints(config, device, BARE, {"precision.fp8_recipe": "mxfp8", "parallel.cp_comm_type": "p2p"}) == []


def test_this_machine_is_asked_itself(config: Config) -> None:
    device = detect()
    assert (device.capability is None) == (device.kind == "cpu")
    assert (installed().cuda == ()) == (torch.version.cuda is None)
    check_device(config, device)
