"""What a config asks of the machine: asked once at the start, and where the machine lacks it, answered in one line.

`REQUIREMENTS` is the whole of it: which value of which key needs what, why, and what would do instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError, UserErrors
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.runtime.needs import (
    Machine,
    Need,
    Software,
    all_of,
    capability,
    cuda,
    either,
    gpu,
    installed,
    module,
    muon,
    other_layers,
    separate_softmax,
    transformer_engine,
)


@dataclass(frozen=True)
class Requirement:
    """A value of a key that asks for something a machine may lack."""

    key: str
    values: tuple[Any, ...]
    need: Need
    reason: str
    instead: str | Callable[[Machine], str]
    when: Callable[[Config], bool]
    """Whether the value asks for it here, with the other keys as they are."""

    def check(self, config: Config, machine: Machine) -> UserError | None:
        """The error where the config asks and the machine lacks."""
        value = reduce(getattr, self.key.split("."), config)
        if value not in self.values or not self.when(config) or (lacking := self.need(machine)) is None:
            return None
        asked = "" if value is True else f" {value}"
        instead = self.instead(machine) if callable(self.instead) else self.instead
        return UserError(f"{self.key}:{asked} needs {lacking}; {self.reason}; this is {machine.name}", mend=instead)


def check_device(config: Config, device: Device, software: Software | None = None) -> None:
    """Refuses what the device cannot run, all at once.

    Args:
        software: what to take for installed; None looks.

    Raises:
        UserErrors: one line for each key that asks for what is not there.
    """
    machine = Machine(device, software or installed())
    errors = [error for row in REQUIREMENTS if (error := row.check(config, machine))]
    if errors:
        raise UserErrors(errors)


# From Transformer Engine's transformer_engine/pytorch/quantization.py (compute capability, CUDA) and megatron-core's
# fp8_utils.py and fp4_utils.py (versions).
RECIPES: dict[str, Need] = {
    "delayed": all_of(transformer_engine(), capability((8, 9))),
    "tensorwise": all_of(transformer_engine(2, 2), capability((8, 9))),
    "blockwise": all_of(transformer_engine(2, 3), capability((9, 0)), cuda(12, 9)),
    "mxfp8": all_of(transformer_engine(2, 1), capability((10, 0), below=(12, 0))),
}
NVFP4 = all_of(transformer_engine(2, 7), capability((10, 0)))


def _row(
    key: str,
    need: Need,
    reason: str,
    *,
    values: tuple[Any, ...] = (True,),
    instead: str | Callable[[Machine], str] = "",
    when: Callable[[Config], bool] = lambda config: True,
) -> Requirement:
    otherwise = "leave it out: the default takes what is there" if key.startswith("kernels.") else f"remove {key}"
    return Requirement(key, values, need, reason, instead or otherwise, when)


def _recipe(name: str, reason: str) -> Requirement:
    return _row(
        "precision.fp8_recipe",
        RECIPES[name],
        reason,
        values=(name,),
        instead=_quantised_instead,
        when=lambda config: config.precision.fp8 is not None,
    )


def _quantised_instead(machine: Machine) -> str:
    recipes = [name for name, need in RECIPES.items() if need(machine) is None]
    if not recipes:
        return "remove precision.fp8 and precision.fp4: bf16 runs here"
    return f"here would do: precision.fp8: hybrid with fp8_recipe {' or '.join(recipes)}, and bf16"


def _recomputes_quantised(config: Config) -> bool:
    return config.precision.fp8 is not None and bool({"moe_act", "layernorm"} & set(config.model.recompute_modules))


TE = transformer_engine()

REQUIREMENTS: tuple[Requirement, ...] = (
    _recipe("delayed", "FP8 tensor cores came with Ada and Hopper"),
    _recipe("tensorwise", "FP8 tensor cores came with Ada and Hopper"),
    _recipe("blockwise", "products of scaled blocks came with Hopper and CUDA 12.9"),
    _recipe("mxfp8", "tensor cores that scale blocks of 32 came with the data-centre Blackwell"),
    _row(
        "precision.fp4",
        NVFP4,
        "FP4 tensor cores came with Blackwell",
        values=("e2m1",),
        instead=_quantised_instead,
    ),
    _row(
        "optim.optimizer",
        muon,
        "megatron-core takes Muon from there",
        values=("muon",),
        instead="pip install 'megatron-core>=0.19,<0.20' 'emerging-optimizers>=0.2,<1' with Python 3.12, or use adam",
    ),
    _row(
        "optim.use_precision_aware_optimizer",
        TE,
        "only Transformer Engine's Adam keeps its states in other formats",
        when=lambda config: not config.optim.optimizer_cpu_offload,
    ),
    _row("optim.optimizer_cpu_offload", gpu, "it moves states from a GPU to the host, where they are already"),
    _row(
        "ddp.use_megatron_fsdp",
        module("einops"),
        "Megatron-FSDP arranges its mesh of ranks with it",
        instead="pip install einops, or use optim.use_distributed_optimizer: true alone",
    ),
    _row("parallel.tp_comm_overlap", TE, "Transformer Engine's linear layers do the overlap"),
    _row(
        "parallel.cp_comm_type",
        TE,
        "Transformer Engine's attention does this exchange",
        values=("p2p", "a2a", "a2a+p2p"),
        instead="use all_gather, which runs on any device",
        when=lambda config: config.parallel.context > 1,
    ),
    _row(
        "parallel.cp_comm_type",
        other_layers,
        "its attention gathers no keys and values of different widths",
        values=("all_gather",),
        instead="use p2p",
        when=lambda config: config.parallel.context > 1 and config.model.multi_latent_attention,
    ),
    _row(
        "data.reset_attention_mask",
        other_layers,
        "its attention expects every document cut into chunks of its own",
        instead="set parallel.context: 1",
        when=lambda config: config.parallel.context > 1 and config.model.position_embedding_type != "alibi",
    ),
    _row(
        "model.multi_latent_attention",
        other_layers,
        "its layers sum the gradient of the keys' shared rotary part under sequence parallelism alone",
        instead="set parallel.sequence: true",
        when=lambda config: config.parallel.tensor > 1 and not config.parallel.sequence,
    ),
    _row("model.moe_grouped_gemm", all_of(TE, capability((8, 0))), "Transformer Engine has the grouped multiplication"),
    _row("model.moe_permute_fusion", transformer_engine(2, 1), "Transformer Engine has the kernel"),
    _row("model.moe_shared_expert_overlap", gpu, "the overlap is between CUDA streams"),
    _row(
        "model.moe_token_dispatcher_type",
        module("deep_ep"),
        "DeepEP and HybridEP are what sends the tokens",
        values=("flex",),
        instead="use alltoall",
        when=lambda config: config.model.num_moe_experts is not None,
    ),
    _row(
        "model.cuda_graph_impl",
        gpu,
        "a CUDA graph records the stream of a GPU",
        values=("local",),
        instead="use none",
    ),
    _row(
        "model.cuda_graph_impl",
        TE,
        "Transformer Engine records these graphs",
        values=("transformer_engine",),
        instead="use local on a GPU, or none",
    ),
    _row("model.fine_grained_activation_offloading", gpu, "it moves activations to the host, where they are already"),
    _row(
        "model.recompute_granularity",
        transformer_engine(2, 6),
        "older ones cannot compute moe_act and layernorm again under FP8",
        values=("selective",),
        instead="take moe_act and layernorm out of model.recompute_modules",
        when=_recomputes_quantised,
    ),
    _row(
        "kernels.gradient_accumulation_fusion",
        either(TE, module("fused_weight_gradient_mlp_cuda")),
        "Transformer Engine and Apex have the product that adds to its output",
    ),
    _row("kernels.cross_entropy_loss_fusion", gpu, "torch.compile makes it for GPUs; here our own takes few passes"),
    _row("kernels.bias_dropout_fusion", gpu, "torch.compile makes it for GPUs"),
    _row("kernels.masked_softmax_fusion", separate_softmax, "every attention here has its softmax in one kernel"),
    _row(
        "kernels.apply_rope_fusion",
        gpu,
        "megatron-core's kernel for latent attention is triton's",
        when=lambda config: config.model.multi_latent_attention,
    ),
)
