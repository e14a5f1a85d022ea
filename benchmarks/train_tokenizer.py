"""Training a SentencePiece BPE: ours beside the library alone, on the same text with the same options.

Ours reads the text, trains, writes .model and Hugging Face files, and hashes the inputs for the record; the library
reads the text file itself, trains, and writes a .model. A third side is the library with our lines: what reading costs.
All run in new processes, in turns; imports are not counted. The pieces and scores must be the same.

Usage: python benchmarks/train_tokenizer.py [--corpus FILE.txt] [--megabytes 10] [--vocab-size 8000 32000] [--runs 5]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from mixed_corpus import LANGUAGES, write_corpora

from megatron_lm_zh.tokenizer.texts import TextFiles
from megatron_lm_zh.tokenizer.train import train_tokenizer
from megatron_lm_zh.tokenizer.training.sentencepiece_models import lines

OPTIONS = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.9995,
    "max_sentence_length": 8192,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "minloglevel": 2,
}
REQUIRED = 1.2
"""Our time over the library's, in processor time, above which the command exits with 1."""


@dataclass(frozen=True)
class Run:
    """What one training took."""

    cpu: float
    wall: float
    memory: float
    """Most memory of the process, MB."""


def ours(text: Path, vocab_size: int, directory: Path) -> None:
    """Trains as `mlzh tokenizer train` does."""
    train_tokenizer(TextFiles((text,)), directory, vocab_size=vocab_size)


def library(text: Path, vocab_size: int, directory: Path) -> None:
    """Trains with SentencePiece alone, which reads the file itself."""
    train_alone(vocab_size, directory, input=str(text))


def from_lines(text: Path, vocab_size: int, directory: Path) -> None:
    """Trains with SentencePiece alone, on the lines that ours reads."""
    train_alone(vocab_size, directory, sentence_iterator=lines(TextFiles((text,)).texts))


def train_alone(vocab_size: int, directory: Path, **source: str | Iterator[str]) -> None:
    """Trains with SentencePiece alone."""
    directory.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        model_prefix=str(directory / "tokenizer"), vocab_size=vocab_size, **source, **OPTIONS
    )


SIDES = {"ours": ours, "lines": from_lines, "library": library}


def timed(train: Callable[[Path, int, Path], None], text: Path, vocab_size: int, directory: Path) -> Run:
    """One training in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (train, text, vocab_size, directory))


def _timed(train: Callable[[Path, int, Path], None], text: Path, vocab_size: int, directory: Path) -> Run:
    cpu, wall = time.process_time(), time.perf_counter()
    train(text, vocab_size, directory)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Run(cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def pieces(directory: Path) -> list[tuple[str, float]]:
    """What a training came to."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    return [(model.id_to_piece(id_), model.get_score(id_)) for id_ in range(model.get_piece_size())]


def compare(text: Path, vocab_size: int, runs: int, scratch: Path) -> float:
    """Prints a line for each side; returns our processor time over the library's."""
    taken: dict[str, list[Run]] = {name: [] for name in SIDES}
    for number in range(runs):  # in turns, so that other work on the machine meets all of them
        for name, train in SIDES.items():
            taken[name].append(timed(train, text, vocab_size, scratch / f"{name}_{vocab_size}_{number}"))
    expected = pieces(scratch / f"library_{vocab_size}_0")
    if any(pieces(scratch / f"{name}_{vocab_size}_0") != expected for name in SIDES):
        raise SystemExit("the tokenizers differ")
    medians = {
        clock: {name: statistics.median(getattr(run, clock) for run in taken[name]) for name in SIDES}
        for clock in ("cpu", "wall")
    }
    for name in SIDES:
        columns = (f"{clock} {of[name]:6.2f} s {of[name] / of['library']:6.3f}" for clock, of in medians.items())
        memory = max(run.memory for run in taken[name])
        print(f"{vocab_size:7,d} ids  {name:8}", *columns, f"memory {memory:,.0f} MB", sep="  ", flush=True)
    return medians["cpu"]["ours"] / medians["cpu"]["library"]


def write_text(corpus: Path | None, megabytes: int, scratch: Path) -> Path:
    """A .txt file of so many megabytes: the beginning of the corpus, or text that is made up.

    Long lines are cut as ours cuts them: the library would leave them out.
    """
    if corpus is None:
        made = write_corpora(None, scratch, megabytes * len(LANGUAGES), ["long"])
        files = TextFiles((next(one.path for one in made if one.language == "zh"),))
        content = "\n".join(files.texts()).encode()
    else:
        content = corpus.read_bytes()
    whole = content[: megabytes * 1_000_000].decode(errors="ignore")
    path = scratch / "text.txt"
    path.write_text("\n".join(lines(lambda: iter((whole,)))), encoding="utf-8")
    return path


def main() -> int:
    """Times the sides, prints a table; 1 where ours takes longer than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a .txt file (default: made-up Chinese)")
    parser.add_argument("--megabytes", type=int, default=10)
    parser.add_argument("--vocab-size", type=int, nargs="+", default=[8000, 32000])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = write_text(args.corpus, args.megabytes, Path(name))
        print(
            f"{text.stat().st_size / 1e6:.1f} MB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
            f"medians of {args.runs}, and over the library's"
        )
        ratios = [compare(text, vocab_size, args.runs, Path(name)) for vocab_size in args.vocab_size]
    return int(max(ratios) > REQUIRED)


if __name__ == "__main__":
    raise SystemExit(main())
