"""Continued pretraining after a vocabulary extension: how the new rows begin, and what it does to bits per byte.

A small model is trained on English, its tokenizer is extended from Chinese text, and the model goes on with Chinese
from rows made by `mlzh tokenizer embed` in several ways. Every step is a command that a user would type. Texts are
files with a document a blank line apart; nine in ten are trained on, the others measured.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import yaml
from safetensors.torch import load_file, save_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the backend is chosen

RANDOM = "random, as the model was initialised"
WAYS: dict[str, tuple[list[str], list[str]]] = {
    "sub-token mean": ([], []),
    "sub-token mean, output rows not scaled": (["--output-method", "mean"], []),
    "drawn like the base's rows": (["--method", "normal"], []),
    RANDOM: (["--method", "normal"], []),
    "sub-token mean, body frozen for 50 steps": ([], ["optim.freeze_body_steps=50"]),
    "sub-token mean, embedding lr x 3": ([], ["optim.decoupled_lr=3e-3"]),
}
"""Flags of `mlzh tokenizer embed`, and keys of the run."""
PREDICTED = "at step 0 the mean is below both kinds of random rows, scaled or not, and it stays so over all steps"
MODEL = {
    "num_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "seq_length": 256,
    "make_vocab_size_divisible_by": 8,
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    base_ids: int
    new_ids: int
    base_steps: int
    steps: int
    interval: int
    trace: float
    """Share of Chinese documents among the English ones that the base is trained on."""


def main() -> int:
    """Trains the base, extends it, goes on in each way, and writes figures.json and curves.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--english", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--chinese", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new directory")
    parser.add_argument("--base-ids", type=int, default=3000, metavar="N")
    parser.add_argument("--new-ids", type=int, default=5000, metavar="N")
    parser.add_argument("--base-steps", type=int, default=400, metavar="N")
    parser.add_argument("--steps", type=int, default=200, metavar="N")
    parser.add_argument("--interval", type=int, default=20, metavar="N", help="steps between validations")
    parser.add_argument("--trace", type=float, default=0.0, metavar="SHARE", help="of Chinese in the base's text")
    args = parser.parse_args()
    names = ("base_ids", "new_ids", "base_steps", "steps", "interval", "trace")
    sizes = Sizes(**{name: getattr(args, name) for name in names})
    work: Path = args.output
    work.mkdir(parents=True)
    write_texts(work, args.english, args.chinese, sizes.trace)
    base, extended = train_base(work, sizes), work / "extended"
    mlzh("tokenizer", "merge", "--base", work / "tokenizer", "--corpus", work / "zh.jsonl", "--add", sizes.new_ids,
         "--output", extended)  # fmt: skip
    preprocess(work, extended, "extended", ("zh", "zh_valid", "en_valid"))
    figures = {"base, not extended": {"0": bits(base, work, "base")}}
    for way in WAYS:
        figures[way] = go_on(work, way, base, extended, sizes)
    (work / "figures.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(figures, work / "curves.png")
    print_table(figures)
    return 0


def write_texts(work: Path, english: list[Path], chinese: Path, trace: float) -> None:
    """Writes {en,zh}.jsonl and {en,zh}_valid.jsonl; `trace` of the English documents' bytes are Chinese ones."""
    draw = random.Random(1)
    held: dict[str, list[str]] = {}
    for language, paths in (("en", english), ("zh", [chinese])):
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in paths)
        documents = [document for document in text.split("\n\n") if document.strip()]
        draw.shuffle(documents)
        cut = len(documents) // 10
        write_jsonl(work / f"{language}_valid.jsonl", within(documents[:cut], 100_000))
        held[language] = documents[cut:]
    asked = trace * sum(len(document.encode()) for document in held["en"])
    foreign = within(held["zh"], int(asked)) if trace else []
    mixed = held["en"] + foreign
    draw.shuffle(mixed)
    write_jsonl(work / "en.jsonl", mixed)
    write_jsonl(work / "zh.jsonl", held["zh"])


def within(documents: list[str], size: int) -> list[str]:
    """The first documents, `size` bytes of them."""
    taken = []
    for document in documents:
        if size <= 0:
            break
        taken.append(document)
        size -= len(document.encode())
    return taken


def write_jsonl(path: Path, documents: list[str]) -> None:
    """One object a line."""
    lines = (json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
    path.write_text("".join(lines), encoding="utf-8")


def mlzh(*words: object) -> None:
    """Runs a command and shows its output where it fails."""
    command = [sys.executable, "-W", "ignore", "-m", "megatron_lm_zh", *map(str, words)]
    print("mlzh", *words, flush=True)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(done.stdout)


def preprocess(work: Path, tokenizer: Path, name: str, texts: tuple[str, ...]) -> None:
    """Makes `name`/TEXT_text_document of each text."""
    (work / name).mkdir(exist_ok=True)
    for text in texts:
        mlzh("preprocess", "--input", work / f"{text}.jsonl", "--output-prefix", work / name / text,
             "--tokenizer-type", "HuggingFace", "--tokenizer-model", tokenizer, "--append-eod")  # fmt: skip


def config(work: Path, run: Path, tokenizer: Path, data: Path, text: str, steps: int, interval: int) -> Path:
    """Writes a run's config."""
    fields = {
        "run": {"dir": str(run)},
        "model": MODEL,
        "precision": {"dtype": "fp32"},
        "data": {
            "tokenizer": {"type": "HuggingFace", "path": str(tokenizer)},
            "train": [{"path": str(data / f"{text}_text_document")}],
            "valid": [{"path": str(data / f"{name}_valid_text_document"), "name": name} for name in ("zh", "en")],
        },
        "train": {"steps": steps, "micro_batch_size": 8, "global_batch_size": 8},
        "optim": {"lr": 1e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 20, "min_lr": 1e-4},
        "evaluate": {"interval": interval, "batches": 100},
        "log": {"tensorboard": False},
    }
    path = work / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(fields, allow_unicode=True), encoding="utf-8")
    return path


def train_base(work: Path, sizes: Sizes) -> Path:
    """A tokenizer and a model of English; the model's Hugging Face directory."""
    mlzh("tokenizer", "train", "--input", work / "en.jsonl", "--vocab-size", sizes.base_ids, "--output",
         work / "tokenizer")  # fmt: skip
    preprocess(work, work / "tokenizer", "base", ("en", "zh_valid", "en_valid"))
    run = work / "base_run"
    mlzh("pretrain", config(work, run, work / "tokenizer", work / "base", "en", sizes.base_steps, sizes.base_steps))
    mlzh("convert", "to-hf", run, work / "base_hf")
    return work / "base_hf"


def go_on(work: Path, way: str, base: Path, tokenizer: Path, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Extends the base and trains on Chinese; bits per byte of both languages by step."""
    flags, overrides = WAYS[way]
    number = list(WAYS).index(way)
    hf, run = work / f"way{number}_hf", work / f"way{number}"
    mlzh("tokenizer", "embed", "--from", base, "--tokenizer", tokenizer, "--output", hf, *flags)
    if way == RANDOM:
        initialise_new_rows(hf, sizes.base_ids)
    path = config(work, run, tokenizer, work / "extended", "zh", sizes.steps, sizes.interval)
    mlzh("pretrain", path, "--init-from", hf, *overrides)
    curve = {"0": bits(hf, work, "extended")}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "valid":
            curve.setdefault(str(row["step"]), {})[row["source"]] = row["bits_per_byte"]
    return curve


def initialise_new_rows(hf: Path, first: int) -> None:
    """Draws the rows from `first` on as the model's class does, which is `resize_token_embeddings` without a mean."""
    std = json.loads((hf / "config.json").read_text(encoding="utf-8"))["initializer_range"]
    tensors = load_file(hf / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name][first:].normal_(0, std, generator=generator)
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})


def bits(hf: Path, work: Path, data: str) -> dict[str, float]:
    """Bits per byte of the validation texts under a Hugging Face model."""
    found = {}
    for language in ("zh", "en"):
        out = work / "eval.json"
        mlzh("eval", hf, "--data", work / data / f"{language}_valid_text_document", "--json", out)
        found[language] = json.loads(out.read_text(encoding="utf-8"))["bits_per_byte"]
    return found


def print_table(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    """Chinese bits per byte by step, and English at the end, as Markdown."""
    steps = sorted({int(step) for curve in figures.values() for step in curve})
    shown = [step for step in steps if step in (0, 20, 60, 100) or step == steps[-1]]
    print(f"predicted: {PREDICTED}")
    print(f"| rows | {' | '.join(f'zh, step {step}' for step in shown)} | en, last step |")
    print("|---|" + "---|" * (len(shown) + 1))
    for way, curve in figures.items():
        cells = [f"{curve[str(step)]['zh']:.3f}" if str(step) in curve else "" for step in shown]
        print(f"| {way} | {' | '.join(cells)} | {list(curve.values())[-1]['en']:.3f} |")


def draw(figures: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Curves of both languages."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for side, language, title in zip(axes, ("zh", "en"), ("Chinese, held out", "English, held out"), strict=True):
        for way, curve in figures.items():
            points = sorted((int(step), row[language]) for step, row in curve.items())
            if len(points) > 1:
                side.plot(*zip(*points, strict=True), "o-", markersize=3, label=way)
            elif language == "en":  # its Chinese is far above all curves
                side.axhline(points[0][1], color="grey", linestyle="--", linewidth=1, label=way)
        side.set(title=title, xlabel="step of continued pretraining", ylabel="bits per byte")
        side.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
