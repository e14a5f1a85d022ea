"""The `megatron:` tables: fields read from megatron-core's source, checked, and turned into its arguments."""

from __future__ import annotations

import dataclasses
import enum
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from megatron_lm_zh.config.megatron_fields import TABLES, enum_members, megatron_fields
from megatron_lm_zh.config.passthrough import RESERVED, arguments, check_table

CLASSES = {
    "model": ("megatron.core.transformer.transformer_config", "TransformerConfig"),
    "optim": ("megatron.core.optimizer.optimizer_config", "OptimizerConfig"),
    "ddp": ("megatron.core.distributed.distributed_data_parallel_config", "DistributedDataParallelConfig"),
}


def test_source_and_class_have_the_same_fields() -> None:
    """Compared in a process of its own, since importing megatron-core changes torch's settings."""
    code = "import dataclasses, importlib, json\n"
    code += f"classes = {CLASSES!r}\n"
    code += "fields = lambda module, name: dataclasses.fields(getattr(importlib.import_module(module), name))\n"
    code += "print(json.dumps({table: [f.name for f in fields(*place)] for table, place in classes.items()}))"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    for table, names in json.loads(run.stdout.splitlines()[-1]).items():
        assert set(megatron_fields(table)) == {name for name in names if not name.startswith("_")}


def test_fields_carry_type_default_and_doc() -> None:
    field = megatron_fields("model")["moe_router_topk"]
    assert (field.type_name, field.default, field.owner) == ("int", "2", "TransformerConfig")
    assert "experts" in field.doc
    assert megatron_fields("model")["perform_initialization"].default == "True"  # through dataclasses.field
    assert "flash" in enum_members("AttnBackend")
    assert enum_members("int") == ()


def test_reserved_fields_exist() -> None:
    """A name that this megatron-core has not is either of another supported release or a slip; at most a few are."""
    fields = {table: megatron_fields(table) for table in TABLES}
    unknown = {f"{table}.{key}" for table, keys in RESERVED.items() for key in keys if key not in fields[table]}
    assert unknown <= {"model.mtp_standalone", "model.hybrid_context_parallel", "model.max_seqlen_per_dp_cp_rank"}
    assert set(RESERVED) == set(TABLES)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fp8_margin", 1),
        ("softmax_scale", None),
        ("cross_entropy_fusion_impl", "te"),
        ("recompute_modules", ["core_attn", "mlp"]),
        ("attention_backend", "flash"),
        ("moe_router_load_balancing_type", ["aux_loss", "none"]),
        ("moe_aux_loss_coeff", 1),
        ("fp32_residual_connection", True),
    ],
)
def test_fitting_values_pass(key: str, value: object) -> None:
    errors = check_table("model", {key: value})
    assert errors == {} or "not to be set here" in str(errors[key])
    if key != "softmax_scale":
        assert errors == {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "model.megatron.fp8_margin=wide",
            "model.megatron.fp8_margin: found 'wide'; expected int, as in megatron-core 0.",
        ),
        ("model.megatron.fp8_margin=true", "found true; expected int"),
        ("model.megatron.qk_clip_alpha=.nan", "found nan; expected float"),
        ("model.megatron.attention_backend=flas", "expected AttnBackend (flash, fused, unfused, local, auto"),
        ("model.megatron.activation_func=relu", "cannot be set in a config file; its type is Callable"),
        ("model.megatron.fp8_margn=1", "has no such field in TransformerConfig; did you mean fp8_margin?"),
        ("model.megatron.num_layer=1", "use model.num_layers instead"),
        ("model.megatron.num_layers=1", "not to be set here; use model.num_layers instead"),
        ("model.megatron.tensor_model_parallel_size=2", "use parallel.tensor instead"),
        ("model.megatron.bf16=true", "use precision.dtype instead"),
        ("model.megatron.num_moe_experts=8", "set by model.family"),
        ("model.megatron.context_parallel_size=2", "the layout is set by parallel.tensor"),
        ("optim.megatron.lr=1", "use optim.lr instead"),
        ("optim.megatron.min_lr=1", "use schedule.min_lr instead"),
        ("optim.megatron.muon_momentum=0.9", "the optimizer is AdamW"),
        ("optim.megatron.exp_avg_dtype=bf17", "expected torch.dtype (fp32, bf16, fp16)"),
        ("ddp.megatron.use_distributed_optimizer=true", "use optim.use_distributed_optimizer instead"),
        ("ddp.megatron.bucket_size=big", "expected Optional[int]"),
        ("ddp.megatron=3", "ddp.megatron: found 3; expected table"),
    ],
)
def test_wrong_fields_are_one_line(complaints: Callable[..., list[str]], override: str, words: str) -> None:
    (line,) = complaints(overrides=(override,))
    assert line.startswith(f"override {override[:30]}")
    assert words in line


class Backend(enum.Enum):
    """Stands for one of megatron-core's enums."""

    flash = 1


@dataclasses.dataclass
class Megatron:
    """Stands for one of megatron-core's config classes."""

    dtype: torch.dtype | None = None
    backend: Backend = Backend.flash
    window: tuple[int, int] | None = None
    scope: str | Backend = "full"
    modules: list[str] | None = None
    margin: int = 0


def test_values_become_arguments_of_the_class() -> None:
    values = {"dtype": "bf16", "backend": "flash", "window": [1, 2], "scope": "full", "modules": ["a"], "margin": 3}
    given = Megatron(**arguments(Megatron, values))
    assert given == Megatron(torch.bfloat16, Backend.flash, (1, 2), "full", ["a"], 3)
