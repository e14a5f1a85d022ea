"""The export does not know how the pipeline was cut: names in a checkpoint are global."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_models import make_tokenizer, mlzh, same_bits, weights
from support.pool import RankPool

from megatron_lm_zh.convert.to_hf import to_hf

CONFIG = """
run: {{dir: {run}}}
model: {{num_layers: 4, hidden_size: 64, num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 96,
  seq_length: 64, vocab_size: {vocab}}}
parallel: {{{parallel}}}
precision: {{dtype: fp32}}
data: {{tokenizer: {{type: HuggingFace, path: {run}/gone}}, train: [{{path: {run}/none}}]}}
train: {{steps: 5, global_batch_size: 4}}
optim: {{lr: 0.01}}
"""
LAYOUTS = {
    "interleaved": "pipeline: 2, virtual_pipeline: 2",
    "uneven": "pipeline: 2, num_layers_in_first_pipeline_stage: 1",
}


def save_initial(ranks: Any, device: Any, run: str) -> None:
    """Runs in the pool: saves the model that the run's config begins with."""
    from megatron_lm_zh.checkpoint.manifest import Layout
    from megatron_lm_zh.checkpoint.save import Saver
    from megatron_lm_zh.checkpoint.state import training_state
    from megatron_lm_zh.config.load import load_config, to_yaml
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.optim.build import build_optimizer
    from megatron_lm_zh.run_directory import RunDirectory
    from megatron_lm_zh.runtime.groups import process_groups

    config = load_config(Path(run) / "config.yaml", world=ranks.world)
    with process_groups(config, ranks, device):
        model = build_model(config, device)
        state = training_state(model, build_optimizer(config, model), is_loading=False, with_rng=True)
        saver = Saver(RunDirectory(Path(run)), Layout.of(config, ranks.world), keep_last=1, asynchronous=False)
        saver.save(state, step=1, consumed_samples=0, config_yaml=to_yaml(config))


def saved(pool: RankPool, run: Path, world: int, parallel: str) -> Path:
    tokenizer = make_tokenizer(run / "tokenizer")
    (run / "config.yaml").write_text(CONFIG.format(run=run, vocab=len(tokenizer), parallel=parallel))
    pool.run(world, save_initial, str(run))
    return run


@pytest.mark.dist
def test_every_pipeline_exports_the_same(ranks: RankPool, tmp_path: Path) -> None:
    to_hf(saved(ranks, tmp_path / "one_rank", 1, ""), tmp_path / "expected")
    expected = weights(tmp_path / "expected")
    assert len(expected) == 4 * 9 + 3
    for name, parallel in LAYOUTS.items():
        to_hf(saved(ranks, tmp_path / name, 2, parallel), tmp_path / f"{name}_hf")
        assert same_bits(weights(tmp_path / f"{name}_hf"), expected)


@pytest.mark.dist
def test_a_family_without_tables_is_one_line(ranks: RankPool, tmp_path: Path) -> None:
    run = saved(ranks, tmp_path / "run", 1, "")
    config = run / "checkpoints/iter_0000001/config.yaml"
    text = config.read_text()
    config.write_text(text.replace("family: llama", "family: gpt"))
    assert config.read_text() != text
    done = mlzh("convert", "to-hf", run, tmp_path / "hf")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: family gpt has no conversion to Hugging Face; expected one of llama, ")
    assert not (tmp_path / "hf").exists()
