"""What a rule is: a named function over the whole config that says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError

Check = Callable[[Config, int | None], UserError | None]


@dataclass(frozen=True)
class Rule:
    """A cross-field rule."""

    check: Check
    """Config and world (None where it is not known) to what is wrong; None where nothing is."""
    reads: tuple[str, ...]
    """Keys that the rule reads; its errors are placed at the first that the file holds."""

    @property
    def name(self) -> str:
        """The function's name."""
        return self.check.__name__

    @property
    def reason(self) -> str:
        """Why the rule exists: the function's docstring."""
        return " ".join((self.check.__doc__ or "").split())

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """`reads` as key paths."""
        return tuple(tuple(key.split(".")) for key in self.reads)


def rule(*reads: str) -> Callable[[Check], Rule]:
    """Makes a rule of a function that reads the keys `reads` (a test compares)."""
    return lambda check: Rule(check=check, reads=reads)


def multiples_around(value: int, step: int) -> str:
    """The nearest legal values in words: the multiples of `step` just below and above `value`."""
    below, above = value // step * step, -(-value // step) * step
    return f"{below} or {above}" if below else str(above)


def divisors_of(value: int) -> list[int]:
    """The divisors of `value`, smallest first."""
    return [number for number in range(1, value + 1) if value % number == 0]
