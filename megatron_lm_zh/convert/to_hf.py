"""A megatron checkpoint of any layout to a Hugging Face directory, in the memory of about one tensor."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.config.sections.data import Tokenizer
from megatron_lm_zh.convert.engine import Conversion, Step
from megatron_lm_zh.convert.hf_files import (
    CONFIG,
    GENERATION_CONFIG,
    MAX_SHARD_BYTES,
    plan_safetensors,
    write_index,
    write_json,
)
from megatron_lm_zh.convert.legacy.find import NOTHING_ASKED, Asked, Opened, find_plain, open_plain
from megatron_lm_zh.convert.megatron_files import MODEL_FILE, MegatronWeights, find_checkpoint
from megatron_lm_zh.convert.model_config import SPECIAL_TOKENS, to_hf_config
from megatron_lm_zh.convert.model_file import read_model_file
from megatron_lm_zh.convert.output import converted
from megatron_lm_zh.convert.plan import Job, natural
from megatron_lm_zh.convert.streaming import Progress, write_pieces
from megatron_lm_zh.convert.tokenizer_files import copy_all, copy_from_hf
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import family, huggingface
from megatron_lm_zh.files import check_new_directory
from megatron_lm_zh.run_directory import CONFIG as RUN_CONFIG
from megatron_lm_zh.run_directory import RunDirectory
from megatron_lm_zh.tokenizer.load import load_tokenizer


class ToHF:
    """One conversion to Hugging Face, checked and planned; nothing is written before `run`.

    Raises:
        UserError: the checkpoint or its tokenizer cannot be used.
    """

    def __init__(self, checkpoint: Path, asked: Asked = NOTHING_ASKED) -> None:
        opened = _open(checkpoint, asked)
        self.checkpoint, self.directories, self.tokenizer = opened.directories[0], opened.directories, opened.tokenizer
        self.source, self.model, self.special_tokens = opened.source, opened.model, opened.special_tokens
        self.conversion = opened.conversion
        specs = self.conversion.plan_to_hf(self.source)
        self.hf_config = to_hf_config(
            family(self.model.family), self.model, next(iter(specs.values())).dtype, self.special_tokens
        )
        self.plan = plan_safetensors({name: specs[name] for name in sorted(specs, key=natural)}, MAX_SHARD_BYTES)

    def run(
        self,
        output: Path,
        *,
        workers: int | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Writes the directory; `to_hf` says how."""
        with converted(output, self.plan, "to-hf", *self.directories) as result:
            if self.tokenizer is not None:
                copy_from_hf(self.tokenizer, result.path)
            elif find_plain(self.checkpoint) is None:
                _put_tokenizer(self.checkpoint, result.path)
            write_json(result.path / CONFIG, self.hf_config)
            if not (result.path / GENERATION_CONFIG).is_file():
                ends = {key: self.special_tokens.get(key) for key in SPECIAL_TOKENS}
                write_json(result.path / GENERATION_CONFIG, ends)
            write_index(result.path, self.plan)
            write_pieces(
                result.path,
                self.plan,
                self._jobs(),
                workers=workers,
                done=frozenset(result.done),
                on_file=result.record,
                on_progress=on_progress,
            )

    def _jobs(self) -> list[Job]:
        """A job a step, in the order of the files."""
        pieces = {piece.key: piece for piece in self.plan.pieces}
        jobs = []
        for step in sorted(self.conversion.steps, key=lambda step: natural(step.hf[0])):
            names = step.hf + tuple(name for name, of in self.conversion.copies.items() if of in step.hf)
            mine = tuple(pieces[name] for name in names)
            memory = 2 * sum(piece.spec.num_bytes for piece in mine)
            jobs.append(Job(mine, memory, partial(self._compute, step, names)))
        return jobs

    def _compute(self, step: Step, names: tuple[str, ...]) -> list[Sequence[Tensor]]:
        made = self.conversion.to_hf(step, self.source)
        return [(made[name],) for name in names]


def to_hf(
    checkpoint: Path,
    output: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Exports a checkpoint: weights, config.json, generation_config.json and the tokenizer that trained.

    Every tensor keeps its dtype; rows that pad the vocabulary are left out.

    Args:
        checkpoint: a checkpoint directory, or a run directory (then its newest complete checkpoint).
        output: the directory to make; it is whole when it is there. An attempt that was killed is gone on with.
        workers: threads; None: `default_workers`.
        on_progress: told now and then how far it is.

    Raises:
        UserError: the checkpoint, its tokenizer or the output cannot be used; there is no output then.
    """
    check_new_directory(output)
    ToHF(checkpoint).run(output, workers=workers, on_progress=on_progress)


def _open(checkpoint: Path, asked: Asked) -> Opened:
    """The checkpoint's weights and model, whoever made it."""
    plain = find_plain(checkpoint)
    if plain is not None:
        opened = open_plain(plain, asked)
        if asked.hf_config is None and opened.tokenizer is not None:
            opened = dataclasses.replace(opened, special_tokens=_with_ids(opened, opened.tokenizer))
        return opened
    if asked != NOTHING_ASKED:
        raise UserError(
            "the checkpoint says itself what model it is", where=str(checkpoint), mend="leave the flags out"
        )
    found = find_checkpoint(checkpoint)
    source = MegatronWeights(found)
    model, special_tokens = read_model(found)
    assert model.vocab_size is not None
    conversion = Conversion.of(huggingface(model.family), model, model.vocab_size)
    conversion.plan_to_hf(source)
    source.check()
    return Opened(source, model, conversion, special_tokens, None, (found,))


def _with_ids(opened: Opened, tokenizer: Path) -> Mapping[str, Any]:
    """The ids of the special tokens, from the tokenizer beside a checkpoint where nothing else says them."""
    if any(opened.special_tokens.values()) or not (tokenizer / "tokenizer_config.json").is_file():
        return opened.special_tokens
    assert opened.model.vocab_size is not None
    return _ids_of(tokenizer, opened.model.vocab_size, str(tokenizer))[1]


def _ids_of(tokenizer: Path, vocab_size: int | None, where: str) -> tuple[int, dict[str, Any]]:
    """How many ids there are, and those of a tokenizer's special tokens; UserError where it does not fit."""
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"transformers cannot load the tokenizer of {where}: {error}") from error
    vocab_size = vocab_size or len(loaded)
    if len(loaded) > vocab_size:
        raise UserError(f"the tokenizer has {len(loaded)} ids, the model {vocab_size}", where=where)
    return vocab_size, {key: getattr(loaded, key) for key in SPECIAL_TOKENS}


def read_model(checkpoint: Path) -> tuple[Model, Mapping[str, Any]]:
    """The model section of a checkpoint, with its vocab_size, and the ids of its special tokens.

    Raises:
        UserError: the checkpoint does not say what it holds, or its tokenizer cannot be used.
    """
    if (checkpoint / MODEL_FILE).is_file():
        return read_model_file(checkpoint / MODEL_FILE)
    model = load_config(checkpoint / RUN_CONFIG).model
    with tempfile.TemporaryDirectory() as scratch:
        _put_tokenizer(checkpoint, Path(scratch))
        vocab_size, special_tokens = _ids_of(Path(scratch), model.vocab_size, str(checkpoint))
    return dataclasses.replace(model, vocab_size=vocab_size), special_tokens


def tokenizer_of(checkpoint: Path) -> Path:
    """Where the tokenizer files of a checkpoint are, if they are anywhere."""
    made_by_us = (checkpoint / MODEL_FILE).is_file()
    return checkpoint / "tokenizer" if made_by_us else RunDirectory(checkpoint.parent.parent).tokenizer


def _put_tokenizer(checkpoint: Path, target: Path) -> None:
    """The tokenizer of a checkpoint, else, of a run's, one made from the path that its config names."""
    copy = tokenizer_of(checkpoint)
    if copy.is_dir():
        copy_all(copy, target)
    elif not (checkpoint / MODEL_FILE).is_file():
        wanted: Tokenizer = load_config(checkpoint / RUN_CONFIG).data.tokenizer
        if not Path(wanted.path).exists():
            raise UserError(f"no tokenizer: neither {copy} nor {wanted.path}, which the config names, is there")
        load_tokenizer(wanted.type, wanted.path).save_huggingface(target)
