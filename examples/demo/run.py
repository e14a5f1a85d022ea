"""`make demo`: text to a Hugging Face checkpoint through the public commands, on CPU cores, in minutes.

Makes a corpus, trains a tokenizer, preprocesses, proves that the first steps are the same on one rank and at tensor 2 x
pipeline 2, trains, kills the run half-way, resumes it, exports it, asks it what it was never told, and writes a page of
figures. Everything lies in demo/. Exit code 1 with one line when a promise does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("examples/demo")
DEMO = Path("demo")
CONFIG = "examples/configs/demo.yaml"
VOCABULARY = "3072"
USER_SHARE = 0.2
PARITY_LAYOUT = ("parallel.tensor=2", "parallel.pipeline=2")
SHOWN_RELATIONS = ("sum", "things")


class Failed(Exception):
    """What went wrong, in one line."""


class Stages:
    """Numbered headings, and how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announces a stage and times it."""
        print(f"\n=== {len(self.seconds) + 1}. {name}", flush=True)
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin
        print(f"    {self.seconds[name]:.1f} s", flush=True)


def command_line(*words: str) -> list[str]:
    """`mlzh WORDS` of this repository, with this interpreter; a first word ending in .py is a script of the demo."""
    if words[0].endswith(".py"):
        print(f"$ python {HERE / words[0]} {' '.join(words[1:])}", flush=True)
        return [sys.executable, str(HERE / words[0]), *words[1:]]
    print(f"$ mlzh {' '.join(words)}", flush=True)
    return [sys.executable, "-m", "megatron_lm_zh", *words]


def call(*words: str) -> None:
    """Runs a command to its end."""
    code = subprocess.run(command_line(*words)).returncode
    if code:
        raise Failed(f"`{' '.join(words)}` ended with exit code {code}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSONL file that may be being written."""
    if not path.is_file():
        return []
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]


def last_step(rows: list[dict[str, Any]]) -> int:
    """The newest step in metrics rows."""
    return max((row["step"] for row in rows), default=0)


def total_steps(overrides: list[str]) -> int:
    """`train.steps` of the demo's config."""
    from megatron_lm_zh.config.load import load_config  # noqa: PLC0415 - after main() has made the repository importable

    return load_config(CONFIG, overrides).total_steps


def train_until_killed(overrides: list[str], metrics: Path, kill_at: int) -> int:
    """Starts the run and kills it with SIGKILL when its metrics reach `kill_at`; returns the step reached."""
    process = subprocess.Popen(command_line("pretrain", CONFIG, *overrides))
    try:
        while last_step(read_rows(metrics)) < kill_at:
            if process.poll() is not None:
                raise Failed(f"training ended by itself with exit code {process.returncode} before step {kill_at}")
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = last_step(read_rows(metrics))
    print(f"\n--- killed with SIGKILL after step {reached}: nothing was saved or said", flush=True)
    return reached


def data_overrides(corpus: Path | None) -> list[str]:
    """What a user's corpus changes in the config: a third source to train and validate on."""
    if corpus is None:
        return []
    shares = {"zh_facts": 0.7 - USER_SHARE / 2, "en_code": 0.3 - USER_SHARE / 2, "user": USER_SHARE}
    train = ", ".join(f"{{path: {DEMO}/data/{name}_text_document, weight: {share}}}" for name, share in shares.items())
    valid = ", ".join(f"{{path: {DEMO}/data/{name}_valid_text_document}}" for name in shares)
    return [f"data.train=[{train}]", f"data.valid=[{valid}]"]


def prepare(stages: Stages, corpus: Path | None) -> None:
    """Corpus, tokenizer and datasets."""
    text, data, tokenizer = DEMO / "corpus", DEMO / "data", DEMO / "tokenizer"
    sources = ["zh_facts", "en_code", *(["user"] if corpus else [])]
    with stages.stage("corpus"):
        call("corpus.py", "--output", str(text), *(["--corpus", str(corpus)] if corpus else []))
    with stages.stage("tokenizer"):
        files = [text / "lexicon.txt", *(text / f"{name}.jsonl" for name in sources[1:])]
        words = ["--input", *map(str, files), "--vocab-size", VOCABULARY, "--model-type", "bpe"]
        call("tokenizer", "train", *words, "--output", str(tokenizer))
    with stages.stage("datasets"):
        data.mkdir()
        for name in (f"{source}{use}" for source in sources for use in ("", "_valid")):
            model = ["--tokenizer-type", "SentencePiece", "--tokenizer-model", str(tokenizer / "tokenizer.model")]
            where = ["--input", str(text / f"{name}.jsonl"), "--output-prefix", str(data / name)]
            call("preprocess", *where, *model, "--append-eod")


def train(stages: Stages, overrides: list[str]) -> dict[str, Any]:
    """Trains with a kill half-way; returns what the page says of the interruption."""
    run = DEMO / "run"
    metrics, tracker = run / "metrics.jsonl", run / "checkpoints" / "latest_checkpointed_iteration.txt"
    kill_at = total_steps(overrides) * 11 // 20
    with stages.stage("training, killed half-way"):
        killed = train_until_killed(overrides, metrics, kill_at)
        if not tracker.is_file():
            raise Failed("no checkpoint was complete when the run was killed")
        resumed = int(tracker.read_text())
    with stages.stage("training, resumed"):
        call("pretrain", CONFIG, *overrides)
    return {"killed_after": killed, "resumed_from": resumed}


def shown_prompts(rows: list[dict[str, Any]]) -> list[str]:
    """A held-out Chinese prompt of each of SHOWN_RELATIONS, and English ones where the relation has them."""
    first = {(row["relation"], row["prompt"].isascii()): row["prompt"] for row in reversed(rows)}
    return [first[key] for name in SHOWN_RELATIONS for key in ((name, False), (name, True)) if key in first]


def ask(stages: Stages, overrides: list[str]) -> None:
    """Exports the run, scores it and its untrained twin, and the bigram model that they are measured against."""
    hf, prompts = str(DEMO / "hf"), str(DEMO / "corpus" / "held_out.jsonl")
    with stages.stage("export to Hugging Face"):
        call("convert", "to-hf", str(DEMO / "run"), hf)
    with stages.stage("held-out facts and bigram"):
        call("score.py", hf, prompts, "--json", str(DEMO / "trained.json"))
        call("score.py", hf, prompts, "--untrained", "--json", str(DEMO / "untrained.json"))
        call("bigram.py", CONFIG, *overrides, "--json", str(DEMO / "bigram.json"))
    with stages.stage("generation"):
        for prompt in shown_prompts(read_rows(Path(prompts))):
            call("generate", hf, prompt, "--max-new-tokens", "24")


def report(stages: Stages, interruption: dict[str, Any]) -> list[str]:
    """Writes the page and the picture, prints the page, and returns the promises that do not hold."""
    import figures  # noqa: PLC0415 - matplotlib takes a second that the stages before need not wait for

    def read(name: str) -> Any:
        return json.loads((DEMO / name).read_text(encoding="utf-8"))

    outcome = figures.Outcome(
        metrics=read_rows(DEMO / "run" / "metrics.jsonl"),
        parity=read("parity.json"),
        trained=read("trained.json"),
        untrained=read("untrained.json"),
        bigram=read("bigram.json"),
        prompts=read_rows(DEMO / "corpus" / "held_out.jsonl"),
        **interruption,
    )
    figures.draw_curves(outcome, DEMO / "curves.png")
    places = {
        "this page": "demo/figures.md",
        "loss curves": "demo/curves.png",
        "Hugging Face model": "demo/hf",
        "run directory": "demo/run",
        "tokenizer": "demo/tokenizer",
        "datasets": "demo/data",
        "text": "demo/corpus",
    }
    page = figures.page(outcome, stages.seconds, places)
    (DEMO / "figures.md").write_text(page, encoding="utf-8")
    print(f"\n{page}", flush=True)
    return figures.broken_promises(outcome)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, metavar="USER.jsonl", help='further text to train on, {"text": ...} a line'
    )
    args = parser.parse_args()
    corpus = args.corpus.resolve() if args.corpus else None
    if corpus and not corpus.is_file():
        parser.error(f"--corpus {args.corpus}: no such file")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    stages, overrides = Stages(), data_overrides(corpus)
    try:
        prepare(stages, corpus)
        with stages.stage("first 10 steps: one rank against tensor 2 x pipeline 2"):
            target = str(DEMO / "parity.json")
            call("parity", CONFIG, *overrides, *PARITY_LAYOUT, "--as-is", "--data", "--steps", "10", "--json", target)
        interruption = train(stages, overrides)
        ask(stages, overrides)
        broken = report(stages, interruption)
        if broken:
            raise Failed("; ".join(broken))
    except Failed as failure:
        print(f"demo failed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
