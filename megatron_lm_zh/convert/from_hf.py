"""A Hugging Face directory to a megatron checkpoint of weights, in the memory of about one tensor."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from megatron_lm_zh.convert.engine import Conversion
from megatron_lm_zh.convert.hf_files import CONFIG, HFWeights
from megatron_lm_zh.convert.megatron_files import MODEL_FILE, write_weights
from megatron_lm_zh.convert.model_config import SPECIAL_TOKENS, from_hf_config
from megatron_lm_zh.convert.model_file import write_model_file
from megatron_lm_zh.convert.output import new_directory
from megatron_lm_zh.convert.tokenizer_files import copy_from_hf
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import family_of, huggingface
from megatron_lm_zh.files import read_json


def from_hf(hf_dir: Path, checkpoint: Path) -> None:
    """Makes a `torch_dist` checkpoint that megatron-core loads at any layout, with model.yaml and tokenizer beside it.

    Every tensor keeps its dtype; the vocabulary is padded with rows of zeros.

    Args:
        hf_dir: a directory with config.json and safetensors; tokenizer files are taken along where it has them.
        checkpoint: the directory to make; it is whole when it is there.

    Raises:
        UserError: the directory does not convert or the output cannot be used; no output is left behind.
    """
    if not (hf_dir / CONFIG).is_file():
        raise UserError(f"no {CONFIG}", where=str(hf_dir), expected="a Hugging Face model directory")
    hf_config = read_json(hf_dir / CONFIG)
    family = family_of(str(hf_config.get("model_type")))
    model = from_hf_config(family, hf_config, str(hf_dir / CONFIG))
    assert model.vocab_size is not None
    conversion = Conversion.of(huggingface(family.name), model, model.vocab_size)
    source = HFWeights(hf_dir)
    planned = conversion.plan_to_megatron(source)
    step_of = {step.megatron: step for step in conversion.steps}

    def compute(name: str) -> Tensor:
        return conversion.to_megatron(step_of[name], source)

    with new_directory(checkpoint, sum(spec.num_bytes for spec in planned.values())) as partial:
        copy_from_hf(hf_dir, partial / "tokenizer")
        write_model_file(partial / MODEL_FILE, model, {key: hf_config.get(key) for key in SPECIAL_TOKENS})
        write_weights(partial, planned, compute)
