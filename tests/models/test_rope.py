"""The rotation against megatron-core's unfused one, and every scaling of it against transformers' own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from support.pool import RankPool
from torch import Tensor

pytestmark = pytest.mark.dist

LENGTH, HEADS, WIDTH = 12, 3, 8
BOUNDS = [0, 5, 6, 12]


class _Group:
    """As much of a context-parallel group as megatron-core's rotation asks for."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._ranks


def _with_gradient(function: Any, packed: Tensor) -> tuple[Tensor, Tensor]:
    """What a rotation makes of the middle third of the channels, a view as the split of q, k and v gives it."""
    x = packed.clone().requires_grad_()
    turned = function(x[..., WIDTH : 2 * WIDTH])
    weights = torch.linspace(-1, 1, turned.numel()).view_as(turned)
    (turned * weights).sum().backward()
    assert x.grad is not None
    return turned.detach(), x.grad


def rotations(ranks: Any, device: Any, rotary_percent: float, interleaved: bool) -> float:
    """Runs in the pool: the largest difference from megatron-core, values and gradients, whole and packed."""
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd, _apply_rotary_pos_emb_thd
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    from megatron_lm_zh.models.rope import rotate, rotate_packed

    embedding = RotaryEmbedding(WIDTH, rotary_percent, rotary_interleaved=interleaved, cp_group=_Group(0, 1))
    angles = embedding(LENGTH)
    whole = torch.randn(LENGTH, 2, HEADS, 3 * WIDTH)
    found = [
        _with_gradient(lambda x: rotate(x, angles, interleaved), whole),
        _with_gradient(lambda x: _apply_rotary_pos_emb_bshd(x, angles, interleaved), whole),
    ]
    packed, bounds = whole[:, 0], torch.tensor(BOUNDS, dtype=torch.int32)
    alone = _Group(0, 1)
    documents = [
        _with_gradient(lambda x: rotate_packed(x, bounds, angles[:6], interleaved=interleaved), packed),
        _with_gradient(lambda x: _apply_rotary_pos_emb_thd(x, bounds, angles[:6], interleaved, cp_group=alone), packed),
    ]
    pairs = [*zip(*found, strict=True), *zip(*documents, strict=True)]
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


@pytest.mark.parametrize("rotary_percent", [1.0, 0.5])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_that_of_megatron_core(rotary_percent: float, interleaved: bool, ranks: RankPool) -> None:
    (difference,) = ranks.run(1, rotations, rotary_percent, interleaved)
    assert difference < 1e-6


def chunks_of_ranks(ranks: Any, device: Any) -> list[float]:
    """Runs in the pool: what 3 context-parallel ranks make of their chunks, against the whole; for packed documents."""
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    from megatron_lm_zh.models.rope import rotate_packed
    from megatron_lm_zh.models.spans import chunks

    angles = RotaryEmbedding(WIDTH, 1.0, cp_group=_Group(0, 1))(LENGTH)
    x, bounds = torch.randn(LENGTH, HEADS, WIDTH), torch.tensor(BOUNDS, dtype=torch.int32)
    whole = rotate_packed(x, bounds, angles)
    differences = []
    for rank in range(3):
        rows = [row for chunk in chunks(LENGTH, rank, 3) for row in chunk]
        part = rotate_packed(x[rows], bounds, angles, cp_size=3, cp_rank=rank)
        differences.append(float((part - whole[rows]).abs().max()))
    return differences


def test_a_context_parallel_rank_turns_its_chunks_by_their_positions(ranks: RankPool) -> None:
    (differences,) = ranks.run(1, chunks_of_ranks)
    assert max(differences) == 0.0


HEAD, BASE = 64, 500_000.0
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 6.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048},
    "yarn-of-deepseek": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.707,
        "mscale_all_dim": 0.5,
    },
    "yarn-not-truncated": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
}

REFERENCE = """
import json, sys
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

head, base, scalings = json.loads(sys.argv[1])
found = {}
for name, scaling in scalings.items():
    config = LlamaConfig(hidden_size=2 * head, num_attention_heads=2, head_dim=head, max_position_embeddings=8192,
                         rope_parameters=scaling | {"rope_theta": base})
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
    found[name] = [frequencies.tolist(), factor]
print(json.dumps(found))
"""


def angles_of_first_position(ranks: Any, device: Any, scaling: dict[str, Any]) -> tuple[list[float], float]:
    """Runs in the pool: the inverse frequencies that our settings give, and the factor of cosines and sines."""
    from types import SimpleNamespace

    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
        YarnRotaryEmbedding,
        _yarn_get_concentration_factor_from_config,
    )

    from megatron_lm_zh.config.sections.rope_scaling import Llama3Scaling, YarnScaling
    from megatron_lm_zh.models.rope import scale_as_llama3, set_yarn

    options: dict[str, Any] = dict(scaling)
    kind = options.pop("rope_type")
    if kind == "yarn":
        config: Any = SimpleNamespace()
        set_yarn(config, YarnScaling(**options))
        embedding = YarnRotaryEmbedding(
            HEAD,
            rotary_base=BASE,
            scaling_factor=config.yarn_rotary_scaling_factor,
            original_max_position_embeddings=config.yarn_original_max_position_embeddings,
            beta_fast=config.yarn_beta_fast,
            beta_slow=config.yarn_beta_slow,
            mscale=config.yarn_mscale,
            mscale_all_dim=config.yarn_mscale_all_dim,
            correction_range_round_to_int=config.yarn_correction_range_round_to_int,
            cp_group=_Group(0, 1),
        )
        angles, _ = embedding(2)
        return angles[1, 0, 0, : HEAD // 2].tolist(), _yarn_get_concentration_factor_from_config(config)
    linear = options["factor"] if kind == "linear" else None
    rope = RotaryEmbedding(HEAD, 1.0, rotary_base=BASE, seq_len_interpolation_factor=linear, cp_group=_Group(0, 1))
    if kind == "llama3":
        scale_as_llama3(rope, Llama3Scaling(**options))
    return rope(2)[1, 0, 0, : HEAD // 2].tolist(), 1.0


@pytest.fixture(scope="module")
def of_transformers() -> dict[str, Any]:
    """Its inverse frequencies and factors, from a process of its own: it must not be loaded under the CPU adapter."""
    scalings = {name: scaling for name, scaling in SCALINGS.items() if name != "default"}
    call = [sys.executable, "-c", REFERENCE, json.dumps([HEAD, BASE, scalings])]
    answer = subprocess.run(call, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found | {"default": [(BASE ** -(torch.arange(0, HEAD, 2) / HEAD)).tolist(), 1.0]}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_is_that_of_transformers(name: str, ranks: RankPool, of_transformers: dict[str, Any]) -> None:
    ((frequencies, factor),) = ranks.run(1, angles_of_first_position, SCALINGS[name])
    expected, expected_factor = of_transformers[name]
    torch.testing.assert_close(torch.tensor(frequencies), torch.tensor(expected), atol=0, rtol=2e-6)
    assert factor == pytest.approx(expected_factor, rel=1e-9)
