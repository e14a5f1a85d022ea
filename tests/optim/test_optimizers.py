"""Parameter groups, steps that an overflow skips, and states that come back from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist

MATRICES, VECTORS = 4 * 4 + 2, 2 * 4 + 1  # of the tiny model: four a layer, embedding, output; two norms a layer, one


@contextmanager
def _built(ranks: Any, device: Any, config: str, overrides: list[str]) -> Iterator[tuple[Any, Any, Any]]:
    """Model, optimizer and scheduler of a config."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.optim.build import build_optimizer, build_scheduler
    from megatron_lm_zh.runtime.groups import process_groups

    loaded = load_config(config, ["model.vocab_size=401", *overrides], world=ranks.world)
    with process_groups(loaded, ranks, device):
        model = build_model(loaded, device)
        optimizer = build_optimizer(loaded, model)
        yield model, optimizer, build_scheduler(loaded, optimizer)


def _set_gradients(model: Any, optimizer: Any, step: int, factor: float = 1.0) -> None:
    """Gradients as the backward pass leaves them: drawn, and times the loss scale."""
    import torch

    draw = torch.Generator().manual_seed(step)
    for parameter in model[0].parameters():
        gradient = torch.randn(parameter.shape, generator=draw) * factor * optimizer.get_loss_scale()
        parameter.main_grad.copy_(gradient)


def _update(model: Any, optimizer: Any, scheduler: Any, step: int) -> None:
    _set_gradients(model, optimizer, step)
    updated, _, _ = optimizer.step()
    assert updated
    scheduler.step(1)


def _groups(ranks: Any, device: Any, config: str, each: list[list[str]]) -> list[Any]:
    """Runs in the pool: weight decay, learning rate in the middle of the run, and the parameters of each group."""
    results = []
    for overrides in each:
        with _built(ranks, device, config, overrides) as (_, optimizer, scheduler):
            scheduler.step(10)
            results.append(
                sorted((group["weight_decay"], group["lr"], len(group["params"])) for group in optimizer.param_groups)
            )
    return results


def test_groups_have_their_decay_and_learning_rate(ranks: RankPool, tiny_run: Path) -> None:
    constant = ["schedule={kind: constant}", "optim.weight_decay=0.3"]
    decoupled = ["schedule={kind: linear}", "optim.decoupled_lr=0.01", "optim.decoupled_min_lr=0.002"]
    each = [
        constant,
        [*constant, "optim.no_weight_decay=['*linear_proj*', '*embedding*']"],
        decoupled,
        [*constant, "optim.optimizer=sgd"],
        [*constant, "optim.use_distributed_optimizer=true"],
    ]
    (answers,) = ranks.run(1, _groups, str(tiny_run), each)
    plain = [(0.0, 0.001, VECTORS), (0.3, 0.001, MATRICES)]
    assert answers[0] == answers[3] == answers[4] == plain
    assert answers[1] == [(0.0, 0.001, VECTORS + 5), (0.3, 0.001, MATRICES - 5)]
    # Half of the way down: the embedding and the output layer from 0.01 to 0.002, the others from 0.001 to 0.
    halfway = [(0.0, 0.0005, VECTORS), (0.1, 0.0005, MATRICES - 2), (0.1, 0.006, 2)]
    for found, expected in zip(answers[2], halfway, strict=True):
        assert found == pytest.approx(expected)


def _refusal(ranks: Any, device: Any, config: str, pattern: str) -> str:
    from megatron_lm_zh.errors import UserError

    try:
        with _built(ranks, device, config, [f"optim.no_weight_decay=['{pattern}']"]):
            return ""
    except UserError as error:
        return str(error)


def test_a_pattern_that_names_nothing_is_refused(ranks: RankPool, tiny_run: Path) -> None:
    first, second = ranks.run(2, _refusal, str(tiny_run), "linear_proj*")
    assert "optim.no_weight_decay: 'linear_proj*' names no parameter" in first
    assert "patterns match whole names: begin with *" in first
    assert first == second


def _overflows(ranks: Any, device: Any, config: str, overrides: list[str]) -> dict[str, Any]:
    """Runs in the pool: two overflows and one good step in fp16, from a loss scale of 64."""
    import torch

    settings = ["precision.dtype=fp16", "precision.initial_loss_scale=64.0", "schedule={kind: constant}", *overrides]
    with _built(ranks, device, config, settings) as (model, optimizer, _):
        before = [parameter.clone() for parameter in model[0].parameters()]
        outcomes, scales = [], []
        for step, factor in enumerate((float("inf"), float("nan"), 1.0)):
            # Every rank must skip what overflows in one rank's shard alone.
            _set_gradients(model, optimizer, step, factor if ranks.rank == 0 else 1.0)
            updated, norm, _ = optimizer.step()
            outcomes.append((updated, norm is None))
            scales.append(float(optimizer.get_loss_scale()))
            if step == 1:
                unchanged = all(map(torch.equal, before, model[0].parameters()))
        count = sum(parameter.numel() for parameter in before)
        dtypes = {parameter.dtype for parameter in before}
        return {
            "outcomes": outcomes,
            "scales": scales,
            "unchanged": unchanged,
            "changed": not any(map(torch.equal, before, model[0].parameters())),
            "norm": float(norm) / count**0.5,
            "fp16": dtypes == {torch.float16},
        }


@pytest.mark.parametrize("world", [1, 2])
def test_an_overflow_skips_the_update_and_lowers_the_scale(ranks: RankPool, tiny_run: Path, world: int) -> None:
    overrides = ["optim.use_distributed_optimizer=true"] if world > 1 else []
    facts, *others = ranks.run(world, _overflows, str(tiny_run), overrides)
    assert all(other == facts for other in others)
    assert facts["outcomes"] == [(False, True), (False, True), (True, False)]
    assert facts["scales"] == [64.0, 32.0, 32.0], "hysteresis=2: the second overflow halves the scale"
    assert facts["unchanged"] and facts["changed"] and facts["fp16"]
    assert facts["norm"] == pytest.approx(1.0, abs=0.02), "gradients are divided by the scale again"


def _fixed_scale(ranks: Any, device: Any, config: str) -> tuple[list[bool], float]:
    settings = ["precision.dtype=fp16", "precision.loss_scale=8.0"]
    with _built(ranks, device, config, settings) as (model, optimizer, _):
        outcomes = []
        for factor in (float("inf"), 1.0):
            _set_gradients(model, optimizer, 0, factor)
            outcomes.append(optimizer.step()[0])
        return outcomes, float(optimizer.get_loss_scale())


def test_a_fixed_scale_skips_and_stays(ranks: RankPool, tiny_run: Path) -> None:
    (answer,) = ranks.run(1, _fixed_scale, str(tiny_run))
    assert answer == ([False, True], 8.0)


STATES: dict[str, list[str]] = {
    "sgd": ["optim.optimizer=sgd"],
    "sgd-bf16": ["optim.optimizer=sgd", "precision.dtype=bf16"],
    "decoupled": ["optim.decoupled_lr=0.01", "optim.no_weight_decay=['*linear_proj*']"],
    "decoupled-distributed": ["optim.decoupled_lr=0.01", "optim.use_distributed_optimizer=true"],
    "fp16": ["precision.dtype=fp16", "precision.initial_loss_scale=64.0", "precision.loss_scale_window=3"],
}


def _resumed(ranks: Any, device: Any, config: str, overrides: list[str], directory: str) -> dict[str, Any]:
    """Runs in the pool: four updates in a row against two, a checkpoint, and two more of what it restores."""
    from megatron.core import dist_checkpointing

    from megatron_lm_zh.checkpoint.state import restore, training_state

    def run(steps: range, *, load: bool, save: bool) -> dict[str, Any]:
        with _built(ranks, device, config, overrides) as (model, optimizer, scheduler):
            if load:
                wanted = training_state(model, optimizer, is_loading=True, with_rng=False)
                restore(model, optimizer, dist_checkpointing.load(wanted, directory))
                scheduler.step(steps[0])
            for step in steps:
                _update(model, optimizer, scheduler, step)
            if save:
                state = training_state(model, optimizer, is_loading=False, with_rng=False)
                dist_checkpointing.save(state, directory)
            return {
                "weights": [parameter.detach().clone() for parameter in model[0].parameters()],
                "scale": float(optimizer.get_loss_scale()),
                "sizes": [len(group["params"]) for group in optimizer.param_groups],
            }

    straight = run(range(4), load=False, save=False)
    run(range(2), load=False, save=True)
    return {"straight": straight, "resumed": run(range(2, 4), load=True, save=False)}


@pytest.mark.parametrize("name", STATES)
def test_states_come_back_from_a_checkpoint(ranks: RankPool, tiny_run: Path, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (facts,) = ranks.run(1, _resumed, str(tiny_run), STATES[name], str(directory))
    straight, resumed = facts["straight"], facts["resumed"]
    assert straight["scale"] == resumed["scale"] == (128.0 if name == "fp16" else 1.0)
    assert straight["sizes"] == resumed["sizes"]
    for one, other in zip(straight["weights"], resumed["weights"], strict=True):
        assert one.equal(other)


def _muon(ranks: Any, device: Any, config: str) -> tuple[list[str], float]:
    import torch

    with _built(ranks, device, config, ["optim.optimizer=muon", "optim.weight_decay=0.0"]) as (model, optimizer, sched):
        sched.step(3)
        weight = dict(model[0].named_parameters())["module.decoder.layers.0.mlp.linear_fc2.weight"]
        before = weight.detach().clone()
        _update(model, optimizer, sched, 0)
        values = torch.linalg.svdvals(weight.detach() - before)
        return [type(part.optimizer).__name__ for part in optimizer.chained_optimizers], float(
            values.max() / values.min()
        )


def test_muon_makes_orthogonal_updates(ranks: RankPool, tiny_run: Path) -> None:
    from megatron_lm_zh import compat

    if not compat.has_muon():
        pytest.skip("no emerging-optimizers that this megatron-core can use")
    ((names, condition),) = ranks.run(1, _muon, str(tiny_run))
    assert names == ["TensorParallelMuon", "AdamW"]
    assert condition < 3, "five Newton-Schulz steps bring the singular values close to one another"
