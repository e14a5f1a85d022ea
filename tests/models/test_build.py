"""The model: the same initial weights under every layout, the right counts, names and modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.pool import RankPool

pytestmark = pytest.mark.dist

VOCAB = ["model.vocab_size=401"]

LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "tp2": (2, ["parallel.tensor=2"]),
    "tp2-sequence": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "pp2": (2, ["parallel.pipeline=2"]),
    "dp2": (2, []),
    "tp2-pp2": (4, ["parallel.tensor=2", "parallel.pipeline=2"]),
    "tp4": (4, ["parallel.tensor=4", "model.num_query_groups=4"]),
}


def gathered_weights(
    ranks: Any, device: Any, config: str, overrides: list[str], block_elements: int
) -> dict[str, dict[tuple[int, ...], Any]]:
    """Runs in the pool: every shard of this rank by name and offset, as float lists, with the global shape."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models import initialise
    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.runtime.device import Device
    from megatron_lm_zh.runtime.groups import process_groups

    assert isinstance(device, Device)
    loaded = load_config(config, overrides, world=ranks.world)
    usual, initialise.BLOCK_ELEMENTS = initialise.BLOCK_ELEMENTS, block_elements
    try:
        with process_groups(loaded, ranks, device):
            model = build_gpt(loaded, device)
            found: dict[str, Any] = {}
            for shard in initialise.sharded_tensors(model):
                offset = tuple(shard.global_offset)
                data = shard.data.detach().numpy().copy()
                found[f"{shard.key} {offset}"] = (tuple(shard.global_shape), shard.key, offset, data)
            found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            return found
    finally:
        initialise.BLOCK_ELEMENTS = usual


def full_weights(
    pool: RankPool, config: Path, world: int, overrides: list[str], block_elements: int = 1500
) -> dict[str, Any]:
    """Every tensor of the model put together from the ranks' shards; replicas must be equal."""
    import numpy as np

    full: dict[str, Any] = {}
    for answer in pool.run(world, gathered_weights, str(config), [*VOCAB, *overrides], block_elements):
        for value in answer.values():
            if not isinstance(value, tuple):
                continue
            shape, key, offset, data = value
            whole = full.setdefault(key, np.full(shape, np.nan, dtype=np.float32))
            data = data.reshape(data.shape[-len(shape) :])
            place = tuple(slice(first, first + size) for first, size in zip(offset, data.shape, strict=True))
            assert np.isnan(whole[place]).all() or np.array_equal(whole[place], data), key
            whole[place] = data
    assert not [key for key, whole in full.items() if np.isnan(whole).any()]
    return full


@pytest.mark.parametrize("name", LAYOUTS)
def test_initial_weights_do_not_depend_on_the_layout(name: str, ranks: RankPool, tiny_run: Path) -> None:
    import numpy as np

    world, overrides = LAYOUTS[name]
    shape = [each for each in overrides if each.startswith("model.")]
    expected, found = full_weights(ranks, tiny_run, 1, shape), full_weights(ranks, tiny_run, world, overrides)
    assert expected.keys() == found.keys() and len(expected) == 3 + 4 * 6
    assert [key for key in expected if not np.array_equal(expected[key], found[key])] == []
    assert found["embedding.word_embeddings.weight"].shape == (512, 64), "padding does not depend on the layout either"


def test_initial_weights_have_their_standard_deviations(ranks: RankPool, tiny_run: Path) -> None:
    import numpy as np

    weights = full_weights(ranks, tiny_run, 1, ["model.init_method_std=0.05"])
    for key, tensor in weights.items():
        if "norm" in key:
            assert np.array_equal(tensor, np.ones_like(tensor)), key
            continue
        residual = key.endswith(("linear_proj.weight", "linear_fc2.weight"))
        std = 0.05 / np.sqrt(2 * 4) if residual else 0.05
        assert tensor.std() == pytest.approx(std, rel=0.05), key
        assert abs(tensor.mean()) < 4 * std / np.sqrt(tensor.size), key
    matrices = [tensor.ravel()[:64].tobytes() for key, tensor in weights.items() if "norm" not in key]
    assert len(set(matrices)) == len(matrices), "no two matrices are alike"


def test_another_seed_gives_other_weights(ranks: RankPool, tiny_run: Path) -> None:
    import numpy as np

    first, second = (full_weights(ranks, tiny_run, 1, [f"run.seed={seed}"]) for seed in (1, 2))
    assert [key for key in first if "norm" not in key and np.array_equal(first[key], second[key])] == []


@pytest.mark.parametrize("tied", ["true", "false"])
def test_parameters_are_as_many_as_counted(tied: str, ranks: RankPool, tiny_run: Path) -> None:
    overrides = [*VOCAB, f"model.tie_embeddings={tied}", "model.kv_channels=24"]
    (answer,) = ranks.run(1, gathered_weights, str(tiny_run), overrides, 2**20)
    (counted,) = ranks.run(1, count_parameters, str(tiny_run), overrides)
    assert answer["parameters"] == counted


def count_parameters(ranks: Any, device: Any, config: str, overrides: list[str]) -> int:
    """Runs in the pool, since the count's module imports megatron."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.flops import parameters

    return parameters(load_config(config, overrides))


def flops(ranks: Any, device: Any, config: str, overrides: list[str]) -> tuple[float, int]:
    """Runs in the pool: FLOPs of one token's forward and backward by the formula, and as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.models.flops import flops_per_token
    from megatron_lm_zh.runtime.groups import process_groups

    loaded = load_config(config, overrides)
    with process_groups(loaded, ranks, device):
        model = build_gpt(loaded, device)
        tokens = torch.zeros((1, loaded.model.seq_length), dtype=torch.int64)
        positions = torch.arange(loaded.model.seq_length).unsqueeze(0)
        with FlopCounterMode(display=False) as counter:
            model(tokens, positions, None, labels=tokens).sum().backward()
    matrices = sum(
        count for operation, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(operation)
    )
    return flops_per_token(loaded), matrices


def test_flops_of_the_matrices_are_those_that_torch_counts(ranks: RankPool, tiny_run: Path) -> None:
    ((formula, counted),) = ranks.run(1, flops, str(tiny_run), VOCAB)
    attention = 4 * 6 * 32 * 4 * 16
    assert formula - attention == counted / 32


def norm_marks(ranks: Any, device: Any, config: str, overrides: list[str]) -> dict[str, bool]:
    """Runs in the pool: which parameters are marked for the reduction over tensor-parallel ranks."""
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_gpt
    from megatron_lm_zh.runtime.groups import process_groups

    loaded = load_config(config, [*VOCAB, *overrides], world=ranks.world)
    with process_groups(loaded, ranks, device):
        model = build_gpt(loaded, device)
        return {
            name: bool(getattr(parameter, "sequence_parallel", False)) for name, parameter in model.named_parameters()
        }


@pytest.mark.parametrize("sequence", [True, False])
def test_norms_are_marked_for_sequence_parallelism(sequence: bool, ranks: RankPool, tiny_run: Path) -> None:
    overrides = ["parallel.tensor=2", f"parallel.sequence={str(sequence).lower()}"]
    marks = ranks.run(2, norm_marks, str(tiny_run), overrides)[0]
    norms = {name for name in marks if "norm" in name}
    assert len(norms) == 2 * 4 + 1
    assert {name for name, marked in marks.items() if marked} == (norms if sequence else set())


def dropout_masks(ranks: Any, device: Any, config: str, overrides: list[str]) -> tuple[list[bool], list[bool]]:
    """Runs in the pool: what dropout keeps, outside and inside the fork for tensor-parallel regions."""
    import torch
    from megatron.core import tensor_parallel

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.runtime.groups import process_groups

    def kept() -> list[bool]:
        return torch.nn.functional.dropout(torch.ones(256)).bool().tolist()

    with process_groups(load_config(config, overrides, world=ranks.world), ranks, device):
        outside = kept()
        with tensor_parallel.get_cuda_rng_tracker().fork():
            return outside, kept()


def test_dropout_differs_where_it_must(ranks: RankPool, tiny_run: Path) -> None:
    tensor = ranks.run(2, dropout_masks, str(tiny_run), ["parallel.tensor=2"])
    assert tensor[0][0] == tensor[1][0], "what both ranks hold in full is dropped alike"
    assert tensor[0][1] != tensor[1][1], "heads are other heads on each rank"
    for overrides in ([], ["parallel.pipeline=2"]):
        first, second = ranks.run(2, dropout_masks, str(tiny_run), overrides)
        assert first[0] != second[0] and first[1] != second[1], f"replicas and stages differ: {overrides}"
