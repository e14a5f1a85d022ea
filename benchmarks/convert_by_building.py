"""The peer of `mlzh convert`: megatron-core builds the whole model, fills it, and saves or loads its own checkpoint.

That is how converters work that go through the model. Nothing is drawn at random, no transformers model is built, and
the tables are our own, so it is as fast as this way can be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.convert.engine import Conversion, TensorSpec
from megatron_lm_zh.convert.hf_files import CONFIG, write_json
from megatron_lm_zh.convert.hf_source import open_hf
from megatron_lm_zh.convert.megatron_files import MODEL_FILE
from megatron_lm_zh.convert.model_config import to_hf_config
from megatron_lm_zh.convert.model_file import read_model_file, run_config_of, write_model_file
from megatron_lm_zh.families.registry import family, huggingface
from megatron_lm_zh.models.build import padded_vocab_size
from megatron_lm_zh.models.initialise import checkpoint_metadata
from megatron_lm_zh.models.rope import use_as_fused_rope
from megatron_lm_zh.models.spec import block_spec
from megatron_lm_zh.models.transformer_config import transformer_config
from megatron_lm_zh.runtime import engine, ranks
from megatron_lm_zh.runtime.groups import process_groups


def from_hf(source: Path, target: Path) -> None:
    """Hugging Face directory to `torch_dist` checkpoint, through a model."""
    _, model, weights = open_hf(source)
    assert model.vocab_size is not None
    target.mkdir()
    write_model_file(target / MODEL_FILE, model, {})
    conversion = Conversion.of(huggingface(model.family), model, model.vocab_size)
    steps = {step.megatron: step for step in conversion.steps}
    with built(target / MODEL_FILE) as gpt, torch.no_grad():
        for name, weight in weights_of(gpt).items():
            weight.copy_(conversion.to_megatron(steps[name], weights))
        dist_checkpointing.save(sharded(gpt), str(target))


def to_hf(source: Path, target: Path) -> None:
    """`torch_dist` checkpoint to sharded safetensors, through a model."""
    model, special_tokens = read_model_file(source / MODEL_FILE)
    assert model.vocab_size is not None
    conversion = Conversion.of(huggingface(model.family), model, model.vocab_size)
    with built(source / MODEL_FILE) as gpt:
        gpt.load_state_dict(dist_checkpointing.load(sharded(gpt), str(source)), strict=False)
        weights = _Weights(weights_of(gpt))
        tensors = {}
        for step in conversion.steps:
            tensors |= conversion.to_hf(step, weights)
        target.mkdir()
        write_json(target / CONFIG, to_hf_config(family(model.family), model, torch.bfloat16, special_tokens))
        save_torch_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, target)


def weights_of(gpt: GPTModel) -> dict[str, Tensor]:
    """The weights of a model on one rank, by the names that its checkpoint gives them."""
    return {value.key: value.data for value in sharded(gpt).values()}


def sharded(gpt: GPTModel) -> dict[str, Any]:
    """What megatron-core saves and loads of a model, without the empty states that Transformer Engine would have."""
    state = gpt.sharded_state_dict(metadata=checkpoint_metadata())
    return {name: value for name, value in state.items() if isinstance(value, ShardedTensor | ShardedTensorFactory)}


@contextmanager
def built(model_file: Path) -> Iterator[GPTModel]:
    """megatron-core's model in bf16 on the CPU, its weights not drawn."""
    device = engine.prepare()
    config = _config(model_file)
    with process_groups(config, ranks.discover(os.environ), device):
        use_as_fused_rope()
        megatron = transformer_config(config, device)
        megatron.perform_initialization = False
        yield GPTModel(
            megatron,
            block_spec(megatron, device),
            padded_vocab_size(config),
            config.model.max_position_embeddings,
            share_embeddings_and_output_weights=config.model.tie_embeddings,
            position_embedding_type="rope",
            rotary_base=config.model.rotary_base,
        ).bfloat16()


def _config(model_file: Path) -> Config:
    """A run of one rank of the model."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "run.yaml"
        path.write_text(run_config_of(read_model_file(model_file)[0], "bf16"), encoding="utf-8")
        return load_config(path, world=1)


class _Weights:
    """The weights of a model as a source of a conversion."""

    where = "the model"

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self.specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}

    def read(self, name: str, part: int | None = None) -> Tensor:
        """One weight, or a part of its first axis."""
        return self._weights[name] if part is None else self._weights[name][part]
