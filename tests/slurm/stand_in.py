"""Stands in for `mlzh pretrain CONFIG run.dir=DIR [key=value ...]`: the same contract with the script, no training.

Every rank notes each step in DIR/steps_RANK, saves and ends with 0 on USR1 or TERM, goes on where it was, and rank 0
writes DONE at the end. `steps=N`, `pause=SECONDS` and `kill=RANK` (that rank kills itself at step 3) steer it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from megatron_lm_zh.runtime.ranks import discover


def main() -> int:
    """Runs one rank."""
    assert sys.argv[1] == "pretrain"
    asked = {"steps": "5", "pause": "0.05", "kill": "-1"} | dict(word.split("=", 1) for word in sys.argv[3:])
    ranks = discover(os.environ)
    signals: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda got, _frame: signals.append(got))
    place = Path(asked["run.dir"])
    place.mkdir(parents=True, exist_ok=True)
    (place / f"environment_{ranks.rank}").write_text(json.dumps(dict(os.environ)))
    steps = place / f"steps_{ranks.rank}"
    done = len(steps.read_text().split()) if steps.exists() else 0
    for step in range(done + 1, int(asked["steps"]) + 1):
        with steps.open("a") as file:
            file.write(f"{step}\n")
        if step == 3 and ranks.rank == int(asked["kill"]):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(asked["pause"]))
        if signals:
            return 0
    if ranks.rank == 0:
        (place / "DONE").touch()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
