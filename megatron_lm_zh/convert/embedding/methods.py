"""How the rows of new tokens are made from the base's rows: registered methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from megatron_lm_zh.convert.embedding.tables import Table


@dataclass(frozen=True)
class Statistics:
    """The rows of the base's ids: mean [d], standard deviation [d], and the mean of their norms; fp64."""

    mean: Tensor
    deviation: Tensor
    norm: float

    @classmethod
    def of(cls, table: Table, count: int) -> Statistics:
        """Two passes over the first `count` rows."""
        total, norms = 0.0, 0.0
        for rows in table.blocks(count):
            total = total + rows.sum(0)
            norms += float(rows.norm(dim=1).sum())
        mean = torch.as_tensor(total) / count
        squares = sum(((rows - mean).square().sum(0) for rows in table.blocks(count)), torch.zeros_like(mean))
        return cls(mean, (squares / max(count - 1, 1)).sqrt(), norms / count)


@dataclass(frozen=True)
class Block:
    """Some new tokens: what a method makes their rows of.

    Attributes:
        rows: [p, d] the base's rows of all their parts, fp64.
        token_bytes: [p] UTF-8 bytes of each part.
        token: [p] which of the new tokens a part belongs to, from 0 on.
        count: n, how many new tokens there are; each has at least one part.
        base: of all the base's rows.
        generator: for methods that draw; its seed is the command's.
    """

    rows: Tensor
    token_bytes: Tensor
    token: Tensor
    count: int
    base: Statistics
    generator: torch.Generator

    def mean(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """[n, ...] mean over each token's parts of [p, ...] values."""
        shape = (-1, *[1] * (values.ndim - 1))
        if weights is None:
            weights = torch.ones(len(values), dtype=torch.float64)
        else:
            values = values * weights.view(shape)
        total = values.new_zeros(self.count, *values.shape[1:]).index_add_(0, self.token, values)
        return total / weights.new_zeros(self.count).index_add_(0, self.token, weights).view(shape)


Method = Callable[[Block], Tensor]
"""[n, d] rows in fp64."""


def mean(block: Block) -> Tensor:
    """Mean of the parts' rows (Gee et al. 2022, Fast Vocabulary Transfer, arXiv:2402.09977).

    Rows that point apart cancel: the mean of k is shorter than they are, by up to the square root of k.
    """
    return block.mean(block.rows)


def scaled_mean(block: Block) -> Tensor:
    """Mean of the parts' rows, scaled to the mean of their norms.

    The norm is the parts' own and not the vocabulary's, because norms go with frequency and script: bytes and rare
    characters do not have the norms of English words. A token of one part gets that part's row.
    """
    return _scaled(block, torch.zeros_like(block.base.mean))


def centred_scaled_mean(block: Block) -> Tensor:
    """Mean of the parts' rows, its difference from the mean of all rows scaled to the mean of the norms of theirs.

    For rows that give logits: what all of them have in common adds the same to every logit and changes no probability,
    but scaled in the new rows alone it moves their logits away from all others.
    """
    return _scaled(block, block.base.mean)


def _scaled(block: Block, origin: Tensor) -> Tensor:
    """[n, d] mean of each token's parts, its difference from `origin` [d] scaled to the mean of the norms of theirs."""
    norms = block.mean((block.rows - origin).norm(dim=1))
    differences = block.mean(block.rows) - origin
    smallest = torch.finfo(torch.float64).tiny
    return origin + differences * (norms / differences.norm(dim=1).clamp_min(smallest)).unsqueeze(1)


def byte_mean(block: Block) -> Tensor:
    """Mean of the parts' rows weighted by the parts' bytes: a word counts more than the mark or byte beside it."""
    return block.mean(block.rows, block.token_bytes.clamp_min(1).double())


def vocabulary_mean(block: Block) -> Tensor:
    """Mean of all the base's rows, with noise of a hundredth of their deviation that tells the tokens apart.

    Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html.
    """
    return block.base.mean + 0.01 * _noise(block)


def normal(block: Block) -> Tensor:
    """Drawn from a normal distribution with the mean and the deviation of the base's rows in each dimension."""
    return block.base.mean + _noise(block)


def _noise(block: Block) -> Tensor:
    size = (block.count, len(block.base.mean))
    return block.base.deviation * torch.randn(size, generator=block.generator, dtype=torch.float64)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "scaled-mean": scaled_mean,
        "centred-scaled-mean": centred_scaled_mean,
        "mean": mean,
        "byte-mean": byte_mean,
        "vocabulary-mean": vocabulary_mean,
        "normal": normal,
    }
)
DEFAULT = "scaled-mean"
NORM_MATCHED = frozenset({"scaled-mean", "centred-scaled-mean"})
"""Methods that keep a norm; a number a token, as an output layer's bias is, has none."""
