"""Tokens a second of `mlzh pretrain` on one CPU rank against a plain loop over transformers' Llama."""

from __future__ import annotations

import tempfile
from pathlib import Path

import loops
from measure import Times, TrainingLoop, has_bf16, machine, read_rules, take_turns

PREDICTED = {
    ("mlzh", "fp32"): "1.05",
    ("mlzh, torch's product", "fp32"): "1.05",
    ("mlzh", "bf16"): "0.90",
}
REQUIRED = 1.0


def main() -> int:
    """Runs the loops in turns, precision by precision, and prints the table."""
    rules = read_rules(__doc__)
    print(machine())
    print(f"{loops.SHAPE}; {rules}")
    print("loop                   dtype   tokens/s   times transformers' tokens/s (turns)   predicted", flush=True)
    contests: dict[str, dict[str, TrainingLoop]] = {
        "fp32": {
            "transformers": loops.transformers,
            "mlzh": loops.complete,
            "mlzh, torch's product": loops.complete_with_torch_products,
        }
    }
    if has_bf16():
        contests["bf16"] = {"transformers": loops.transformers, "mlzh": loops.complete}
    with tempfile.TemporaryDirectory() as name:
        loops.prepare(Path(name))
        for dtype, entries in contests.items():
            _report(take_turns(entries, rules, dtype, Path(name)), dtype)
    print(f"required in fp32: >= {REQUIRED:.2f}")
    return 0


def _report(times: dict[str, Times], dtype: str) -> None:
    for name, measured in times.items():
        ratio, lowest, highest = times["transformers"].over(measured)
        tokens_per_s = loops.TOKENS_PER_STEP / measured.median
        compared = f"{ratio:.2f} ({lowest:.2f} to {highest:.2f})" if name != "transformers" else "1"
        predicted = PREDICTED.get((name, dtype), "")
        print(f"{name:22s} {dtype}  {tokens_per_s:9,.0f}   {compared:38s} {predicted}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
