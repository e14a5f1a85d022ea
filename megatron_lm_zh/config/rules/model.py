"""Rules of the network beside its attention: its family and multi-token prediction."""

from __future__ import annotations

from typing import Any

from megatron_lm_zh.config.document import describe
from megatron_lm_zh.config.rules.rule import rule, words
from megatron_lm_zh.config.schema import Config, Model
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.base import ARCHITECTURE
from megatron_lm_zh.families.registry import FAMILIES, families_using, family


@rule(*(f"model.{name}" for name in ARCHITECTURE), "model.family")
def family_holds_architecture(config: Config, world: int | None) -> UserError | None:
    """A family says what its networks compute, so that what is trained is what the exported checkpoint claims to be."""
    kind = family(config.model.family)
    wrong = {
        name: default
        for name in ARCHITECTURE
        if getattr(config.model, name) != (default := _default(name, kind.name)) and name not in kind.varies
    }
    if not wrong:
        return None
    name, default = next(iter(wrong.items()))
    value = getattr(config.model, name)
    others = words(
        other
        for other in families_using(name)
        if name in family(other).varies or family(other).architecture.get(name) == value
    )
    rest = f" (so are {words(list(wrong)[1:])})" if len(wrong) > 1 else ""
    what = f"model.{name}: {_text(value)} is not what family {kind.name} has, {_text(default)}{rest}"
    return UserError(what, mend=f"take it out, or set model.family to one of {others}")


@rule("model.family", *(f"model.{name}" for name in {name: None for kind in FAMILIES for name in kind.needs}))
def family_has_what_it_needs(config: Config, world: int | None) -> UserError | None:
    """A family without what it is named for would be another one, e.g. Mixtral without experts."""
    kind = family(config.model.family)
    everything = dict.fromkeys(name for each in FAMILIES for name in each.needs)
    missing = [name for name in everything if getattr(config.model, name) is None and name in kind.needs]
    if not missing:
        return None
    return UserError(f"model.{missing[0]}: missing; family {kind.name} ({kind.about}) needs it", mend="set it")


@rule("model.sandwich_norm", "model.num_moe_experts")
def sandwiched_layers_are_dense(config: Config, world: int | None) -> UserError | None:
    """The norm behind an MLP belongs to its last matrix; experts have one each, and the norm would be of each expert's
    output alone."""
    model = config.model
    if not model.sandwich_norm or model.num_moe_experts is None:
        return None
    what = f"model.sandwich_norm: true with num_moe_experts: {model.num_moe_experts}"
    return UserError(what, mend="set model.sandwich_norm: false, or model.num_moe_experts: null")


@rule("model.mtp_num_layers", "model.position_embedding_type")
def predictions_have_no_learned_positions(config: Config, world: int | None) -> UserError | None:
    """Each prediction layer embeds the tokens again, one place further, and learned positions would move with them;
    Megatron-LM trains it with rotary or no positions alone."""
    model = config.model
    if model.mtp_num_layers is None or model.position_embedding_type != "learned_absolute":
        return None
    what = f"model.mtp_num_layers: {model.mtp_num_layers} with position_embedding_type: learned_absolute"
    return UserError(what, mend="set model.position_embedding_type: rope")


@rule("model.mtp_num_layers", "model.tie_embeddings", "parallel.pipeline")
def tied_predictions_have_one_stage(config: Config, world: int | None) -> UserError | None:
    """The prediction layers embed tokens on the last stage; megatron-core cannot say in a checkpoint that this copy,
    the output layer and the first stage's embedding are one weight."""
    model, pipeline = config.model, config.parallel.pipeline
    if model.mtp_num_layers is None or not model.tie_embeddings or pipeline == 1:
        return None
    what = f"model.mtp_num_layers: {model.mtp_num_layers} with tie_embeddings and pipeline={pipeline}"
    return UserError(what, mend="set model.tie_embeddings: false, or parallel.pipeline: 1")


@rule("model.mtp_num_layers", "model.seq_length", "parallel.context")
def predictions_fit_the_sequence(config: Config, world: int | None) -> UserError | None:
    """The n-th extra layer predicts n tokens further; nothing would be left to predict at the end of a short chunk."""
    depth, context = config.model.mtp_num_layers, config.parallel.context
    chunk = config.model.seq_length // (2 * context if context > 1 else 1)
    if depth is None or depth < chunk:
        return None
    what = f"model.mtp_num_layers: {depth} for chunks of {chunk} tokens"
    return UserError(what, expected=f"fewer than {chunk}")


@rule("checkpoint.also_save_hf", "model.family")
def saved_family_converts(config: Config, world: int | None) -> UserError | None:
    """A family without tables has no Hugging Face class, and every export would fail."""
    if not config.checkpoint.also_save_hf or family(config.model.family).huggingface is not None:
        return None
    what = f"checkpoint.also_save_hf: true, and family {config.model.family} does not convert to Hugging Face"
    others = words(candidate.name for candidate in FAMILIES if candidate.huggingface is not None)
    return UserError(what, mend=f"take it out, or choose a model.family of {others}")


RULES = (
    saved_family_converts,
    family_holds_architecture,
    family_has_what_it_needs,
    sandwiched_layers_are_dense,
    predictions_have_no_learned_positions,
    tied_predictions_have_one_stage,
    predictions_fit_the_sequence,
)


def _default(name: str, kind: str) -> Any:
    """What a key of the architecture is in a family, where the config does not say."""
    info = Model.__pydantic_fields__[name]  # type: ignore[attr-defined]
    return info.get_default(call_default_factory=True, validated_data={"family": kind})


def _text(value: Any) -> str:
    """A value as one writes it; of a section that has kinds, its kind."""
    if isinstance(value, tuple):
        return str(list(value))
    return str(value.kind) if hasattr(value, "kind") else describe(value)
