"""The demo's last page: curves.png, and the figures as Markdown with what was promised and whether it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the backend is chosen

EXACT_MATCH_PROMISED = 0.5
LONGEST_ANSWER = 40


@dataclass(frozen=True)
class Outcome:
    """Everything the page is made from."""

    metrics: Sequence[Mapping[str, Any]]
    """Rows of the run's metrics.jsonl."""
    parity: Mapping[str, Any]
    """What `mlzh parity --json` wrote."""
    trained: Mapping[str, Any]
    untrained: Mapping[str, Any]
    """Figures of score.py."""
    bigram: Mapping[str, Mapping[str, float]]
    """Figures of bigram.py."""
    prompts: Sequence[Mapping[str, str]]
    killed_after: int
    """Step after which the run was killed."""
    resumed_from: int
    """Step of the checkpoint it went on from."""


def last_validation(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Bits per character of each source at the last validation."""
    rows = [row for row in metrics if row["kind"] == "valid"]
    last = max(row["step"] for row in rows)
    return {row["source"]: row["bits_per_char"] for row in rows if row["step"] == last}


def over_all_text(bits: Mapping[str, float], bigram: Mapping[str, Mapping[str, float]]) -> float:
    """Bits per character of all validation text together: the sources' mean, weighted by their characters."""
    characters = {name: row["characters"] for name, row in bigram.items()}
    return sum(bits[name] * characters[name] for name in bits) / sum(characters.values())


def broken_promises(outcome: Outcome) -> list[str]:
    """One line for each promise that does not hold."""
    broken = []
    exact = outcome.trained["exact_match"]
    if exact < EXACT_MATCH_PROMISED:
        broken.append(f"exact match on held-out facts is {exact:.1%}, promised are {EXACT_MATCH_PROMISED:.0%}")
    if outcome.untrained["exact_match"] > 0:
        broken.append(f"an untrained model answers {outcome.untrained['exact_match']:.1%}, expected is 0")
    bits = over_all_text(last_validation(outcome.metrics), outcome.bigram)
    floor = over_all_text({name: row["bits_per_char"] for name, row in outcome.bigram.items()}, outcome.bigram)
    if bits >= floor:
        broken.append(f"{bits:.3f} validation bits per character, a bigram model has {floor:.3f}")
    return broken


def draw_curves(outcome: Outcome, path: Path) -> None:
    """Training loss and validation bits per character over the steps, the interruption and the bigram marked."""
    train = [row for row in outcome.metrics if row["kind"] == "train"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    left.plot([row["step"] for row in train], [row["lm_loss"] for row in train], linewidth=1)
    left.set(title="Training loss", xlabel="step", ylabel="nats per token")
    for number, source in enumerate(sorted(outcome.bigram)):
        rows = [row for row in outcome.metrics if row["kind"] == "valid" and row["source"] == source]
        label = source.removesuffix("_text_document").removesuffix("_valid")
        right.plot(
            [row["step"] for row in rows], [row["bits_per_char"] for row in rows], "o-", color=f"C{number}", label=label
        )
        right.axhline(
            outcome.bigram[source]["bits_per_char"], color=f"C{number}", linestyle=":", label=f"{label}, bigram"
        )
    right.set(title="Validation", xlabel="step", ylabel="bits per character")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.axvspan(outcome.resumed_from, outcome.killed_after, color="0.85", zorder=0)
        axes.axvline(outcome.killed_after, color="0.4", linestyle="--", linewidth=1)
        axes.grid(alpha=0.3)
    left.annotate(
        "killed; steps in grey\nwere done again", (outcome.killed_after, left.get_ylim()[1]), va="top", fontsize=8
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _answers(outcome: Outcome) -> list[str]:
    """A table row for the first prompt of each relation and language."""
    lines, seen = [], set()
    for row in outcome.prompts:
        kind = (row["relation"], row["prompt"].isascii())
        if kind not in seen:
            seen.add(kind)
            given = outcome.trained["given"][row["prompt"]].strip().replace("\n", " ")[:LONGEST_ANSWER]
            lines.append(f"| {row['prompt'].replace('|', ' ')} | {given.replace('|', ' ')} | {row['answer']} |")
    return lines


def page(outcome: Outcome, timings: Mapping[str, float], places: Mapping[str, str]) -> str:
    """The figures as Markdown."""
    counts, untrained = outcome.trained["counts"], outcome.untrained["counts"]
    bits = last_validation(outcome.metrics)
    floor = {name: row["bits_per_char"] for name, row in outcome.bigram.items()}
    lines = ["# The demo in figures", "", "## Facts kept out of training, answered exactly", ""]
    lines += ["| facts | trained | untrained |", "|---|---|---|"]
    for name, (right, asked) in counts.items():
        lines.append(f"| {name} | {right} of {asked} ({right / asked:.0%}) | {untrained[name][0]} of {asked} |")
    lines += [
        "",
        "Derived facts are in no training document in any wording; memorised ones (capitals, continents) were",
    ]
    lines += ["read in other wordings only.", "", "## Validation, bits per character", ""]
    lines += ["| text | model | bigram |", "|---|---|---|"]
    lines += [f"| {name} | {bits[name]:.3f} | {floor[name]:.3f} |" for name in sorted(bits)]
    lines.append(f"| all | {over_all_text(bits, outcome.bigram):.3f} | {over_all_text(floor, outcome.bigram):.3f} |")
    lines += ["", "## What it answers", "", "| prompt | answer | right answer |", "|---|---|---|", *_answers(outcome)]
    lines += [
        "",
        "## The run",
        "",
        f"Killed after step {outcome.killed_after}, resumed from step {outcome.resumed_from}.",
    ]
    lines += [
        "First 10 steps, one rank against tensor 2 x pipeline 2: "
        f"losses within {outcome.parity['loss_difference']:.1e}, "
        f"gradient norms within {outcome.parity['norm_difference']:.1e} relative.",
        "",
    ]
    lines += ["| stage | seconds |", "|---|---|", *(f"| {name} | {seconds:.1f} |" for name, seconds in timings.items())]
    lines.append(f"| all | {sum(timings.values()):.1f} |")
    lines += ["", "## Where everything lies", "", *(f"- {what}: `{where}`" for what, where in places.items())]
    return "\n".join(lines) + "\n"
