"""Errors a person can mend: one line that says what is wrong, where, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_NON_FINITE = 3
EXIT_PARITY = 4


class UserError(Exception):
    """A mistake of the person who ran the command; the command line prints it as one line and exits with code 2.

    Args:
        what: what is wrong, naming the offending value.
        where: file, line or key path, e.g. ``pretrain.yaml:12 model.num_layers``.
        expected: what would have been right.
        mend: what to type or change.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, what: str, *, where: str = "", expected: str = "", mend: str = "") -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.mend = mend
        super().__init__(str(self))

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            line += f"; expected {self.expected}"
        if self.mend:
            line += f"; {self.mend}"
        return " ".join(line.split())


class UserErrors(UserError):
    """Several mistakes found in one pass, reported together, one line each."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} errors")

    def __str__(self) -> str:
        return "\n".join(str(error) for error in getattr(self, "errors", ()))


class NonFiniteError(UserError):
    """The loss or the gradient norm became NaN or infinite; the run stopped before it saved anything."""

    exit_code = EXIT_NON_FINITE


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to ``name``, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None
