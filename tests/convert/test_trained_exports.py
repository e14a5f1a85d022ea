"""What training saved in a layout, with its optimizer, is exported alone and gives the trained model's logits."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_cases import DENSE
from export_ranks import trained_logits
from family_models import CASES as WITH_EXPERTS
from family_models import make, run_config
from hf_models import make_tokenizer, weights
from support.pool import RankPool
from transformers import AutoModelForCausalLM

from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.megatron_files import MegatronWeights
from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.families.registry import FAMILIES

CASES = {**DENSE, **WITH_EXPERTS}
VOCAB = 400
IDS = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(5))
TRAINING = ["optim.use_distributed_optimizer=true", "train.steps=5", "train.global_batch_size=8"]
TENSOR = ["parallel.tensor=2", "parallel.sequence=true"]
STAGES = ["parallel.pipeline=2", "parallel.num_layers_in_first_pipeline_stage=2"]
EXPERTS = ["parallel.expert=2"]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that ended; nothing that it began with is left."""

    run: Path
    logits: torch.Tensor
    """[2, 40, vocab] of IDS, in fp32, by the model as it was trained, in its layout."""
    before: dict[str, torch.Tensor]
    """The Hugging Face weights that training began with."""


def train(
    pool: RankPool, directory: Path, name: str, world: int, overrides: list[str], dtype: torch.dtype = torch.float32
) -> Trained:
    """Trains a case's model from its Hugging Face weights in a layout, saves it, and removes what it began with."""
    case = CASES[name]
    hf = make(dataclasses.replace(case, options={**case.options, "vocab_size": VOCAB}), directory / "hf", dtype)
    from_hf(hf, directory / "megatron")
    config, run = run_config(directory / "megatron"), directory / "run"
    make_tokenizer(run / "tokenizer")
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    overrides = [*TRAINING, *overrides, f"run.dir={run}", f"precision.dtype={precision}"]
    answers = pool.run(world, trained_logits, str(config), overrides, str(hf), IDS, timeout_s=400)
    before = {name: tensor.clone() for name, tensor in weights(hf).items()}
    shutil.rmtree(hf)
    shutil.rmtree(directory / "megatron")
    return Trained(run, next(answer for answer in answers if answer is not None), before)


def layout_of(name: str, *, whole: bool) -> tuple[int, list[str]]:
    """Ranks and overrides: TP2 x PP2, and with experts TP2 x EP2; or all of these with two of everything."""
    experts = EXPERTS if name in WITH_EXPERTS else []
    if whole:
        return 8, [*TENSOR, *STAGES, *experts]
    return 4, [*TENSOR, *(experts or STAGES)]


QUICK = ["llama", "qwen2", "deepseek_v3", "qwen3_moe"]


def cases() -> list[Any]:
    """Some in a small layout; every case with all axes, the optimizer's state over two data-parallel ranks."""
    slow = [pytest.param(name, True, id=f"{name}-8-ranks", marks=pytest.mark.slow) for name in CASES]
    return [*(pytest.param(name, False, id=f"{name}-4-ranks") for name in QUICK), *slow]


def test_every_family_that_converts_is_trained() -> None:
    assert {case.family for case in CASES.values()} == {kind.name for kind in FAMILIES if kind.huggingface}


@pytest.mark.dist
@pytest.mark.parametrize(("name", "whole"), cases())
def test_a_trained_checkpoint_is_exported_alone(ranks: RankPool, tmp_path: Path, name: str, whole: bool) -> None:
    trained = train(ranks, tmp_path, name, *layout_of(name, whole=whole))
    checkpoint = MegatronWeights(trained.run / "checkpoints/iter_0000005")
    assert any("exp_avg_sq" in key for key in checkpoint.metadata.state_dict_metadata)

    to_hf(trained.run, tmp_path / "exported")

    after = weights(tmp_path / "exported")
    assert after.keys() == trained.before.keys()
    still = [key for key in after if torch.equal(after[key], trained.before[key])]
    assert not still
    theirs = CASES[name].reference(tmp_path / "exported", IDS)
    difference = (trained.logits - theirs).abs().max().item()
    print(f"{name}: logits of std {theirs.std():.2f} differ by at most {difference:.1e}")
    assert theirs.std() > 0.1
    assert difference <= 1e-5
    assert torch.equal(trained.logits.argmax(-1), theirs.argmax(-1))


def in_dtype(directory: Path, dtype: torch.dtype) -> torch.Tensor:
    """[2, 40, vocab] logits of IDS by transformers in a dtype, as fp32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    with torch.no_grad():
        return model(IDS).logits.float()


def rms(difference: torch.Tensor) -> float:
    """Root of the mean square."""
    return difference.square().mean().sqrt().item()


@pytest.mark.dist
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_bf16_logits_are_as_close_as_bf16_is(ranks: RankPool, tmp_path: Path, name: str) -> None:
    """The tolerance is bf16's own error: how far transformers in bf16 is from itself in fp32 on the same weights.

    Both sides round at other places, so their errors are independent and of one size, and their difference is 1.4 times
    as large or less (measured: 1.2 to 1.3). Twice is allowed. A tensor in a wrong place is a hundred times as far.
    """
    experts = [*EXPERTS, "parallel.expert_tensor=1"] if name in WITH_EXPERTS else []
    trained = train(ranks, tmp_path, name, 2, [*TENSOR, *experts], torch.bfloat16)
    to_hf(trained.run, tmp_path / "exported")
    assert {tensor.dtype for tensor in weights(tmp_path / "exported").values()} == {torch.bfloat16}
    exact, theirs = (in_dtype(tmp_path / "exported", dtype) for dtype in (torch.float32, torch.bfloat16))
    error = rms(theirs - exact)
    apart, ours = rms(trained.logits - theirs), rms(trained.logits - exact)
    print(f"{name}: std {exact.std():.2f}, bf16's error {error:.1e}, ours {ours:.1e}, between the two {apart:.1e}")
    assert 0 < error < 0.02 * exact.std()
    assert apart <= 2 * error and ours <= 1.5 * error
    assert (trained.logits.argmax(-1) == theirs.argmax(-1)).float().mean() >= 0.9
