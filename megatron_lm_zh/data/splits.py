"""Which documents of a dataset train, validate and test: contiguous ranges, as megatron-core cuts them."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple


class Splits(NamedTuple):
    """Document ranges of the three uses; a use with share 0 has None."""

    train: range | None
    valid: range | None
    test: range | None


def parse_split(split: str) -> tuple[float, float, float]:
    """``"99,1,0"`` as shares that sum to 1; the config has checked that it is three numbers."""
    train, valid, test = (float(share) for share in split.split(","))
    total = train + valid + test
    assert total > 0
    return train / total, valid / total, test / total


def split_documents(shares: tuple[float, float, float], num_documents: int) -> Splits:
    """Cuts documents 0 .. num_documents - 1 into ranges of the given shares (which sum to 1), in order."""
    bounds = list(accumulate(shares, initial=0.0))
    cuts = [round(bound * num_documents) for bound in bounds]
    ranges = [range(cuts[use], cuts[use + 1]) if bounds[use + 1] > bounds[use] else None for use in range(len(shares))]
    return Splits(*ranges)
