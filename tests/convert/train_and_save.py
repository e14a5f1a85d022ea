"""One rank of a small TP2 x PP2 run: trains a few steps, saves, and writes the logits that the model gives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megatron_lm_zh.runtime import ranks as rank_discovery
from megatron_lm_zh.runtime.engine import prepare


def main(run_dir: Path, ids_file: Path) -> None:
    """Trains on random ids, saves with the optimizer, and writes logits [b, s, vocab] beside the run."""
    ranks = rank_discovery.discover(os.environ)
    device = prepare()

    import torch
    from export_ranks import trained_logits

    logits = trained_logits(ranks, device, str(run_dir / "config.yaml"), [], None, torch.load(ids_file))
    if logits is not None:
        torch.save(logits, run_dir / "logits.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
