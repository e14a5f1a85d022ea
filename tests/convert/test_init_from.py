"""A run that begins with a Hugging Face model's weights, and one that trains new rows alone at first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_hf, mlzh, same_bits, weights
from support.pool import RankPool
from support.training import pretrain

from megatron_lm_zh.convert.to_hf import to_hf

ROWS = ("model.embed_tokens.weight", "lm_head.weight")
STILL = ["optim.lr=1e-30", "optim.weight_decay=0", "train.steps=1", "schedule.warmup_steps=0"]
SHAPE = [
    "model.num_layers=4",
    "model.hidden_size=48",
    "model.num_attention_heads=6",
    "model.num_query_groups=2",
    "model.ffn_hidden_size=80",
    "model.layernorm_epsilon=1e-6",
]
LAYOUTS = {
    "one": (1, []),
    "tensor2-pipeline2": (4, ["parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true"]),
    "interleaved": (2, ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]),
    "distributed-optimizer": (2, ["optim.use_distributed_optimizer=true"]),
}


def model(directory: Path, **config: object) -> Path:
    """A Llama of four layers with the tiny tokenizer's 400 ids."""
    return make_hf(directory, num_hidden_layers=4, vocab_size=400, **config)


def exported(run: Path) -> dict[str, torch.Tensor]:
    """Weights of a run's newest checkpoint, as a Hugging Face directory has them."""
    to_hf(run, run / "hf")
    return weights(run / "hf")


@pytest.mark.dist
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_begins_with_exactly_those_weights(
    ranks: RankPool, tiny_run: Path, tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    world, overrides = LAYOUTS[layout]
    hf = model(tmp_path / "hf", dtype=dtype)
    precision = "precision.dtype=" + {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    outcome = pretrain(ranks, tiny_run, *SHAPE, *STILL, *overrides, precision, world=world, init_from=hf)
    assert (outcome.exit_code, outcome.error) == (0, "")
    assert f"first weights from {hf}" in outcome.out
    assert same_bits(exported(tmp_path / "run"), weights(hf))


def start_and_save(ranks: Any, device: Any, config: str, overrides: list[str], hf: str) -> None:
    """Runs in the pool: takes the weights and saves them at once, without what `mlzh pretrain` asks of a GPU."""
    from megatron_lm_zh.checkpoint.manifest import Layout
    from megatron_lm_zh.checkpoint.save import Saver
    from megatron_lm_zh.checkpoint.state import training_state
    from megatron_lm_zh.config.load import load_config, to_yaml
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.optim.build import build_optimizer
    from megatron_lm_zh.run_directory import RunDirectory
    from megatron_lm_zh.runtime.groups import process_groups
    from megatron_lm_zh.train.start import take_hf_weights

    loaded = load_config(config, overrides, world=ranks.world)
    with process_groups(loaded, ranks, device):
        model = build_model(loaded, device)
        optimizer = build_optimizer(loaded, model)
        take_hf_weights(Path(hf), loaded, model, optimizer)
        state = training_state(model, optimizer, is_loading=False, with_rng=True)
        run = RunDirectory(Path(loaded.run.dir))
        saver = Saver(run, Layout.of(loaded, ranks.world), keep_last=1, asynchronous=False)
        saver.save(state, step=1, consumed_samples=0, config_yaml=to_yaml(loaded))


@pytest.mark.dist
def test_megatron_fsdp_takes_its_rows(ranks: RankPool, tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("einops", reason="Megatron-FSDP arranges its ranks by einops")
    hf = model(tmp_path / "hf", dtype=torch.bfloat16)
    sharded = ["optim.use_distributed_optimizer=true", "ddp.use_megatron_fsdp=true", "precision.dtype=bf16"]
    overrides = [*SHAPE, *STILL, *sharded, "model.vocab_size=400"]
    ranks.run(2, start_and_save, str(tiny_run), overrides, str(hf))
    assert same_bits(exported(tmp_path / "run"), weights(hf))


@pytest.mark.dist
def test_tied_rows_are_on_both_ends_of_the_pipeline(ranks: RankPool, tiny_run: Path, tmp_path: Path) -> None:
    hf = model(tmp_path / "hf", tied=True)
    losses = []
    for world in (1, 2):
        run = tmp_path / f"run{world}"
        overrides = [f"run.dir={run}", f"parallel.pipeline={world}", "model.tie_embeddings=true", "train.steps=2"]
        outcome = pretrain(ranks, tiny_run, *SHAPE, *overrides, "schedule.warmup_steps=0", world=world, init_from=hf)
        assert (outcome.exit_code, outcome.error) == (0, "")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["lm_loss"] for row in rows if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.dist
def test_a_run_that_resumes_keeps_its_own(ranks: RankPool, tiny_run: Path, tmp_path: Path) -> None:
    hf = model(tmp_path / "hf")
    constant = ["schedule.kind=constant", "schedule.warmup_steps=0"]
    assert pretrain(ranks, tiny_run, *SHAPE, *constant, "train.steps=1", init_from=hf).exit_code == 0
    outcome = pretrain(ranks, tiny_run, *SHAPE, *constant, "train.steps=2", init_from=tmp_path / "gone")
    assert outcome.exit_code == 0
    assert "resuming from" in outcome.out and "first weights" not in outcome.out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.num_layers=2"], "num_hidden_layers is 4, model.num_layers 2"),
        (["model.vocab_size=512"], "vocab_size is 400, model.vocab_size 512"),
        (["model.family=gpt"], "a model of family llama; expected model.family, which is gpt"),
    ],
)
def test_another_model_is_refused(tiny_run: Path, tmp_path: Path, overrides: list[str], words: str) -> None:
    hf = model(tmp_path / "hf")
    done = mlzh("pretrain", tiny_run, *SHAPE, *STILL, *overrides, "--init-from", hf)
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert words in line and str(hf / "config.json") in line


def test_a_directory_without_a_model_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    done = mlzh("pretrain", tiny_run, *SHAPE, *STILL, "--init-from", tmp_path)
    assert done.returncode == 2
    assert "no config.json" in done.stderr


FREEZES = {
    "tensor2-pipeline2": (4, False, ["parallel.tensor=2", "parallel.pipeline=2"]),
    "tensor2-pipeline2-tied": (4, True, ["parallel.tensor=2", "parallel.pipeline=2"]),
    "distributed": (2, False, ["optim.use_distributed_optimizer=true", "ddp.overlap_grad_reduce=true"]),
    "bf16": (1, True, ["precision.dtype=bf16", "optim.use_distributed_optimizer=true"]),
    "sgd": (1, False, ["optim.optimizer=sgd"]),
    "embedding-lr": (1, False, ["optim.decoupled_lr=0.01"]),
}
FIRST_NEW = 250


@pytest.mark.dist
@pytest.mark.parametrize("layout", FREEZES)
def test_new_rows_alone_move_while_the_body_is_frozen(
    ranks: RankPool, tiny_run: Path, tmp_path: Path, layout: str
) -> None:
    world, tied, overrides = FREEZES[layout]
    hf = model(tmp_path / "hf", tied=tied, dtype=torch.bfloat16 if layout == "bf16" else torch.float32)
    overrides = [*overrides, f"model.tie_embeddings={str(tied).lower()}", "schedule.warmup_steps=0", "optim.lr=0.01"]
    overrides += ["optim.freeze_body_steps=2", f"optim.base_vocab_size={FIRST_NEW}", "checkpoint.interval=2"]
    outcome = pretrain(ranks, tiny_run, *SHAPE, *overrides, "train.steps=3", world=world, init_from=hf)
    assert (outcome.exit_code, outcome.error) == (0, "")

    before = weights(hf)
    run = tmp_path / "run"
    to_hf(run / "checkpoints" / "iter_0000002", tmp_path / "frozen")
    frozen, thawed = weights(tmp_path / "frozen"), exported(run)
    body = before.keys() - set(ROWS)
    assert same_bits({name: frozen[name] for name in body}, {name: before[name] for name in body})
    for name in before.keys() & set(ROWS):
        assert torch.equal(frozen[name][:FIRST_NEW], before[name][:FIRST_NEW])
        moved = (frozen[name][FIRST_NEW:] != before[name][FIRST_NEW:]).any(dim=1)
        assert moved.float().mean() > 0.2  # ids that the text has; lm_head's rows all move
    assert not any(torch.equal(thawed[name], before[name]) for name in body if "proj" in name)


def test_the_first_new_id_comes_with_the_tokenizer(tiny_run: Path, tmp_path: Path, tiny_data: Path) -> None:
    import shutil

    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(tiny_data / "tokenizer", tokenizer)
    overrides = [f"data.tokenizer.path={tokenizer}", "optim.freeze_body_steps=1", "train.steps=4"]
    done = mlzh("pretrain", tiny_run, *overrides)
    assert done.returncode == 2
    assert "extension.json" in done.stderr and "optim.base_vocab_size" in done.stderr
    (tokenizer / "extension.json").write_text('{"base_vocab_size": 250}')
    assert mlzh("pretrain", tiny_run, *overrides).returncode == 0
    assert "base_vocab_size: 250" in (tmp_path / "run" / "config.yaml").read_text()
