"""Tokenizers with more Chinese: every figure of docs/tokenizer.md, on text that was held out.

A random tenth of the corpus's documents is held out; the others are learnt from. Each tokenizer is written to files,
loaded from them and audited line by line beside its base: on the held-out Chinese text, on English text, and on 40,000
lines of code (Python's standard library). "naive" is the recipe that pours another model's pieces in with score 0.
With several seeds, the ones after the first are audited on Chinese alone. At the end whole `mlzh tokenizer merge` runs
of 32,000 pieces are timed.

The assets: tok/llama2/tokenizer.model, tok/chinese_llama/chinese_sp.model, tok/qwen2 and tok/gpt2 (vocab.json,
merges.txt), zh/train.txt, en/*.txt.

Usage: python benchmarks/vocabulary_extension.py --assets DIR [--seeds 1 2 3 4] [--json FILE] [--no-timing]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lm_zh.tokenizer.merge.artifacts import write_extension
from megatron_lm_zh.tokenizer.merge.bases import load_base
from megatron_lm_zh.tokenizer.merge.construct import Extension, Rules, extend_from_corpus, extend_from_donor
from megatron_lm_zh.tokenizer.merge.donors import load_donor
from megatron_lm_zh.tokenizer.report.figures import Domain, Opened, audit, open_tokenizer
from megatron_lm_zh.tokenizer.spm_file import parse_model, with_pieces

LLAMA, DONOR = "tok/llama2/tokenizer.model", "tok/chinese_llama/chinese_sp.model"
CORPUS = "zh/train.txt"
NEEDED = (LLAMA, DONOR, "tok/qwen2/vocab.json", "tok/gpt2/vocab.json", CORPUS, "en")
DONOR_SIZE = 17_953
"""Pieces that the naive merge adds to Llama 2's."""
CODE_LINES = 40_000
TIMED = {"Llama 2": "tok/llama2", "Qwen2": "tok/qwen2", "GPT-2": "tok/gpt2"}
TIMED_PIECES = 32_000
DOCUMENT = re.compile(r"# |第.{1,8}回")
"""Headings at which documents begin."""
DOCUMENT_LINES = 100
"""Lines after which a document ends in any case."""


@dataclass(frozen=True)
class Plan:
    """A tokenizer of the table.

    Attributes:
        name: in the table.
        base: folder of the base.
        pieces: learnt from the corpus; with a donor, pieces in all.
        joins: see `mlzh tokenizer merge --joins`.
        donor: whether the donor's pieces come first.
    """

    name: str
    base: str
    pieces: int = 0
    joins: str = "base"
    donor: bool = False


PLANS = (
    Plan("Llama 2: donor repaired", "tok/llama2", donor=True),
    Plan("Llama 2: donor repaired, filled up", "tok/llama2", DONOR_SIZE, donor=True),
    Plan("Llama 2: learnt, --joins base", "tok/llama2", DONOR_SIZE),
    Plan("Llama 2: learnt, --joins punctuation", "tok/llama2", DONOR_SIZE, "punctuation"),
    Plan("Qwen2: learnt", "tok/qwen2", 10_000),
    Plan("GPT-2: learnt", "tok/gpt2", DONOR_SIZE),
)


@dataclass(frozen=True)
class Row:
    """One tokenizer on one split.

    Attributes:
        seed: of the split.
        name: of the tokenizer.
        added: pieces that the base does not have.
        tokens_per_han: on held-out Chinese lines.
        used_added: share of the added pieces that occur in them.
        unreachable_added: added pieces that no text becomes.
        unreachable_base: the base's pieces that no text becomes any more.
        multi_digit: added pieces with digits side by side.
        script_crossing: added pieces with letters of several scripts.
        lines: of each domain.
        changed: lines of each domain whose ids moved; None for a base.
        disagreements: lines for which .model and tokenizer.json differ; None where there is one of them alone.
        round_trip_failures: lines that do not come back.
        seconds: that the extension took, its files included.
    """

    seed: int
    name: str
    added: int
    tokens_per_han: float
    used_added: float | None
    unreachable_added: int
    unreachable_base: int
    multi_digit: int
    script_crossing: int
    lines: dict[str, int]
    changed: dict[str, int | None]
    disagreements: dict[str, int | None]
    round_trip_failures: dict[str, int]
    seconds: float | None


@dataclass(frozen=True)
class Timing:
    """A whole `mlzh tokenizer merge`: seconds of wall and processor time, most memory in GB."""

    name: str
    pieces: int
    wall: float
    cpu: float
    gigabytes: float


def main() -> None:
    """Audits every tokenizer on every split, times the command, prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="N", help="of the splits (default: 1)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument("--no-timing", action="store_true", help="leave the timed commands out")
    options = parser.parse_args()
    if missing := [name for name in NEEDED if not (options.assets / name).exists()]:
        parser.error(f"--assets {options.assets} does not hold {', '.join(missing)}")
    # first: a process counts the memory of the one that started it as its own
    timings = [] if options.no_timing else [timed(options.assets, name, options.threads) for name in TIMED]
    rows: list[Row] = []
    for seed in options.seeds:
        rows += on_split(options.assets, seed, options.threads, whole=seed == options.seeds[0])
        show_split([row for row in rows if row.seed == seed])
    show_seeds(rows)
    for timing in timings:
        print(
            f"mlzh tokenizer merge, {timing.name} + {timing.pieces:,}: {timing.wall:.1f} s "
            f"({timing.cpu:.1f} s of processor time), {timing.gigabytes:.2f} GB"
        )
    if options.json:
        content = {"rows": [dataclasses.asdict(row) for row in rows], "timings": [*map(dataclasses.asdict, timings)]}
        options.json.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def split_documents(corpus: Path, seed: int) -> tuple[list[str], list[str]]:
    """Training documents, and a random tenth held out: cut at headings, and after 100 lines."""
    made: list[str] = []
    lines: list[str] = []
    for line in corpus.read_text(encoding="utf-8").split("\n"):
        if lines and (DOCUMENT.match(line) or len(lines) == DOCUMENT_LINES):
            made.append("\n".join(lines) + "\n")
            lines = []
        lines.append(line)
    made.append("\n".join(lines))
    order = list(range(len(made)))
    random.Random(seed).shuffle(order)
    held_out = set(order[: len(made) // 10])
    return [d for i, d in enumerate(made) if i not in held_out], [d for i, d in enumerate(made) if i in held_out]


def domains_of(assets: Path, held_out: Sequence[str], *, whole: bool) -> list[Domain]:
    """The lines that are measured: held-out Chinese and, on the whole, English and code."""
    texts = {"chinese": list(held_out)}
    if whole:
        texts["english"] = [path.read_text("utf-8") for path in sorted((assets / "en").glob("*.txt"))]
        library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        code = [line for path in library for line in path.read_text("utf-8").split("\n")]
        texts["code"] = code[:CODE_LINES]
    lines = {name: [line for text in found for line in text.split("\n")] for name, found in texts.items()}
    return [Domain(name, tuple(line for line in found if line.strip())) for name, found in lines.items()]


def on_split(assets: Path, seed: int, threads: int, *, whole: bool) -> list[Row]:
    """All tokenizers on one split."""
    training, held_out = split_documents(assets / CORPUS, seed)
    domains = domains_of(assets, held_out, whole=whole)
    bases = {folder: open_tokenizer(assets / folder, name) for name, folder in TIMED.items()}
    rows = [row_of(seed, base, base, domains) for base in bases.values()]
    with tempfile.TemporaryDirectory() as directory:
        naive = Path(directory) / "naive.model"
        naive.write_bytes(naive_merge((assets / LLAMA).read_bytes(), (assets / DONOR).read_bytes()))
        rows.append(row_of(seed, open_tokenizer(naive, "Llama 2: naive"), bases["tok/llama2"], domains))
        for number, plan in enumerate(PLANS):
            started = time.perf_counter()
            output = Path(directory) / str(number)
            write_extension(extended(assets, plan, training, threads), output)
            seconds = time.perf_counter() - started
            rows.append(row_of(seed, open_tokenizer(output, plan.name), bases[plan.base], domains, seconds))
    return rows


def naive_merge(base: bytes, donor: bytes) -> bytes:
    """The base's .model with all pieces of a donor that it does not have, of score 0."""
    have = {piece.text for piece in parse_model(base).pieces}
    new = [piece.text for piece in parse_model(donor).pieces if piece.text not in have]
    return with_pieces(base, [(text, 0.0) for text in new], len(have) + len(new))


def extended(assets: Path, plan: Plan, training: Sequence[str], threads: int) -> Extension:
    """The extension that a plan asks for."""
    base = load_base(assets / plan.base)
    rules = Rules(plan.joins, threads=threads)
    if not plan.donor:
        return extend_from_corpus(base, training, plan.pieces, rules)
    donor = extend_from_donor(base, load_donor(assets / DONOR), training if plan.pieces else (), rules)
    more = plan.pieces - len(donor.pieces)
    return extend_from_corpus(base, training, more, rules, behind=donor) if plan.pieces else donor


def row_of(seed: int, opened: Opened, base: Opened, domains: Sequence[Domain], seconds: float | None = None) -> Row:
    """The audit's figures that the tables show."""
    found = audit(opened, base, domains)
    chinese = found.domains[0]
    assert chinese.tokens_per_han is not None
    return Row(
        seed=seed,
        name=found.name,
        added=found.added,
        tokens_per_han=chinese.tokens_per_han,
        used_added=chinese.used_added,
        unreachable_added=len(found.unreachable_added or ()),
        unreachable_base=0 if opened is base else len(found.unreachable_base or ()),
        multi_digit=len(found.multi_digit),
        script_crossing=len(found.script_crossing),
        lines={figures.name: figures.texts for figures in found.domains},
        changed={figures.name: figures.changed for figures in found.domains},
        disagreements={figures.name: figures.disagreements for figures in found.domains},
        round_trip_failures={figures.name: figures.round_trip_failures for figures in found.domains},
        seconds=seconds,
    )


def timed(assets: Path, name: str, threads: int) -> Timing:
    """Runs the command on the whole corpus in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "megatron_lm_zh.cli.main", "tokenizer", "merge"]
        command += ["--base", str(assets / TIMED[name]), "--corpus", str(assets / CORPUS), "--add", str(TIMED_PIECES)]
        command += ["--output", str(Path(directory) / "new"), "--threads", str(threads)]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return Timing(name, TIMED_PIECES, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6)


def show_split(rows: Sequence[Row]) -> None:
    """A table of one split in Markdown; figures of several domains stand as Chinese / English / code."""
    lines = " / ".join(f"{count:,} {name}" for name, count in rows[0].lines.items())
    print(f"\nSplit {rows[0].seed}: {lines} lines\n")
    print("| tokenizer | added | tokens a Han character | unreachable new / old | changed | disagree | lost | used |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        # Chinese is meant to change; what must not is named.
        changed = {name: count for name, count in row.changed.items() if name != "chinese"}
        cells = [
            row.name,
            f"{row.added:,}",
            f"{row.tokens_per_han:.4f}",
            f"{row.unreachable_added} / {row.unreachable_base}",
            *map(_side_by_side, (changed, row.disagreements, row.round_trip_failures)),
            "" if row.used_added is None else f"{row.used_added:.1%}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def _side_by_side(figures: dict[str, int | None] | dict[str, int]) -> str:
    return " / ".join("" if count is None else f"{count:,}" for count in figures.values()).strip(" /")


def show_seeds(rows: Sequence[Row]) -> None:
    """Tokens a Han character on every split, and their mean; likewise the least share of pieces used."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row.name].append(row)
    seeds = [row.seed for row in next(iter(by_name.values()))]
    print("\n| tokens a Han character | " + " | ".join(f"split {seed}" for seed in seeds) + " | mean | least used |")
    print("|---" * (len(seeds) + 3) + "|")
    for name, found in by_name.items():
        figures = [row.tokens_per_han for row in found]
        used = [row.used_added for row in found if row.used_added is not None]
        cells = [name, *(f"{figure:.4f}" for figure in (*figures, statistics.mean(figures)))]
        print("| " + " | ".join([*cells, f"{min(used):.1%}" if used else ""]) + " |")
    print()


if __name__ == "__main__":
    main()
