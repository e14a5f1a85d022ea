"""Names of weights in a rank's own file, which count its layers and experts from 0, to the names of the whole model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LAYER = re.compile(r"(decoder|encoder)\.layers\.(\d+)\.(.+)")
_MTP = re.compile(r"(mtp\.layers\.\d+\.)(?:transformer_layer|mtp_model_layer)\.(.+)")
_EXPERT = re.compile(
    r"mlp\.experts\.(?:local_experts\.(\d+)\.(linear_fc[12])\.(weight|bias)|(linear_fc[12])\.(weight|bias)(\d+))"
)
_FUSED = "self_attention.linear_qkv.weight"
_DENSE = "mlp.linear_fc1.weight"
_PASSED_OVER = ("_extra_state", "inv_freq")


@dataclass(frozen=True)
class LocalWeight:
    """One weight of a rank's file."""

    local: str
    """Its name there."""
    layer: int | None
    """Number of its decoder layer among the chunk's; None: it is in none."""
    name: str
    """Its canonical name, with `{layer}` for the number of the layer in the whole model."""
    expert: int | None
    """Which of the rank's experts it belongs to."""


def local_weights(names: Iterable[str]) -> Iterator[LocalWeight]:
    """The weights of one model chunk; norms are named as Transformer Engine names them, whatever the layer spec was."""
    present = [name.removeprefix("module.") for name in names]
    there = set(present)
    for original, name in zip(names, present, strict=True):
        if name.endswith(_PASSED_OVER):
            continue
        if found := _LAYER.fullmatch(name):
            prefix, layer = f"{found[1]}.layers.{found[2]}.", int(found[2])
            inner, expert = _inner(found[3], prefix, there)
            yield LocalWeight(original, layer, "decoder.layers.{layer}." + inner, expert)
        elif found := _MTP.fullmatch(name):
            prefix = name.removesuffix(found[2])
            inner, expert = _inner(found[2], prefix, there)
            yield LocalWeight(original, None, f"{found[1]}transformer_layer.{inner}", expert)
        else:
            yield LocalWeight(original, None, name, None)


def _inner(name: str, prefix: str, there: set[str]) -> tuple[str, int | None]:
    """The canonical name inside a layer, and the number of the rank's expert."""
    if found := _EXPERT.fullmatch(name):
        number, linear, kind = (found[1], found[2], found[3]) if found[1] else (found[6], found[4], found[5])
        return f"mlp.experts.experts.{linear}.{kind}", int(number)
    module, _, kind = name.rpartition(".")
    moved = {"input_layernorm": _FUSED, "pre_mlp_layernorm": _DENSE}
    latents = ("q", "kv")
    moved |= {f"self_attention.{one}_layernorm": f"self_attention.linear_{one}_up_proj.weight" for one in latents}
    if module in moved and prefix + moved[module] in there:
        return f"{moved[module].removesuffix('.weight')}.layer_norm_{kind}", None
    return name, None
