"""A Hugging Face directory to a megatron checkpoint of weights, in the memory of about one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from megatron_lm_zh.convert.engine import Conversion, Step, TensorSpec
from megatron_lm_zh.convert.hf_source import open_hf
from megatron_lm_zh.convert.megatron_files import MODEL_FILE
from megatron_lm_zh.convert.model_config import SPECIAL_TOKENS
from megatron_lm_zh.convert.model_file import write_model_file
from megatron_lm_zh.convert.output import converted
from megatron_lm_zh.convert.plan import Job, Plan, natural
from megatron_lm_zh.convert.streaming import Progress, write_pieces
from megatron_lm_zh.convert.tokenizer_files import copy_from_hf
from megatron_lm_zh.convert.torch_dist import MAX_FILE_BYTES, plan_torch_dist, write_index, write_no_objects
from megatron_lm_zh.families.registry import huggingface
from megatron_lm_zh.files import check_new_directory


class FromHF:
    """One conversion from Hugging Face, checked and planned; nothing is written before `run`.

    Raises:
        UserError: the directory does not convert.
    """

    def __init__(self, hf_dir: Path) -> None:
        self.hf_dir = hf_dir
        self.hf_config, self.model, self.source = open_hf(hf_dir)
        assert self.model.vocab_size is not None
        self.conversion = Conversion.of(huggingface(self.model.family), self.model, self.model.vocab_size)
        specs = self.conversion.plan_to_megatron(self.source)
        self.specs: Mapping[str, TensorSpec] = {name: specs[name] for name in sorted(specs, key=natural)}
        split = {step.megatron for step in self.conversion.steps if step.part is not None}
        self.plan: Plan = plan_torch_dist(self.specs, split, MAX_FILE_BYTES)

    def run(
        self,
        checkpoint: Path,
        *,
        workers: int | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Writes the checkpoint; `from_hf` says how."""
        with converted(checkpoint, self.plan, "from-hf", self.hf_dir) as result:
            copy_from_hf(self.hf_dir, result.path / "tokenizer")
            special_tokens = {key: self.hf_config.get(key) for key in SPECIAL_TOKENS}
            if "auto_map" in self.hf_config:  # where the classes of remote code are
                special_tokens["auto_map"] = self.hf_config["auto_map"]
            write_model_file(result.path / MODEL_FILE, self.model, special_tokens)
            write_pieces(
                result.path,
                self.plan,
                self._jobs(),
                workers=workers,
                done=frozenset(result.done),
                on_file=result.record,
                on_progress=on_progress,
            )
            write_index(result.path, self.plan, self.specs)
            write_no_objects(result.path)

    def _jobs(self) -> list[Job]:
        step_of = {(step.megatron, step.part): step for step in self.conversion.steps}
        return [
            Job((piece,), 2 * piece.spec.num_bytes, partial(self._compute, step_of[piece.key, piece.part]))
            for piece in self.plan.pieces
        ]

    def _compute(self, step: Step) -> list[Sequence[Tensor]]:
        return [self.conversion.blocks(step, self.source)]


def from_hf(
    hf_dir: Path,
    checkpoint: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Makes a `torch_dist` checkpoint that megatron-core loads at any layout, with model.yaml and tokenizer beside it.

    Every tensor keeps its dtype; the vocabulary is padded with rows of zeros.

    Args:
        hf_dir: a directory with config.json and safetensors; tokenizer files are taken along where it has them.
        checkpoint: the directory to make; it is whole when it is there. An attempt that was killed is gone on with.
        workers: threads; None: `default_workers`.
        on_progress: told now and then how far it is.

    Raises:
        UserError: the directory does not convert or the output cannot be used; there is no output then.
    """
    check_new_directory(checkpoint)
    FromHF(hf_dir).run(checkpoint, workers=workers, on_progress=on_progress)
