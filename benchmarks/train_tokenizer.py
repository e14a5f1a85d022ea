"""Training a SentencePiece BPE: ours against the library alone, on the same text with the same options.

Ours reads the text, trains, writes .model and Hugging Face files, and hashes the inputs for the record; the library
reads the text file itself, trains, and writes a .model. Both run in new processes, in turns; imports are not counted.
The pieces and scores must be the same.

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from mixed_corpus import LANGUAGES, write_corpora

from megatron_lm_zh.tokenizer.texts import TextFiles
from megatron_lm_zh.tokenizer.train import train_tokenizer
from megatron_lm_zh.tokenizer.training.sentencepiece_models import LONGEST_LINE

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
    """Trains with SentencePiece alone."""
    directory.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(directory / "tokenizer"), vocab_size=vocab_size, **OPTIONS
    )


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
    """Prints a line for a vocabulary size; returns our processor time over the library's."""
    sides = {"ours": ours, "library": library}
    taken: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(runs):  # in turns, so that other work on the machine meets both
        for name, train in sides.items():
            taken[name].append(timed(train, text, vocab_size, scratch / f"{name}_{vocab_size}_{number}"))
    if pieces(scratch / f"ours_{vocab_size}_0") != pieces(scratch / f"library_{vocab_size}_0"):
        raise SystemExit("the two tokenizers differ")
    cpu, wall = (
        {name: statistics.median(getattr(run, clock) for run in taken[name]) for name in sides}
        for clock in ("cpu", "wall")
    )
    memory = {name: max(run.memory for run in taken[name]) for name in sides}
    ratio = cpu["ours"] / cpu["library"]
    print(
        f"{vocab_size:7,d} ids  cpu {cpu['ours']:6.2f} s / {cpu['library']:6.2f} s = {ratio:.3f}  "
        f"wall {wall['ours']:6.2f} s / {wall['library']:6.2f} s = {wall['ours'] / wall['library']:.3f}  "
        f"memory {memory['ours']:,.0f} MB / {memory['library']:,.0f} MB",
        flush=True,
    )
    return ratio


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
    lines = content[: megabytes * 1_000_000].decode(errors="ignore").split("\n")
    cut = [line[at : at + LONGEST_LINE] for line in lines for at in range(0, len(line), LONGEST_LINE)]
    path = scratch / "text.txt"
    path.write_text("\n".join(cut), encoding="utf-8")
    return path


def main() -> int:
    """Times both, prints a line for each size; 1 where ours takes longer than it should."""
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
            f"ours / library, medians of {args.runs}"
        )
        ratios = [compare(text, vocab_size, args.runs, Path(name)) for vocab_size in args.vocab_size]
    return int(max(ratios) > REQUIRED)


if __name__ == "__main__":
    raise SystemExit(main())
