"""Rules of mixtures of experts: their layers, their ranks, and how tokens travel between them."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import divisors_of, multiples_around, needs, rule, words
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

SHARED = "model.moe_shared_expert_intermediate_size"
CAPACITY = "model.moe_expert_capacity_factor"
_OF_EXPERTS = (
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_topk_scaling_factor",
    "moe_z_loss_coeff",
    "moe_expert_capacity_factor",
    "moe_aux_loss_coeff",
    "moe_grouped_gemm",
    "moe_permute_fusion",
)


@rule("parallel.expert", "model.num_moe_experts")
def expert_ranks_have_experts(config: Config, world: int | None) -> UserError | None:
    """Expert parallelism spreads experts over ranks; a dense model has none."""
    if config.parallel.expert == 1 or config.model.num_moe_experts is not None:
        return None
    return needs(f"parallel.expert: {config.parallel.expert}", {"model.num_moe_experts": False})


@rule("parallel.expert", "model.num_moe_experts")
def expert_ranks_divide_experts(config: Config, world: int | None) -> UserError | None:
    """Every expert-parallel rank holds the same number of experts."""
    ranks, experts = config.parallel.expert, config.model.num_moe_experts
    if experts is None or experts % ranks == 0:
        return None
    what = f"parallel.expert: {ranks} does not divide num_moe_experts={experts}"
    return UserError(what, expected=f"one of {words(divisors_of(experts))}")


@rule("parallel.expert_tensor", "parallel.tensor", "model.num_moe_experts")
def expert_tensor_is_of_experts(config: Config, world: int | None) -> UserError | None:
    """Only experts may be split over another number of ranks than the rest of the model."""
    parallel = config.parallel
    if config.model.num_moe_experts is not None or parallel.expert_tensor == parallel.tensor:
        return None
    what = f"parallel.expert_tensor: {parallel.expert_tensor} is not tensor={parallel.tensor}, and there are no experts"
    return UserError(what, mend="take parallel.expert_tensor out, or set model.num_moe_experts")


@rule("parallel.expert_tensor", "parallel.tensor", "parallel.expert", "model.num_moe_experts")
def resplit_experts_are_spread(config: Config, world: int | None) -> UserError | None:
    """With all experts on every rank, megatron-core 0.16 splits experts otherwise than the rest of the model with wrong
    gradients (seen: losses off by 2e-2 after 8 steps, no error)."""
    parallel = config.parallel
    alike = parallel.expert_tensor == parallel.tensor
    if config.model.num_moe_experts is None or parallel.expert > 1 or alike:
        return None
    what = f"parallel.expert_tensor: {parallel.expert_tensor} is not tensor={parallel.tensor}, with expert=1"
    return UserError(what, mend="set parallel.expert above 1, or take expert_tensor out")


@rule("parallel.expert_tensor", "model.num_moe_experts", "model.moe_ffn_hidden_size", "model.ffn_hidden_size")
def expert_tensor_divides_experts(config: Config, world: int | None) -> UserError | None:
    """The inner width of an expert is split evenly over the ranks that share it."""
    model, ranks = config.model, config.parallel.expert_tensor
    width = model.moe_ffn_hidden_size or model.ffn_hidden_size
    if model.num_moe_experts is None or width % ranks == 0:
        return None
    what = f"parallel.expert_tensor: {ranks} does not divide moe_ffn_hidden_size={width}"
    mend = f"or set model.moe_ffn_hidden_size to {multiples_around(width, ranks)}"
    return UserError(what, expected=f"a divisor of {width}", mend=mend)


@rule("parallel.tensor", SHARED)
def tensor_divides_shared_experts(config: Config, world: int | None) -> UserError | None:
    """Shared experts are split as a dense MLP is, over the tensor-parallel ranks."""
    width, ranks = config.model.moe_shared_expert_intermediate_size, config.parallel.tensor
    if width is None or width % ranks == 0:
        return None
    what = f"parallel.tensor: {ranks} does not divide moe_shared_expert_intermediate_size={width}"
    mend = f"or set {SHARED} to {multiples_around(width, ranks)}"
    return UserError(what, expected=f"a divisor of {width}", mend=mend)


@rule("parallel.sequence", "parallel.tensor", "model.num_moe_experts")
def split_experts_are_sequence_parallel(config: Config, world: int | None) -> UserError | None:
    """Without sequence parallelism every tensor-parallel rank would route the same tokens; megatron-core does not train
    so."""
    if config.model.num_moe_experts is None or config.parallel.tensor == 1 or config.parallel.sequence:
        return None
    return UserError(
        f"parallel.sequence: false with num_moe_experts and tensor={config.parallel.tensor}",
        mend="set parallel.sequence: true, or parallel.tensor: 1 with more parallel.expert",
    )


@rule("model.num_moe_experts", *(f"model.{name}" for name in _OF_EXPERTS))
def settings_of_experts_have_experts(config: Config, world: int | None) -> UserError | None:
    """A setting of experts in a dense model would do nothing, silently."""
    model = config.model
    given = [name for name in _OF_EXPERTS if getattr(model, name)]
    if model.num_moe_experts is not None or not given:
        return None
    return needs(f"model.{given[0]}", {"model.num_moe_experts": False})


@rule("model.moe_layer_freq", "model.num_moe_experts", "model.num_layers")
def expert_layers_are_named(config: Config, world: int | None) -> UserError | None:
    """A list in moe_layer_freq says of every layer whether it has experts; at least one must have them."""
    model = config.model
    frequency, layers = model.moe_layer_freq, model.num_layers
    if model.num_moe_experts is None:
        return None
    if isinstance(frequency, int):
        expected, legal = "1 or more", frequency >= 1
    else:
        expected = f"{layers} numbers, each 0 or 1, some of them 1"
        legal = len(frequency) == layers and set(frequency) <= {0, 1} and 1 in frequency
    shown = frequency if isinstance(frequency, int) else f"{len(frequency)} numbers, {sum(frequency)} in sum"
    return None if legal else UserError(f"model.moe_layer_freq: found {shown}", expected=expected)


@rule("model.moe_shared_expert_gate", SHARED)
def gate_has_shared_experts(config: Config, world: int | None) -> UserError | None:
    """The gate multiplies the shared experts' output."""
    model = config.model
    if not model.moe_shared_expert_gate:
        return None
    return needs("model.moe_shared_expert_gate: true", {SHARED: bool(model.moe_shared_expert_intermediate_size)})


@rule("model.moe_shared_expert_overlap", SHARED, "model.moe_token_dispatcher_type")
def overlapped_shared_experts_exist(config: Config, world: int | None) -> UserError | None:
    """Shared experts hide behind the all-to-all that carries tokens to the others; no other dispatcher lets them."""
    model = config.model
    if not model.moe_shared_expert_overlap:
        return None
    wanted = {
        SHARED: bool(model.moe_shared_expert_intermediate_size),
        "model.moe_token_dispatcher_type: alltoall": model.moe_token_dispatcher_type == "alltoall",
    }
    return needs("model.moe_shared_expert_overlap: true", wanted)


@rule("model.add_bias_linear", "model.num_moe_experts", "parallel.expert_tensor")
def biased_experts_are_whole(config: Config, world: int | None) -> UserError | None:
    """Ranks that share an expert would each add its bias before their outputs are summed."""
    model = config.model
    if model.num_moe_experts is None or not model.add_bias_linear or config.parallel.expert_tensor == 1:
        return None
    what = f"model.add_bias_linear: true with experts split over expert_tensor={config.parallel.expert_tensor} ranks"
    return UserError(what, mend="set parallel.expert_tensor: 1, or add_bias_linear: false")


@rule("model.add_bias_linear", SHARED)
def shared_experts_have_no_bias(config: Config, world: int | None) -> UserError | None:
    """megatron-core's shared experts have no biases."""
    model = config.model
    if not model.add_bias_linear or model.moe_shared_expert_intermediate_size is None:
        return None
    return UserError(
        "model.add_bias_linear: true does not go with shared experts", mend=f"take one of it and {SHARED} out"
    )


@rule("model.moe_grouped_gemm", "model.add_bias_linear", "kernels.bias_dropout_fusion")
def grouped_biases_are_not_fused(config: Config, world: int | None) -> UserError | None:
    """A grouped multiplication adds each expert's bias itself; the fused bias and dropout would add none of them."""
    model = config.model
    if not (model.moe_grouped_gemm and model.add_bias_linear) or config.kernels.bias_dropout_fusion is False:
        return None
    return needs(
        "model.moe_grouped_gemm: true with add_bias_linear: true", {"kernels.bias_dropout_fusion: false": False}
    )


@rule(
    "model.moe_token_dispatcher_type",
    "model.num_moe_experts",
    "parallel.tensor",
    "parallel.expert_tensor",
    "parallel.expert",
)
def flex_dispatcher_has_ranks(config: Config, world: int | None) -> UserError | None:
    """The flex dispatcher's kernels move tokens between ranks; on one rank there is nothing to move."""
    model, parallel = config.model, config.parallel
    flex = model.num_moe_experts is not None and model.moe_token_dispatcher_type == "flex"
    if not flex or max(parallel.expert, parallel.expert_tensor, parallel.tensor) > 1:
        return None
    what = "model.moe_token_dispatcher_type: flex needs parallel.expert or parallel.tensor above 1"
    return UserError(what, mend="set model.moe_token_dispatcher_type: alltoall")


@rule("model.moe_pad_expert_input_to_capacity", CAPACITY)
def padding_has_a_capacity(config: Config, world: int | None) -> UserError | None:
    """Experts' inputs are padded to their capacity, so there must be one."""
    model = config.model
    if not model.moe_pad_expert_input_to_capacity:
        return None
    return needs(
        "model.moe_pad_expert_input_to_capacity: true", {CAPACITY: model.moe_expert_capacity_factor is not None}
    )


@rule(
    CAPACITY,
    "model.moe_pad_expert_input_to_capacity",
    "model.moe_router_topk",
    "model.num_moe_experts",
)
def padded_capacity_fits_the_tokens(config: Config, world: int | None) -> UserError | None:
    """An expert is padded with tokens of the micro-batch, so its capacity cannot be more than there are."""
    model = config.model
    factor, experts = model.moe_expert_capacity_factor, model.num_moe_experts
    if not model.moe_pad_expert_input_to_capacity or factor is None or experts is None:
        return None
    if factor * model.moe_router_topk <= experts:
        return None
    what = f"{CAPACITY}: {factor:g} x moe_router_topk={model.moe_router_topk} is more than num_moe_experts={experts}"
    return UserError(what, expected=f"at most {experts / model.moe_router_topk:g}")


@rule(
    "model.moe_pad_expert_input_to_capacity",
    "model.moe_token_dispatcher_type",
    "model.moe_flex_dispatcher_backend",
)
def deepep_does_not_pad(config: Config, world: int | None) -> UserError | None:
    """DeepEP sends what there is and has no padded buffers; HybridEP has."""
    model = config.model
    deepep = model.moe_token_dispatcher_type == "flex" and model.moe_flex_dispatcher_backend == "deepep"
    if not model.moe_pad_expert_input_to_capacity or not deepep:
        return None
    what = "model.moe_pad_expert_input_to_capacity: true does not go with DeepEP"
    return UserError(
        what, mend="set model.moe_token_dispatcher_type: alltoall, or moe_flex_dispatcher_backend: hybridep"
    )


@rule("model.moe_token_drop_policy", CAPACITY)
def drop_policy_has_a_capacity(config: Config, world: int | None) -> UserError | None:
    """Without a capacity no token is dropped, whatever the policy."""
    model = config.model
    if model.moe_token_drop_policy == "probs":
        return None
    wanted = {CAPACITY: model.moe_expert_capacity_factor is not None}
    return needs(f"model.moe_token_drop_policy: {model.moe_token_drop_policy}", wanted)


RULES = (
    expert_ranks_have_experts,
    expert_ranks_divide_experts,
    expert_tensor_is_of_experts,
    resplit_experts_are_spread,
    expert_tensor_divides_experts,
    tensor_divides_shared_experts,
    split_experts_are_sequence_parallel,
    settings_of_experts_have_experts,
    expert_layers_are_named,
    gate_has_shared_experts,
    overlapped_shared_experts_exist,
    biased_experts_are_whole,
    shared_experts_have_no_bias,
    grouped_biases_are_not_fused,
    flex_dispatcher_has_ranks,
    padding_has_a_capacity,
    padded_capacity_fits_the_tokens,
    deepep_does_not_pad,
    drop_policy_has_a_capacity,
)
