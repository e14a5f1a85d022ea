"""What a step of the complete training loop costs over a bare loop of the same megatron-core model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import loops
from measure import machine, read_rules, take_turns

PREDICTED = 1.04
REQUIRED = 1.10


def main() -> int:
    """Runs both loops in turns and prints the table."""
    rules = read_rules(__doc__)
    print(machine())
    print(f"{loops.SHAPE}, fp32; {rules}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        loops.prepare(Path(name))
        entries = {"complete": loops.complete, "bare": loops.bare}
        times = take_turns(entries, rules, "fp32", Path(name))
    for name, measured in times.items():
        print(f"{name:10s} {measured.median * 1e3:8.1f} ms a step")
    ratio, lowest, highest = times["complete"].over(times["bare"])
    print(
        f"complete / bare: predicted {PREDICTED:.2f}, measured {ratio:.3f} "
        f"(turns {lowest:.3f} to {highest:.3f}), required <= {REQUIRED:.2f}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
