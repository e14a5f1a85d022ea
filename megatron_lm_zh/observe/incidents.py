"""incidents.jsonl: what went wrong in a run, when and on which rank, one JSON object a line."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_lm_zh.observe.json_lines import append_json, open_appending


class Incidents:
    """Appends to a run's incidents file; the file is opened for each record, as any rank may write and few ever do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, kind: str, *, step: int, rank: int, message: str, **details: Any) -> None:
        """Writes one incident to the disk before it returns.

        Args:
            kind: a short name to group by, e.g. ``nan_loss``.
            step: step during which it happened.
            rank: global rank that saw it.
            message: one sentence for a person.
            details: further facts that JSON can hold.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        with open_appending(self._path) as file:
            append_json(file, {"time": time, "kind": kind, "step": step, "rank": rank, "message": message, **details})
            os.fsync(file.fileno())
