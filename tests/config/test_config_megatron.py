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
from megatron_lm_zh.config.passthrough import RESERVED, arguments, check_table, mend_for

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


# Reserved fields that only one of the supported releases has.
OF_ONE_RELEASE = {
    "model.moe_extended_tp",  # gone in 0.19
    "model.tensor_parallel_num_weight_shards",  # new in 0.19, as are those below
    "model.gtp_weight_remat_size",
    "model.expert_tensor_parallel_num_weight_shards",
    "model.expert_gtp_weight_remat_size",
    "model.use_mup",
}


def test_reserved_fields_exist() -> None:
    """A name that this megatron-core has not is either of another supported release or a slip."""
    fields = {table: megatron_fields(table) for table in TABLES}
    unknown = {f"{table}.{key}" for table, keys in RESERVED.items() for key in keys if key not in fields[table]}
    assert unknown < OF_ONE_RELEASE
    assert set(RESERVED) == set(TABLES)


def test_nothing_is_reserved_that_a_section_has() -> None:
    """A key of a section is the better answer than a line in RESERVED, which would never be read."""
    for table, keys in RESERVED.items():
        assert not [key for key in keys if mend_for(table, key) != keys[key]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fp8_dot_product_attention", True),
        ("qk_clip_alpha", 1),
        ("cross_entropy_fusion_impl", "native"),
        ("tp_comm_bootstrap_backend", "nccl"),
        ("attention_backend", "flash"),
        ("moe_input_jitter_eps", None),
        ("fp32_residual_connection", True),
    ],
)
def test_fitting_values_pass(key: str, value: object) -> None:
    assert check_table("model", {key: value}) == {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "model.megatron.min_offloaded_tensor_size=wide",
            "model.megatron.min_offloaded_tensor_size: found 'wide'; expected int, as in megatron-core 0.",
        ),
        ("model.megatron.min_offloaded_tensor_size=true", "found true; expected int"),
        ("model.megatron.qk_clip_alpha=.nan", "found nan; expected float"),
        ("model.megatron.attention_backend=flas", "expected AttnBackend (flash, fused, unfused, local, auto"),
        ("model.megatron.init_method=normal", "cannot be set in a config file; its type is Optional[Callable]"),
        ("model.megatron.qk_clip_alpa=1", "has no such field in TransformerConfig; did you mean qk_clip_alpha?"),
        ("model.megatron.num_layer=1", "use model.num_layers instead"),
        ("model.megatron.num_layers=1", "not to be set here; use model.num_layers instead"),
        ("model.megatron.num_moe_experts=8", "not to be set here; use model.num_moe_experts instead"),
        ("model.megatron.activation_func=relu", "use model.activation instead"),
        ("model.megatron.tensor_model_parallel_size=2", "use parallel.tensor instead"),
        ("model.megatron.context_parallel_size=2", "use parallel.context instead"),
        ("model.megatron.tp_comm_overlap=true", "use parallel.tp_comm_overlap instead"),
        ("model.megatron.variable_seq_lengths=true", "the layout is set in the `parallel` section"),
        ("model.megatron.bf16=true", "use precision.dtype instead"),
        ("model.megatron.fp8_margin=1", "not to be set here; use precision.fp8_margin instead"),
        ("model.megatron.apply_rope_fusion=true", "use kernels.apply_rope_fusion instead"),
        ("model.megatron.enable_cuda_graph=true", "use model.cuda_graph_impl instead"),
        ("model.megatron.qk_l2_norm=true", "this system does not build such networks"),
        ("optim.megatron.lr=1", "use optim.lr instead"),
        ("optim.megatron.min_lr=1", "use schedule.min_lr instead"),
        ("optim.megatron.loss_scale=1", "use precision.loss_scale instead"),
        ("optim.megatron.exp_avg_dtype=bf16", "not to be set here; use optim.exp_avg_dtype instead"),
        ("optim.megatron.params_dtype=bf17", "use precision.dtype instead"),
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
