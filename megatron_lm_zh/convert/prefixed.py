"""Hugging Face files whose names lack the base model's prefix, as those of the first GPT-2."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from megatron_lm_zh.convert.engine import Source, TensorSpec


class Prefixed:
    """A source's tensors under names with a prefix before them."""

    def __init__(self, source: Source, prefix: str) -> None:
        self._source, self._prefix = source, prefix

    @property
    def where(self) -> str:
        """The path that errors name."""
        return self._source.where

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, by its longer name."""
        return {self._prefix + name: spec for name, spec in self._source.specs.items()}

    def read(self, name: str, part: int | None = None) -> Tensor:
        """The tensor `name`, or `part` of its first axis."""
        return self._source.read(name.removeprefix(self._prefix), part)


def with_prefix(source: Source, prefix: str) -> Source:
    """The source as transformers reads it: files of the base model alone have none of its prefix.

    Args:
        prefix: what the names of all weights but the output layer's begin with; "": the family has none.
    """
    if not prefix or any(name.startswith(prefix) for name in source.specs):
        return source
    return Prefixed(source, prefix)
