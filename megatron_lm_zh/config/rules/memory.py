"""Rules of activation recompute, activation offload and CUDA graphs."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import divisors_of, needs, rule, words
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.stages import STAGE_KEYS, layers_of_stages
from megatron_lm_zh.errors import UserError

MODULES = "model.recompute_modules"
OFFLOADED = "model.offload_modules"
GRAPHS = "model.cuda_graph_impl"


@rule("model.recompute_granularity", "model.recompute_method", "model.recompute_num_layers")
def full_recompute_says_what(config: Config, world: int | None) -> UserError | None:
    """Full recompute needs to know which layers; selective recompute has no choice of layers."""
    model = config.model
    given = [name for name in ("recompute_method", "recompute_num_layers") if getattr(model, name) is not None]
    if model.recompute_granularity == "full":
        if len(given) == 2:
            return None
        mend = "set model.recompute_method: uniform and model.recompute_num_layers: 1"
        return UserError("model.recompute_granularity: full needs recompute_method and recompute_num_layers", mend=mend)
    if not given:
        return None
    what = f"model.{given[0]}: goes with recompute_granularity: full only"
    return UserError(what, mend=f"set recompute_granularity: full, or remove {' and '.join(given)}")


@rule("model.recompute_num_layers", "model.recompute_method", "model.recompute_granularity", *STAGE_KEYS)
def recompute_fits_stage(config: Config, world: int | None) -> UserError | None:
    """Recompute works inside one chunk of a pipeline stage: uniform groups must fill it, a block must fit into it."""
    model, size, stages = config.model, config.model.recompute_num_layers, set(layers_of_stages(config)) - {0}
    if model.recompute_granularity != "full" or size is None or not stages:
        return None
    unfilled = [stage for stage in sorted(stages) if stage % size]
    if model.recompute_method == "uniform" and unfilled:
        what = f"model.recompute_num_layers: chunks of {size} layers do not fill a stage of {unfilled[0]}"
        legal = set.intersection(*(set(divisors_of(stage)) for stage in stages))
        return UserError(what, expected=f"one of {words(sorted(legal))}")
    if size > max(stages):
        what = f"model.recompute_num_layers: {size} is more than the {max(stages)} layers of a stage"
        return UserError(what, expected=f"at most {max(stages)}")
    return None


@rule("model.mtp_num_layers", "model.recompute_granularity", "model.recompute_method", "model.recompute_num_layers")
def recomputed_predictions_go_one_by_one(config: Config, world: int | None) -> UserError | None:
    """megatron-core recomputes the layers of multi-token prediction one at a time, in uniform recompute alone."""
    model = config.model
    uniform = model.recompute_granularity == "full" and model.recompute_method == "uniform"
    if model.mtp_num_layers is None or not uniform or model.recompute_num_layers in (None, 1):
        return None
    what = f"model.recompute_num_layers: {model.recompute_num_layers} with mtp_num_layers"
    return UserError(what, mend="set model.recompute_num_layers: 1")


@rule(MODULES, "model.recompute_granularity")
def recomputed_modules_are_selective(config: Config, world: int | None) -> UserError | None:
    """Only selective recompute looks at the list of modules, and it needs one."""
    model = config.model
    if model.recompute_granularity == "selective":
        return None if model.recompute_modules else UserError(f"{MODULES}: is empty", mend="e.g. [core_attn]")
    if model.recompute_modules == ("core_attn",):
        return None
    return needs(MODULES, {"model.recompute_granularity: selective": False})


@rule(
    MODULES,
    "model.recompute_granularity",
    "model.multi_latent_attention",
    "model.num_moe_experts",
    "model.moe_grouped_gemm",
    "model.moe_shared_expert_intermediate_size",
)
def recomputed_modules_exist(config: Config, world: int | None) -> UserError | None:
    """A module that the network does not have cannot be computed again."""
    model = config.model
    if model.recompute_granularity != "selective":
        return None
    wanted = {
        "mla_up_proj": ("model.multi_latent_attention: true", model.multi_latent_attention),
        "moe": ("model.num_moe_experts", model.num_moe_experts is not None),
        "moe_act": ("model.moe_grouped_gemm: true", model.moe_grouped_gemm),
        "shared_experts": (
            "model.moe_shared_expert_intermediate_size",
            model.moe_shared_expert_intermediate_size is not None,
        ),
    }
    missing = [name for name in model.recompute_modules if name in wanted and not wanted[name][1]]
    return needs(f"{MODULES}: {missing[0]}", {wanted[missing[0]][0]: False}) if missing else None


@rule(MODULES, "model.recompute_granularity", "model.moe_layer_freq", "model.num_moe_experts")
def recomputed_mlp_is_dense(config: Config, world: int | None) -> UserError | None:
    """`mlp` are the dense MLPs; where every layer has experts there is none, and nothing would be recomputed."""
    model = config.model
    dense = model.num_moe_experts is None or (
        model.moe_layer_freq > 1 if isinstance(model.moe_layer_freq, int) else 0 in model.moe_layer_freq
    )
    if model.recompute_granularity != "selective" or "mlp" not in model.recompute_modules or dense:
        return None
    return UserError(f"{MODULES}: mlp, and every layer has experts", mend="write moe in its place")


@rule(MODULES, "model.recompute_granularity", "model.moe_shared_expert_overlap")
def overlapped_shared_experts_are_kept(config: Config, world: int | None) -> UserError | None:
    """Shared experts that run beside the dispatcher are cut into pieces, which recompute cannot wrap."""
    model = config.model
    selective = model.recompute_granularity == "selective" and "shared_experts" in model.recompute_modules
    if not (selective and model.moe_shared_expert_overlap):
        return None
    what = f"{MODULES}: shared_experts with moe_shared_expert_overlap: true"
    return UserError(what, mend="set model.moe_shared_expert_overlap: false, or take shared_experts out")


@rule(
    "model.distribute_saved_activations",
    "model.recompute_granularity",
    "parallel.tensor",
    "parallel.sequence",
)
def saved_activations_are_divided_once(config: Config, world: int | None) -> UserError | None:
    """What full recompute keeps is split over the tensor-parallel ranks; sequence parallelism has split it already."""
    model, parallel = config.model, config.parallel
    if not model.distribute_saved_activations:
        return None
    wanted = {
        "model.recompute_granularity: full": model.recompute_granularity == "full",
        "parallel.tensor above 1": parallel.tensor > 1,
        "parallel.sequence: false": not parallel.sequence,
    }
    return needs("model.distribute_saved_activations: true", wanted)


@rule("model.fine_grained_activation_offloading", OFFLOADED)
def offload_has_modules(config: Config, world: int | None) -> UserError | None:
    """Offloading and the list of what is offloaded go together; either alone would do nothing."""
    model = config.model
    if model.fine_grained_activation_offloading == bool(model.offload_modules):
        return None
    if model.offload_modules:
        return needs(OFFLOADED, {"model.fine_grained_activation_offloading: true": False})
    return needs("model.fine_grained_activation_offloading: true", {f"{OFFLOADED}, e.g. [core_attn, attn_proj]": False})


@rule(OFFLOADED)
def offloaded_projection_has_its_input(config: Config, world: int | None) -> UserError | None:
    """attn_proj's input is core_attn's output, which core_attn's backward pass needs: alone it cannot leave."""
    modules = config.model.offload_modules
    if "attn_proj" not in modules:
        return None
    return needs(f"{OFFLOADED}: attn_proj", {"core_attn beside it": "core_attn" in modules})


@rule(OFFLOADED, "model.num_moe_experts")
def offloaded_experts_exist(config: Config, world: int | None) -> UserError | None:
    """expert_fc1 and moe_act are parts of experts."""
    model = config.model
    given = [name for name in model.offload_modules if name in ("expert_fc1", "moe_act")]
    if not given:
        return None
    return needs(f"{OFFLOADED}: {given[0]}", {"model.num_moe_experts": model.num_moe_experts is not None})


@rule(OFFLOADED, MODULES, "model.recompute_granularity", "model.fine_grained_activation_offloading")
def activations_are_kept_or_recomputed(config: Config, world: int | None) -> UserError | None:
    """What is computed again is not kept, so there is nothing to offload inside a whole layer, or inside `moe`."""
    model = config.model
    if not model.fine_grained_activation_offloading or model.recompute_granularity is None:
        return None
    if model.recompute_granularity == "full":
        what = "model.fine_grained_activation_offloading: true with recompute_granularity: full"
        return UserError(what, mend="set model.recompute_granularity: selective, or offload nothing")
    inside = sorted({"expert_fc1", "moe_act"} & set(model.offload_modules))
    if not inside or "moe" not in model.recompute_modules:
        return None
    what = f"{OFFLOADED}: {words(inside)} inside moe, which is recomputed"
    return UserError(what, mend=f"take it out of {OFFLOADED}, or moe out of {MODULES}")


@rule(GRAPHS, "model.recompute_granularity")
def graphs_hold_whole_layers(config: Config, world: int | None) -> UserError | None:
    """Full recompute wraps what a layer's graph captures, and a graph cannot be captured inside a recompute."""
    model = config.model
    if model.cuda_graph_impl == "none" or model.recompute_granularity != "full":
        return None
    what = f"{GRAPHS}: {model.cuda_graph_impl} with recompute_granularity: full"
    return UserError(what, mend=f"set model.recompute_granularity: selective, or {GRAPHS}: none")


@rule(
    GRAPHS,
    MODULES,
    "model.recompute_granularity",
    "model.attention_dropout",
    "model.hidden_dropout",
)
def graphed_recompute_draws_nothing(config: Config, world: int | None) -> UserError | None:
    """Recompute inside a graph would draw other random numbers than the first pass did: wrong gradients."""
    model = config.model
    if model.cuda_graph_impl == "none" or model.recompute_granularity != "selective":
        return None
    modules = set(model.recompute_modules)
    drawn = {
        "attention_dropout": model.attention_dropout > 0 and "core_attn" in modules,
        "hidden_dropout": model.hidden_dropout > 0 and bool(modules & {"mlp", "moe"}),
    }
    wrong = [name for name, is_drawn in drawn.items() if is_drawn]
    if not wrong:
        return None
    return UserError(f"model.{wrong[0]}: is drawn again in a recompute inside a CUDA graph", mend=f"set {GRAPHS}: none")


@rule(
    GRAPHS,
    "model.num_moe_experts",
    "model.moe_expert_capacity_factor",
    "model.moe_pad_expert_input_to_capacity",
    "model.megatron",
)
def graphed_experts_have_fixed_shapes(config: Config, world: int | None) -> UserError | None:
    """A graph replays the same shapes; how many tokens an expert gets changes, unless it is padded to its capacity."""
    model = config.model
    parts = "cuda_graph_scope" in model.megatron or "cuda_graph_modules" in model.megatron
    if model.cuda_graph_impl == "none" or model.num_moe_experts is None or parts:
        return None
    wanted = {
        "model.moe_expert_capacity_factor": model.moe_expert_capacity_factor is not None,
        "model.moe_pad_expert_input_to_capacity: true": model.moe_pad_expert_input_to_capacity,
    }
    otherwise = "name what is captured in model.megatron (cuda_graph_scope; cuda_graph_modules from 0.19 on)"
    return needs(f"{GRAPHS}: {model.cuda_graph_impl} with experts", wanted, otherwise=otherwise)


@rule(GRAPHS, "data.reset_attention_mask")
def graphed_layers_take_no_documents(config: Config, world: int | None) -> UserError | None:
    """A graph takes tensors of fixed shapes alone; how many documents a sequence packs changes."""
    if config.model.cuda_graph_impl == "none" or not config.data.reset_attention_mask:
        return None
    what = f"{GRAPHS}: {config.model.cuda_graph_impl} with data.reset_attention_mask: true"
    return UserError(what, mend=f"set {GRAPHS}: none")


@rule(GRAPHS, "model.fine_grained_activation_offloading")
def graphed_activations_are_offloaded_by_te(config: Config, world: int | None) -> UserError | None:
    """Whole layers in megatron-core's own graphs cannot wait for copies to the host; Transformer Engine's can."""
    model = config.model
    if model.cuda_graph_impl != "local" or not model.fine_grained_activation_offloading:
        return None
    what = f"{GRAPHS}: local with fine_grained_activation_offloading: true"
    return UserError(what, mend=f"set {GRAPHS}: transformer_engine")


RULES = (
    full_recompute_says_what,
    recompute_fits_stage,
    recomputed_predictions_go_one_by_one,
    recomputed_modules_are_selective,
    recomputed_modules_exist,
    recomputed_mlp_is_dense,
    overlapped_shared_experts_are_kept,
    saved_activations_are_divided_once,
    offload_has_modules,
    offloaded_projection_has_its_input,
    offloaded_experts_exist,
    activations_are_kept_or_recomputed,
    graphs_hold_whole_layers,
    graphed_recompute_draws_nothing,
    graphed_experts_have_fixed_shapes,
    graphed_layers_take_no_documents,
    graphed_activations_are_offloaded_by_te,
)
