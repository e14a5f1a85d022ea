"""Draws the curves of a run from its metrics.jsonl: training loss, and validation bits per character of each source.

Usage: python benchmarks/plot_run.py RUN_DIR OUT.png; prints the validation table as Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the backend is chosen


def main() -> None:
    """Reads the rows, prints the table, draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    valid = [row for row in rows if row["kind"] == "valid"]
    sources = sorted({row["source"] for row in valid})
    by_step = {(row["step"], row["source"]): row["bits_per_char"] for row in valid}
    print(f"| step | {' | '.join(sources)} |\n|---|{'---|' * len(sources)}")
    for step in sorted({row["step"] for row in valid}):
        print(f"| {step:,} | {' | '.join(f'{by_step[step, source]:.3f}' for source in sources)} |")

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    left.plot([row["step"] for row in train], [row["lm_loss"] for row in train], linewidth=1)
    left.set(title="Training loss", xlabel="step", ylabel="nats per token")
    for source in sources:
        points = [(row["step"], row["bits_per_char"]) for row in valid if row["source"] == source]
        right.plot(*zip(*points, strict=True), "o-", label=source)
    right.set(title="Validation", xlabel="step", ylabel="bits per character")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
