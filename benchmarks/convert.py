"""Time and memory of `mlzh convert` in both directions, beside cp and beside other ways to convert.

    python benchmarks/convert.py --size 5 --directory /some/disk

makes a random Llama of about --size GB in bf16 and times, --repeats times each in turn: `cp` of its files with an fsync
of each, from-hf, to-hf of what that made, both directions by building megatron-core's model (convert_by_building.py),
and from_pretrained + save_pretrained of transformers, which is a copy. Every run is a process of its own; its time
counts from after its imports. The memory is the peak of its anonymous memory (/proc/self/smaps_rollup). What to-hf and
the peer made must be the model's own bits. Needs three times --size on the disk, and removes what it wrote.

Before its clock starts, a run fills the free memory with pages of a file of holes and reads its source once. So all of
them find a machine whose memory is full of files that nobody needs, as it is after some hours of work, and the source
in it. Otherwise it would depend on what ran before them, and a virtual machine whose host has taken free memory away
would time how the host brings it back.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

COMMON = """
import json, os, shutil, sys, threading, time
from pathlib import Path
source, target, filler, workers = *map(Path, sys.argv[1:4]), int(sys.argv[4])
peak, running = 0, True

def free():
    for line in open("/proc/meminfo"):
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024

def read(file):
    return len(file.read(1 << 26))

def warm():
    with filler.open("rb", buffering=0) as file:
        file.seek(time.time_ns() % (1 << 39))
        for _ in range((free() - (2 << 30)) >> 26):
            read(file)
    for path in filter(Path.is_file, source.rglob("*")):
        with path.open("rb", buffering=0) as file:
            while read(file):
                pass

def watch():
    global peak
    while running:
        for line in open("/proc/self/smaps_rollup"):
            if line.startswith("Anonymous:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.01)

def sync(directory):
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
"""
IMPORTS = {
    "cp": "",
    "from-hf": "from megatron_lm_zh.convert.from_hf import from_hf",
    "to-hf": "from megatron_lm_zh.convert.to_hf import to_hf",
    "from-hf, built": "import convert_by_building",
    "to-hf, built": "import convert_by_building",
    "transformers": "import torch\nfrom transformers import LlamaForCausalLM",
}
WORK = {
    "cp": "shutil.copytree(source, target); sync(target)",
    "from-hf": "from_hf(source, target, workers=workers)",
    "to-hf": "to_hf(source, target, workers=workers)",
    "from-hf, built": "convert_by_building.from_hf(source, target); sync(target)",
    "to-hf, built": "convert_by_building.to_hf(source, target); sync(target)",
    "transformers": "LlamaForCausalLM.from_pretrained(source, dtype='auto').save_pretrained(target); sync(target)",
}
CHECKED = ("to-hf", "from-hf, built", "to-hf, built")
TIMED = """
warm()
thread = threading.Thread(target=watch, daemon=True)
thread.start()
began = time.perf_counter()
{work}
seconds = time.perf_counter() - began
running = False
thread.join()
print(json.dumps([seconds, peak]))
"""


def make(directory: Path, gigabytes: float) -> int:
    """Saves a random Llama of about that size in bf16, layer by layer through safetensors; returns its bytes."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    hidden, ffn, vocabulary = 2048, 5632, 32000
    layer = 4 * hidden * hidden + 3 * hidden * ffn
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * vocabulary * hidden) / layer))
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(directory)
    weight_map: dict[str, str] = {}

    def save(tensors: dict[str, torch.Tensor], file: str) -> None:
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)

    for number in range(layers):
        prefix = f"model.layers.{number}."
        tensors = {f"{prefix}self_attn.{name}_proj.weight": normal(hidden, hidden) for name in "qkvo"}
        tensors |= {f"{prefix}mlp.{name}_proj.weight": normal(ffn, hidden) for name in ("gate", "up")}
        tensors[f"{prefix}mlp.down_proj.weight"] = normal(hidden, ffn)
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors |= {f"{prefix}{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in norms}
        save(tensors, f"model-{number}.safetensors")
    ends = {name: normal(vocabulary, hidden) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save(ends | {"model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)}, "model-ends.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in directory.iterdir())


def timed(what: str, source: Path, target: Path, filler: Path, workers: int) -> tuple[float, int]:
    """Seconds and peak of anonymous memory of one run in a process of its own."""
    code = COMMON + IMPORTS[what] + TIMED.format(work=WORK[what])
    command = [sys.executable, "-W", "ignore", "-c", code, str(source), str(target), str(filler), str(workers)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def same(one: Path, two: Path) -> bool:
    """Whether two Hugging Face directories hold the same bits."""
    from megatron_lm_zh.convert.verify import Side, compare_weights

    return compare_weights(Side(one), Side(two), tolerance=0, workers=2).agrees


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1.0, metavar="GB", help="of the model (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the conversions")
    parser.add_argument("--directory", type=Path, help="where to write (default: the temporary directory)")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=args.directory))
    if shutil.disk_usage(root).free < 3.2e9 * args.size:
        root.rmdir()
        raise SystemExit(f"{root.parent} has less than {3.2 * args.size:.1f} GB free")
    filler = root / "filler"
    with filler.open("wb") as file:
        file.truncate(1 << 40)
    try:
        num_bytes = make(root / "hf", args.size)
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in WORK}
        for repeat in range(args.repeats):
            for name in WORK:
                source = root / ("megatron" if name.startswith("to-hf") else "hf")
                target = root / ("megatron" if name == "from-hf" else "out")
                found[name].append(timed(name, source, target, filler, args.workers))
                if repeat == 0 and name in CHECKED and not same(root / "hf", target):
                    raise SystemExit(f"{name} did not give the model back")
                if name != "from-hf":
                    shutil.rmtree(target)
            shutil.rmtree(root / "megatron")
        print(f"model {num_bytes / 1e9:.2f} GB, {args.workers} workers, medians of {args.repeats}")
        for name, runs in found.items():
            seconds = statistics.median(run[0] for run in runs)
            spread = f"{min(run[0] for run in runs):.2f} .. {max(run[0] for run in runs):.2f}"
            memory = statistics.median(run[1] for run in runs) / 1e6
            print(f"{name:<14}{seconds:8.2f} s ({spread})  {num_bytes / 1e9 / seconds:6.2f} GB/s  {memory:7.0f} MB")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
