"""Rules of the router: how a token's experts are chosen, and what balances their load."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import divisors_of, needs, rule, words
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

BALANCE = "model.moe_router_load_balancing_type"


@rule("model.moe_router_topk", "model.num_moe_experts")
def token_has_experts_to_choose(config: Config, world: int | None) -> UserError | None:
    """A token is sent to different experts, so there must be as many."""
    topk, experts = config.model.moe_router_topk, config.model.num_moe_experts
    if experts is None or topk <= experts:
        return None
    return UserError(
        f"model.moe_router_topk: {topk} is more than num_moe_experts={experts}", expected=f"at most {experts}"
    )


@rule(
    "model.moe_router_topk",
    "model.moe_router_pre_softmax",
    "model.moe_router_score_function",
    BALANCE,
    "model.num_moe_experts",
)
def one_expert_is_scored_among_all(config: Config, world: int | None) -> UserError | None:
    """A softmax over the one expert chosen is always 1: the router would get no gradient."""
    model = config.model
    softmax = model.moe_router_score_function == "softmax" and model.moe_router_load_balancing_type != "sinkhorn"
    if model.num_moe_experts is None or model.moe_router_topk > 1 or not softmax or model.moe_router_pre_softmax:
        return None
    return UserError(
        "model.moe_router_topk: 1 leaves the router no gradient", mend="set model.moe_router_pre_softmax: true"
    )


@rule("model.moe_router_pre_softmax", "model.moe_router_score_function")
def pre_softmax_is_of_softmax(config: Config, world: int | None) -> UserError | None:
    """Sigmoid scores are each expert's own: there is no softmax to move before or behind the choice."""
    model = config.model
    if not model.moe_router_pre_softmax or model.moe_router_score_function == "softmax":
        return None
    return needs("model.moe_router_pre_softmax: true", {"model.moe_router_score_function: softmax": False})


@rule("model.moe_router_enable_expert_bias", "model.moe_router_score_function")
def expert_bias_moves_sigmoids(config: Config, world: int | None) -> UserError | None:
    """The bias moves by steps of a fixed size, which presumes scores of a fixed range (Wang et al. 2024)."""
    model = config.model
    if not model.moe_router_enable_expert_bias or model.moe_router_score_function == "sigmoid":
        return None
    return needs("model.moe_router_enable_expert_bias: true", {"model.moe_router_score_function: sigmoid": False})


@rule("model.moe_router_num_groups", "model.moe_router_group_topk")
def group_routing_has_both_numbers(config: Config, world: int | None) -> UserError | None:
    """Group-limited routing needs to know how many groups there are and how many a token may use."""
    model = config.model
    sizes = {
        "model.moe_router_num_groups": model.moe_router_num_groups,
        "model.moe_router_group_topk": model.moe_router_group_topk,
    }
    given = [key for key, size in sizes.items() if size is not None]
    if len(given) != 1:
        return None
    return needs(given[0], {key: size is not None for key, size in sizes.items()})


@rule("model.moe_router_num_groups", "model.num_moe_experts")
def groups_divide_experts(config: Config, world: int | None) -> UserError | None:
    """Every group has the same number of experts."""
    groups, experts = config.model.moe_router_num_groups, config.model.num_moe_experts
    if groups is None or experts is None or experts % groups == 0:
        return None
    what = f"model.moe_router_num_groups: {groups} does not divide num_moe_experts={experts}"
    return UserError(what, expected=f"one of {words(divisors_of(experts))}")


@rule(
    "model.moe_router_group_topk",
    "model.moe_router_num_groups",
    "model.moe_router_topk",
    "model.num_moe_experts",
)
def groups_hold_the_chosen(config: Config, world: int | None) -> UserError | None:
    """A token has at least one expert for each of its groups, and no more than they have."""
    model = config.model
    groups, chosen, experts = model.moe_router_num_groups, model.moe_router_group_topk, model.num_moe_experts
    if groups is None or chosen is None or experts is None or experts % groups:
        return None
    size = experts // groups
    if chosen <= groups and chosen <= model.moe_router_topk <= chosen * size:
        return None
    if chosen > groups:
        what = f"model.moe_router_group_topk: {chosen} is more than moe_router_num_groups={groups}"
        return UserError(what, expected=f"at most {groups}")
    what = f"model.moe_router_group_topk: {chosen} groups of {size} for moe_router_topk={model.moe_router_topk}"
    return UserError(what, expected=f"a moe_router_topk from {chosen} to {chosen * size}")


@rule("model.moe_aux_loss_coeff", BALANCE)
def balancing_loss_has_a_kind(config: Config, world: int | None) -> UserError | None:
    """Sinkhorn's assignment and `none` have no loss that a coefficient could weigh."""
    model = config.model
    kind = model.moe_router_load_balancing_type
    if model.moe_aux_loss_coeff == 0 or kind.endswith("aux_loss"):
        return None
    what = f"model.moe_aux_loss_coeff: {model.moe_aux_loss_coeff:g} with moe_router_load_balancing_type: {kind}"
    return UserError(what, mend=f"set {BALANCE}: aux_loss, or moe_aux_loss_coeff: 0")


@rule(
    BALANCE,
    "model.moe_router_score_function",
    "model.moe_router_pre_softmax",
    "model.moe_router_enable_expert_bias",
    "model.moe_router_num_groups",
    "model.moe_router_topk_scaling_factor",
)
def sinkhorn_chooses_alone(config: Config, world: int | None) -> UserError | None:
    """Sinkhorn's assignment reads no other setting of the router; megatron-core leaves them out, silently."""
    model = config.model
    if model.moe_router_load_balancing_type != "sinkhorn":
        return None
    others = {
        "moe_router_score_function": model.moe_router_score_function != "softmax",
        "moe_router_pre_softmax": model.moe_router_pre_softmax,
        "moe_router_enable_expert_bias": model.moe_router_enable_expert_bias,
        "moe_router_num_groups": model.moe_router_num_groups is not None,
        "moe_router_topk_scaling_factor": model.moe_router_topk_scaling_factor is not None,
    }
    given = [name for name, is_given in others.items() if is_given]
    if not given:
        return None
    return UserError(f"{BALANCE}: sinkhorn reads no {words(given)}", mend=f"set {BALANCE}: aux_loss, or take them out")


@rule(BALANCE, "model.moe_expert_capacity_factor")
def sinkhorn_drops_nothing(config: Config, world: int | None) -> UserError | None:
    """Sinkhorn's assignment knows no capacity; megatron-core refuses the two together."""
    model = config.model
    if model.moe_expert_capacity_factor is None or model.moe_router_load_balancing_type != "sinkhorn":
        return None
    what = f"model.moe_expert_capacity_factor: {model.moe_expert_capacity_factor:g} with {BALANCE}: sinkhorn"
    return UserError(what, mend=f"set {BALANCE}: aux_loss, or take moe_expert_capacity_factor out")


RULES = (
    token_has_experts_to_choose,
    one_expert_is_scored_among_all,
    pre_softmax_is_of_softmax,
    expert_bias_moves_sigmoids,
    group_routing_has_both_numbers,
    groups_divide_experts,
    groups_hold_the_chosen,
    balancing_loss_has_a_kind,
    sinkhorn_chooses_alone,
    sinkhorn_drops_nothing,
)
