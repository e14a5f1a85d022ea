"""The loops that the benchmarks compare, all over the same Llama of 10.4M parameters and batches of 8 x 256 tokens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from measure import Turns

VOCABULARY, HIDDEN, FFN, LAYERS, HEADS = 8000, 256, 1024, 8, 4
SEQUENCE, BATCH = 256, 8
LR, BETAS, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 0.1, 1.0
TOKENS_PER_STEP = BATCH * SEQUENCE
SHAPE = f"10.4M parameters, {BATCH} x {SEQUENCE} tokens a step"

CONFIG = "config.yaml"
_STEPS = 5000  # more than any benchmark takes
_DOCUMENTS, _DOCUMENT_TOKENS = 1000, 600


def prepare(directory: Path) -> None:
    """Writes what the complete loop reads: a tokenizer, a dataset of random tokens and the config."""
    import numpy as np
    import yaml

    from megatron_lm_zh.cli.main import main_for_arguments
    from megatron_lm_zh.data.indexed import IndexedDatasetWriter, dtype_for

    text, tokenizer, prefix = directory / "text.jsonl", directory / "tokenizer", directory / "random_text_document"
    text.write_text("".join(json.dumps({"text": f"sentence {n} of a few, to train on"}) + "\n" for n in range(500)))
    words = ["tokenizer", "train", "--input", str(text), "--vocab-size", "300", "--model-type", "bpe"]
    with redirect_stdout(StringIO()):
        code = main_for_arguments([*words, "--output", str(tokenizer)])
    if code != 0:
        raise SystemExit("the benchmark's tokenizer could not be trained")
    draw = np.random.default_rng(1234)
    with IndexedDatasetWriter(prefix, dtype_for(VOCABULARY)) as writer:
        for _ in range(_DOCUMENTS):
            writer.add_document(draw.integers(0, VOCABULARY, _DOCUMENT_TOKENS))
    (directory / CONFIG).write_text(yaml.safe_dump(_config(directory, tokenizer, prefix)))


def _config(directory: Path, tokenizer: Path, prefix: Path) -> dict[str, Any]:
    return {
        "run": {"dir": str(directory / "run")},
        "model": {
            "num_layers": LAYERS,
            "hidden_size": HIDDEN,
            "ffn_hidden_size": FFN,
            "num_attention_heads": HEADS,
            "seq_length": SEQUENCE,
            "vocab_size": VOCABULARY,
            "make_vocab_size_divisible_by": 32,  # 8,000 as it is
            "tie_embeddings": True,
        },
        "data": {
            "tokenizer": {"type": "SentencePiece", "path": str(tokenizer)},
            "train": [{"path": str(prefix)}],
        },
        "train": {"steps": _STEPS, "micro_batch_size": BATCH, "global_batch_size": BATCH},
        "optim": {
            "lr": LR,
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "weight_decay": WEIGHT_DECAY,
            "clip_grad": CLIP,
        },
        "schedule": {"kind": "constant"},
    }


def complete(turns: Turns, threads: int, dtype: str, directory: Path) -> None:
    """What `mlzh pretrain` runs: data loader, DDP, schedule, optimizer, checks for NaN and signals, metrics."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.runtime import engine
    from megatron_lm_zh.runtime.ranks import Ranks

    run_dir = directory / f"run_{id(turns)}_{dtype}"
    config = load_config(directory / CONFIG, [f"precision.dtype={dtype}", f"run.dir={run_dir}"], world=1)
    engine.threads(threads)
    device = engine.prepare()
    from megatron_lm_zh.data.inputs import open_inputs
    from megatron_lm_zh.runtime.groups import process_groups
    from megatron_lm_zh.runtime.signals import StopRequest
    from megatron_lm_zh.train.loop import train
    from megatron_lm_zh.train.setup import open_run

    class InTurns:
        """The run's batches; a step begins when it asks for its only one."""

        def __init__(self, batches: Iterator[Any]) -> None:
            self._batches = batches

        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            turns.next_step()
            return next(self._batches)

    ranks = Ranks(0, 1, 0, 1, 0, "127.0.0.1", 0, "alone")
    with process_groups(config, ranks, device), open_run(open_inputs(config), ranks, device) as run:
        train(replace(run, batches=InTurns(run.batches)), StopRequest())


def complete_with_torch_products(turns: Turns, threads: int, dtype: str, directory: Path) -> None:
    """The complete loop with torch's own matrix product, where the CPU adapter would take oneDNN's."""
    from megatron_lm_zh.runtime import onednn

    onednn.is_faster = lambda: False
    complete(turns, threads, dtype, directory)


def bare(turns: Turns, threads: int, dtype: str, directory: Path) -> None:
    """The same megatron-core model in the shortest loop there is: no DDP, no schedule, no metrics."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.runtime import engine
    from megatron_lm_zh.runtime.ranks import Ranks

    config = load_config(directory / CONFIG, [f"precision.dtype={dtype}"], world=1)
    engine.threads(threads)
    device = engine.prepare()
    import torch

    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.runtime.groups import process_groups

    with process_groups(config, Ranks(0, 1, 0, 1, 0, "127.0.0.1", 0, "alone"), device):
        model = build_gpt(config, device)
        positions = torch.arange(SEQUENCE).expand(BATCH, SEQUENCE)
        _plain_loop(turns, model, lambda rows: model(rows[:, :-1], positions, None, labels=rows[:, 1:]).mean())


def transformers(turns: Turns, threads: int, dtype: str, directory: Path) -> None:
    """transformers' Llama of the same shape with scaled_dot_product_attention, in the same short loop."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=SEQUENCE,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    # The model shifts the labels itself.
    _plain_loop(turns, model, lambda rows: model(input_ids=rows[:, :-1], labels=rows[:, :-1]).loss)


def _plain_loop(turns: Turns, model: Any, loss_of: Any) -> None:
    """Forward, backward, clip, AdamW; `loss_of` takes rows of tokens [b, s + 1]."""
    import torch

    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    generator = torch.Generator().manual_seed(1234)
    batches = [torch.randint(0, VOCABULARY, (BATCH, SEQUENCE + 1), generator=generator) for _ in range(16)]
    for rows in itertools.cycle(batches):
        turns.next_step()
        optimizer.zero_grad()
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        loss.item()
