"""A router that scores a group of experts by its best one, where megatron-core's adds up several."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


class BestExpertGroups:
    """Group-limited choice by each group's best expert (DeepSeek-V2, arXiv:2405.04434, section 2.2.2).

    megatron-core lets what stands in the place of its replay of recorded choices choose each token's experts.
    """

    def get_replay_topk(
        self, scores: Tensor, topk: int, num_groups: int, group_topk: int, replaced: Any
    ) -> tuple[Tensor, Tensor]:
        """Scores and numbers of each token's experts, the best one first, [tokens, topk] each.

        Args:
            scores: what experts are chosen by, [tokens, experts].
            topk: experts a token is sent to.
            num_groups: groups of as many experts each, one after the other.
            group_topk: groups that a token's experts may come from.
            replaced: megatron-core's own choice.
        """
        groups = scores.unflatten(1, (num_groups, -1))
        best = groups.detach().amax(dim=-1)
        chosen = best.new_zeros(best.shape).scatter(1, best.topk(group_topk, dim=1).indices, 1).bool()
        return groups.masked_fill(~chosen.unsqueeze(-1), float("-inf")).flatten(1).topk(topk, dim=1)


class BestExpertRouter(TopKRouter):
    """megatron-core's router, but for how groups are scored."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.router_replay = BestExpertGroups()
