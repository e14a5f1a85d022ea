"""A training checkpoint rewritten without a cluster, so that any layout resumes from it: weights and optimizer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from megatron_lm_zh.config.load import load_config, to_yaml
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.convert.boxes import StoredTensors
from megatron_lm_zh.convert.buckets import BucketStates, is_split
from megatron_lm_zh.convert.engine import Source, TensorSpec
from megatron_lm_zh.convert.megatron_files import MODEL_FILE, find_checkpoint, is_weight
from megatron_lm_zh.convert.model_config import SPECIAL_TOKENS
from megatron_lm_zh.convert.model_file import write_model_file
from megatron_lm_zh.convert.output import converted
from megatron_lm_zh.convert.plan import Job, Piece, Plan, natural
from megatron_lm_zh.convert.streaming import Progress, write_pieces
from megatron_lm_zh.convert.to_hf import read_model, tokenizer_of
from megatron_lm_zh.convert.tokenizer_files import copy_all
from megatron_lm_zh.convert.torch_dist import (
    COMMON,
    MAX_FILE_BYTES,
    METADATA,
    plan_torch_dist,
    write_index,
    write_no_objects,
)
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import check_new_directory, read_json, write_bytes
from megatron_lm_zh.run_directory import CONFIG, MANIFEST

OBJECTS = "__1_0.distcp"
FULLY_RESHARDABLE = "fully_reshardable"
_OF_LAYOUT = re.compile(r"(chained_\d+\.)?optimizer\.distributed\.")
_MASTER = re.compile(r"optimizer\.state\.(?:param|fp32_param)\.(.+)")
_NAMED = re.compile(r"iter_(\d{7,})")
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")
_BLOCK = 16 * 2**20


class Reshard:
    """One rewriting of a checkpoint, checked and planned; nothing is written before `run`.

    Args:
        checkpoint: a checkpoint that training made, or a run directory (then its newest complete one).
        weights_only: leave the optimizer out; the result then has model.yaml, as one of `from-hf`, and no manifest.
        make_vocab_size_divisible_by: pad the vocabulary to a multiple of this; None: as it is.
        vocab_size: ids that there are, where the config does not say.

    Raises:
        UserError: the checkpoint cannot be rewritten.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        weights_only: bool = False,
        make_vocab_size_divisible_by: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.checkpoint = find_checkpoint(checkpoint)
        if not (self.checkpoint / MANIFEST).is_file():
            raise UserError("no checkpoint of a training run", where=str(self.checkpoint))
        self.weights_only = weights_only
        self.manifest = read_json(self.checkpoint / MANIFEST)
        self.config = _config(self.checkpoint / CONFIG, make_vocab_size_divisible_by, vocab_size)
        self.stored = StoredTensors(self.checkpoint)
        self.stored.check()
        self.states = self._states()
        self._rows = self._padded_rows() if make_vocab_size_divisible_by else None
        sources: list[tuple[Source, str]] = [(self.stored, name) for name in self.stored.specs if is_weight(name)]
        if self.states is not None:
            sources += [(self.states, name) for name in self.states.specs if name.startswith("optimizer.")]
        self._source = {name: source for source, name in sources}
        specs = {name: self._spec(source.specs[name], name) for source, name in sources}
        self.specs: Mapping[str, TensorSpec] = {name: specs[name] for name in sorted(specs, key=natural)}
        self.plan: Plan = plan_torch_dist(self.specs, {name for name in specs if is_split(name)}, MAX_FILE_BYTES)

    def run(
        self,
        output: Path,
        *,
        workers: int | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Writes the checkpoint; `reshard` says how."""
        self.check_name(output)
        if isinstance(self.states, StoredTensors):
            _check_masters(self.states)
        with converted(output, self.plan, f"reshard {self.weights_only}", self.checkpoint) as result:
            write_pieces(
                result.path,
                self.plan,
                [self._job(piece) for piece in self.plan.pieces],
                workers=workers,
                done=frozenset(result.done),
                on_file=result.record,
                on_progress=on_progress,
            )
            write_index(result.path, self.plan, self.specs)
            if self.weights_only:
                write_no_objects(result.path)
                self._write_model_file(result.path)
            else:
                self._write_rest(result.path)

    def check_name(self, output: Path) -> None:
        """UserError if something is there, or the directory has the name of another step."""
        check_new_directory(output)
        named = _NAMED.fullmatch(output.name)
        if named is not None and int(named[1]) != self.manifest["step"]:
            expected = f"iter_{self.manifest['step']:07d}"
            raise UserError("the name of another step", where=str(output), expected=expected)

    def _states(self) -> Source | None:
        """Where the optimizer's tensors come from."""
        if self.weights_only:
            return None
        if self.config.ddp.use_megatron_fsdp:
            mend = "--weights-only leaves the optimizer out"
            raise UserError("Megatron-FSDP's optimizer is not rewritten", where=str(self.checkpoint), mend=mend)
        sharding = self.manifest.get("distrib_optim_sharding_type", FULLY_RESHARDABLE)
        return self.stored if sharding == FULLY_RESHARDABLE else BucketStates(self.stored, self.config)

    def _padded_rows(self) -> int:
        if self.config.model.vocab_size is None:
            what = "the config does not say how many ids there are"
            raise UserError(what, where=str(self.checkpoint), mend="give --vocab-size")
        multiple = self.config.model.make_vocab_size_divisible_by
        return -(-self.config.model.vocab_size // multiple) * multiple

    def _spec(self, spec: TensorSpec, name: str) -> TensorSpec:
        if self._rows is None or not name.endswith(_VOCABULARY):
            return spec
        return TensorSpec((self._rows, *spec.shape[1:]), spec.dtype)

    def _job(self, piece: Piece) -> Job:
        return Job((piece,), 2 * piece.spec.num_bytes, partial(self._compute, piece))

    def _compute(self, piece: Piece) -> list[Sequence[Tensor]]:
        tensor = self._source[piece.key].read(piece.key, piece.part)
        rows = self.specs[piece.key].shape[0]
        if self._rows is not None and piece.key.endswith(_VOCABULARY) and tensor.shape[0] != rows:
            # no text has these ids: their rows get no gradient and count in no loss
            more = tensor.new_zeros(max(0, rows - tensor.shape[0]), *tensor.shape[1:])
            tensor = torch.cat((tensor[:rows], more))
        return [(tensor,)]

    def _write_model_file(self, directory: Path) -> None:
        tokenizer, model = tokenizer_of(self.checkpoint), self.config.model
        special_tokens: Mapping[str, Any] = dict.fromkeys(SPECIAL_TOKENS)
        if tokenizer.is_dir():
            read, special_tokens = read_model(self.checkpoint)
            model = dataclasses.replace(model, vocab_size=model.vocab_size or read.vocab_size)
            (directory / "tokenizer").mkdir(exist_ok=True)
            copy_all(tokenizer, directory / "tokenizer")
        if model.vocab_size is None:
            what = "the config does not say how many ids there are"
            raise UserError(what, where=str(self.checkpoint), mend="give --vocab-size")
        write_model_file(directory / MODEL_FILE, model, special_tokens)

    def _write_rest(self, directory: Path) -> None:
        """What is no tensor: small values, random generators, the config; last the manifest."""
        if (self.checkpoint / COMMON).is_file():  # else it is among the objects
            shutil.copyfile(self.checkpoint / COMMON, directory / COMMON)
        self._copy_objects(directory)
        (directory / CONFIG).write_text(to_yaml(self.config), encoding="utf-8")
        files = {
            path.name: _record(path)
            for path in sorted(directory.iterdir())
            if path.is_file() and (path.name == METADATA or not path.name.startswith("."))
        }
        manifest: dict[str, Any] = self.manifest | {"files": files, "distrib_optim_sharding_type": FULLY_RESHARDABLE}
        write_bytes(directory / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())

    def _copy_objects(self, directory: Path) -> None:
        """Takes the pickled objects along as they are, but for those that say how the optimizer lay."""
        metadata = pickle.loads((directory / METADATA).read_bytes())  # written a moment ago by this process
        entries, position = self.stored.metadata, 0
        with (directory / OBJECTS).open("wb") as file:
            for name, entry in entries.state_dict_metadata.items():
                if not isinstance(entry, BytesStorageMetadata) or _OF_LAYOUT.match(name):
                    continue
                index = MetadataIndex(name)
                stored = entries.storage_data[index]
                with (self.checkpoint / stored.relative_path).open("rb") as source:
                    source.seek(stored.offset)
                    content = source.read(stored.length)
                metadata.state_dict_metadata[name] = BytesStorageMetadata()
                metadata.storage_data[index] = _StorageInfo(OBJECTS, position, len(content))
                position += file.write(content)
        (directory / METADATA).write_bytes(pickle.dumps(metadata))


def _check_masters(stored: StoredTensors) -> None:
    """UserError where master weights, rounded, are not the weights.

    megatron-core writes `fully_reshardable` wrongly where one of several gradient buckets ends in padding: it leaves
    the padding out and counts it all the same (megatron_lm_zh/checkpoint/optimizer_state.py mends what we write).
    """
    for name in stored.specs:
        found = _MASTER.fullmatch(name)
        if found is None or found[1] not in stored.specs:
            continue
        weight = stored.specs[found[1]]
        for part in range(weight.shape[0]) if is_split(name) else (None,):
            master = stored.read(name, part).to(weight.dtype)
            if not torch.equal(master, stored.read(found[1], part)):
                what = f"the master weights of {found[1]} are not its weights"
                mend = "its optimizer state is lost, its weights are right: rewrite those with --weights-only"
                raise UserError(what, where=stored.where, mend=mend)


def reshard(
    checkpoint: Path,
    output: Path,
    *,
    weights_only: bool = False,
    make_vocab_size_divisible_by: int | None = None,
    vocab_size: int | None = None,
    workers: int | None = None,
) -> None:
    """Rewrites a training checkpoint in few files, with an optimizer that any layout reads.

    Args:
        checkpoint: a checkpoint that training made, or a run directory (then its newest complete one).
        output: the directory to make, `RUN_DIR/checkpoints/iter_N` of the run that is to resume from it; it is whole
            when it is there. An attempt that was killed is gone on with.
        weights_only: leave the optimizer out.
        make_vocab_size_divisible_by: pad the vocabulary to a multiple of this; None: as it is.
        vocab_size: ids that there are, where the config does not say.
        workers: threads; None: `default_workers`.

    Raises:
        UserError: the checkpoint cannot be rewritten or the output cannot be used; there is no output then.
    """
    check_new_directory(output)
    job = Reshard(
        checkpoint,
        weights_only=weights_only,
        make_vocab_size_divisible_by=make_vocab_size_divisible_by,
        vocab_size=vocab_size,
    )
    job.run(output, workers=workers)


def _config(path: Path, multiple: int | None, vocab_size: int | None) -> Config:
    config = load_config(path, [] if multiple is None else [f"model.make_vocab_size_divisible_by={multiple}"])
    if vocab_size is None or config.model.vocab_size == vocab_size:
        return config
    if config.model.vocab_size is not None:
        raise UserError(
            f"--vocab-size {vocab_size}", where=str(path), expected=f"{config.model.vocab_size}, as it says"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocab_size))


def _record(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as a manifest has them."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}
