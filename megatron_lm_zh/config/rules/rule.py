"""What a rule is: a named function over the whole config that says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

Check = Callable[[Config, int | None], UserError | None]
Mend = Callable[[Config, int, Sequence["Rule"]], str]


@dataclass(frozen=True)
class Rule:
    """A cross-field rule."""

    check: Check
    """Config and world (None where it is not known) to what is wrong; None where nothing is."""
    reads: tuple[str, ...]
    """Keys that the rule reads; its errors are placed at the first that the file holds."""
    search: Mend | None = None
    """Config, world and all rules to a mend that must be searched for; None where `check` says it."""

    @property
    def name(self) -> str:
        """The function's name."""
        return self.check.__name__

    @property
    def topic(self) -> str:
        """The file it stands in."""
        return self.check.__module__.rpartition(".")[2]

    @property
    def reason(self) -> str:
        """Why the rule exists: the function's docstring."""
        return " ".join((self.check.__doc__ or "").split())

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """`reads` as key paths."""
        return tuple(tuple(key.split(".")) for key in self.reads)


def rule(*reads: str, search: Mend | None = None) -> Callable[[Check], Rule]:
    """Makes a rule of a function that reads the keys `reads` (a test compares)."""
    return lambda check: Rule(check=check, reads=reads, search=search)


def needs(what: str, wanted: Mapping[str, bool], *, otherwise: str = "") -> UserError | None:
    """The error that `what` stands without some of the settings it needs; None where all are given.

    Args:
        what: the setting, e.g. "model.moe_grouped_gemm: true".
        wanted: what it needs, as one writes it, and whether it is given.
        otherwise: how to do without it, if not by taking `what` out.
    """
    missing = [setting for setting, given in wanted.items() if not given]
    if not missing:
        return None
    key = what.split(":")[0]
    return UserError(f"{what} needs {' and '.join(missing)}", mend=f"set that, or {otherwise or f'take {key} out'}")


def words(values: Iterable[Any]) -> str:
    """Values as a list in words."""
    return ", ".join(map(str, values))


def multiples_around(value: int, step: int) -> str:
    """The nearest legal values in words: the multiples of `step` just below and above `value`."""
    below, above = value // step * step, -(-value // step) * step
    return f"{below} or {above}" if below else str(above)


def divisors_of(value: int) -> list[int]:
    """The divisors of `value`, smallest first."""
    return [number for number in range(1, value + 1) if value % number == 0]
