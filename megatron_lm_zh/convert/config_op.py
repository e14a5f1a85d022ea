"""What an op between a key of our model section and its keys in config.json is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ABSENT: Any = object()
"""Stands for a key that is not there, on either side."""


@dataclass(frozen=True)
class ConfigOp:
    """One op and its inverse. It raises ValueError, with words for the user, where values have no counterpart."""

    read: Callable[[tuple[Any, ...], Mapping[str, Any]], Any]
    """(what config.json says at each path of the row, keys of our model section read so far) to our value; ABSENT
    leaves the key to our own default."""
    write: Callable[[Any, Mapping[str, Any]], tuple[Any, ...]]
    """(our value, all keys of our model section) to what config.json gets at each path; ABSENT writes nothing. A dict
    is merged with what other rows write below the same path."""
