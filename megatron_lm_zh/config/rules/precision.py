"""Rules of number formats."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import rule
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError


@rule("precision.fp8", "precision.dtype")
def fp8_needs_bf16(config: Config, world: int | None) -> UserError | None:
    """FP8 matrix multiplications take their inputs from bf16 activations."""
    if config.precision.fp8 is None or config.precision.dtype == "bf16":
        return None
    what = f"precision.fp8: needs precision.dtype: bf16, found {config.precision.dtype}"
    return UserError(what, mend="set precision.dtype: bf16, or remove precision.fp8")


@rule(
    "precision.fp8",
    "model.hidden_size",
    "model.ffn_hidden_size",
    "model.num_attention_heads",
    "model.num_query_groups",
    "model.kv_channels",
    "parallel.tensor",
)
def fp8_matrices_are_aligned(config: Config, world: int | None) -> UserError | None:
    """FP8 tensor cores multiply blocks of 16: every rank's part of every weight must be a multiple of 16 wide."""
    if config.precision.fp8 is None:
        return None
    model, tensor = config.model, config.parallel.tensor
    widths = {
        "hidden_size": model.hidden_size,
        "ffn_hidden_size / tensor": model.ffn_hidden_size / tensor,
        "num_attention_heads x kv_channels / tensor": model.num_attention_heads * model.kv_channels / tensor,
        "num_query_groups x kv_channels / tensor": model.num_query_groups * model.kv_channels / tensor,
    }
    wrong = [f"{name} = {width:g}" for name, width in widths.items() if width % 16]
    if not wrong:
        return None
    return UserError(f"precision.fp8: {', '.join(wrong)}", expected="multiples of 16")


RULES = (fp8_needs_bf16, fp8_matrices_are_aligned)
