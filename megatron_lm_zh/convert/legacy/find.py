"""Checkpoints of Megatron-LM and Megatron-Bridge: which kind one is, what model it holds, and its weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.engine import Conversion, Source
from megatron_lm_zh.convert.hf_files import CONFIG as HF_CONFIG
from megatron_lm_zh.convert.legacy.archive import StoredTensor, read_archive
from megatron_lm_zh.convert.legacy.arguments import families_for, values_of, with_rows
from megatron_lm_zh.convert.legacy.ranks import LegacyWeights, RankFiles
from megatron_lm_zh.convert.legacy.run_config import RUN_CONFIG, RunConfig, model_key, read_run_config
from megatron_lm_zh.convert.legacy.stacked import StackedWeights
from megatron_lm_zh.convert.megatron_files import MODEL_FILE, is_weight
from megatron_lm_zh.convert.model_config import SPECIAL_TOKENS, from_hf_config
from megatron_lm_zh.convert.torch_dist import COMMON, COMMON_OBJECT, METADATA
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import family_of, huggingface
from megatron_lm_zh.files import read_json
from megatron_lm_zh.run_directory import CONFIG, MANIFEST

TRACKER = "latest_checkpointed_iteration.txt"
TRAIN_STATE = "latest_train_state.pt"
"""What Megatron-Bridge has beside the tracker; its first versions wrote nothing else."""
TOKENIZER = "tokenizer"
"""A directory that later versions of Megatron-Bridge put into a checkpoint."""
_EMBEDDING = "embedding.word_embeddings.weight"
_AXES: Mapping[str, str] = MappingProxyType(
    {
        "world": "world_size",
        "tensor": "tensor_model_parallel_size",
        "pipeline": "pipeline_model_parallel_size",
        "virtual_pipeline": "virtual_pipeline_model_parallel_size",
        "context": "context_parallel_size",
        "expert": "expert_model_parallel_size",
        "expert_tensor": "expert_tensor_parallel_size",
    }
)
"""Axes of our `parallel` section, and Megatron-LM's arguments."""


@dataclass(frozen=True)
class Asked:
    """What the user says of a model whose checkpoint does not say it."""

    family: str | None = None
    """Its family."""
    vocab_size: int | None = None
    """Ids that there are; the embedding's other rows are padding."""
    config: Path | None = None
    """A config of ours, whose `model` section it is."""
    hf_config: Path | None = None
    """A Hugging Face directory of the same model, of which config.json is read."""


NOTHING_ASKED = Asked()


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready to convert."""

    source: Source
    model: Model
    conversion: Conversion
    special_tokens: Mapping[str, Any]
    """Ids of the special tokens; null where nothing says them."""
    tokenizer: Path | None
    """A Hugging Face directory that has the tokenizer."""
    directories: tuple[Path, ...]
    """Where its files are."""
    families: tuple[str, ...] = ()
    """Every family that the model may be of, where nothing said which."""


def find_plain(path: Path) -> Path | None:
    """The checkpoint of Megatron-LM's own that `path` means: itself, or the newest of a save directory; None if none.

    A checkpoint that this project made is none: it says itself what it holds.
    """
    tracker, state = path / TRACKER, path / TRAIN_STATE
    if tracker.is_file():
        word = tracker.read_text(encoding="utf-8", errors="replace").strip()
        path = path / (f"iter_{int(word):07d}" if re.fullmatch(r"\d+", word) else word)
    elif state.is_file():
        path = path / f"iter_{_step_of(state):07d}"
    if (path / MODEL_FILE).is_file() or (path / MANIFEST).is_file():
        return None
    return path if (path / METADATA).is_file() or any(path.glob("mp_rank_*")) else None


def _step_of(state: Path) -> int:
    """The step that Megatron-Bridge saved last."""
    found = read_archive(state)
    step = found.get("step") if isinstance(found, dict) else None
    if not isinstance(step, StoredTensor) or step.shape:
        raise UserError("no step in it", where=str(state), expected="what Megatron-Bridge saved")
    return int(step.read())


class Plain:
    """A checkpoint that `find_plain` found: what it says of itself, and how it opens."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.where = str(checkpoint)
        self.is_legacy = not (checkpoint / METADATA).is_file()

    @cached_property
    def stacked(self) -> StackedWeights:
        """Its weights, where it is `torch_dist`."""
        return StackedWeights(self.checkpoint)

    @cached_property
    def ranks(self) -> RankFiles:
        """Its files, where each rank has its own."""
        return RankFiles(self.checkpoint)

    @cached_property
    def run(self) -> RunConfig | None:
        """Megatron-Bridge's run_config.yaml; UserError where it cannot be used."""
        return read_run_config(self.checkpoint)

    @cached_property
    def content(self) -> Mapping[str, Any]:
        """What it holds beside tensors."""
        if self.is_legacy:
            return self.ranks.content
        if (self.checkpoint / COMMON).is_file():
            common = read_archive(self.checkpoint / COMMON)
        else:
            common = self._common_object()
        return common if isinstance(common, dict) else {}

    def _common_object(self) -> Any:
        """The content of common.pt, where it stands among the objects."""
        place = self.stacked.metadata.storage_data.get(COMMON_OBJECT)
        if place is None:
            return {}
        found = read_archive(self.checkpoint / place.relative_path, place.offset, place.length)
        return found[0] if isinstance(found, list) and found else {}

    @cached_property
    def arguments(self) -> argparse.Namespace | None:
        """What Megatron-LM was started with, or the same by Megatron-Bridge; None where nothing says it."""
        if self.run is not None:
            return self.run.arguments
        args = self.content.get("args")
        return args if isinstance(args, argparse.Namespace) and vars(args) else None

    @property
    def kind(self) -> str:
        """What made it, in words."""
        if self.is_legacy:
            return "Megatron-LM, legacy (mp_rank)"
        if (self.checkpoint / RUN_CONFIG).is_file():
            return "Megatron-Bridge, torch_dist"
        return "torch_dist files of another program" if self.arguments is None else "Megatron-LM, torch_dist"

    @property
    def step(self) -> int | None:
        """The step at which it was saved."""
        step = self.content.get("iteration")
        return step if isinstance(step, int) else None

    @property
    def layout(self) -> dict[str, int]:
        """Ranks along each axis, in the words of our `parallel` section."""
        given: Mapping[str, Any] = {}
        if self.run is not None:
            given = self.run.model
        elif self.arguments is not None:
            given = vars(self.arguments)
        sizes = {axis: given.get(argument) for axis, argument in _AXES.items()}
        experts = given.get("num_experts") or given.get("num_moe_experts")
        axes = {axis: size for axis, size in sizes.items() if isinstance(size, int)}
        return axes if experts else {axis: size for axis, size in axes.items() if not axis.startswith("expert")}

    @property
    def has_optimizer(self) -> bool:
        """Whether there is optimizer state."""
        if self.is_legacy:
            apart = any(self.checkpoint.glob("mp_rank_*/distrib_optim.pt"))
            return apart or "optimizer" in self.content
        return any(not is_weight(name) for name in self.stacked.metadata.state_dict_metadata)

    def says_its_model(self, asked: Asked) -> bool:
        """Whether the user or a file says what model it is."""
        return asked != NOTHING_ASKED or (self.checkpoint / CONFIG).is_file() or self.arguments is not None

    def open(self, asked: Asked, *, any_family: bool = False) -> Opened:
        """Opens it.

        Args:
            asked: what the user says of the model.
            any_family: take the first family where the model may be of several.

        Raises:
            UserError: it cannot be read, or neither it nor `asked` says what model it is.
        """
        models = self._models(asked, *(self._legacy_names if self.is_legacy else self._stacked_names))
        if len(models) > 1 and not any_family:
            what = f"the model may be of {', '.join(models)}"
            raise UserError(what, where=self.where, mend="name one: --family")
        model = next(iter(models.values()))
        assert model.vocab_size is not None
        conversion = Conversion.of(huggingface(model.family), model, model.vocab_size)
        source: StackedWeights | LegacyWeights
        source = LegacyWeights(self.ranks, conversion) if self.is_legacy else self.stacked
        source.check()
        own = self.checkpoint / TOKENIZER
        tokenizer = asked.hf_config or (own if own.is_dir() else None)
        directories = (self.checkpoint, *sorted(self.checkpoint.glob("mp_rank_*")), *([own] if own.is_dir() else []))
        return Opened(source, model, conversion, self._special_tokens(asked), tokenizer, directories, tuple(models))

    @property
    def _stacked_names(self) -> tuple[set[str], int]:
        """Names of the weights, and rows of the embedding."""
        specs = self.stacked.specs
        if _EMBEDDING not in specs:
            raise UserError(f"no {_EMBEDDING}", where=self.where, expected="a checkpoint of a GPT model")
        return set(specs), int(specs[_EMBEDDING].shape[0])

    @property
    def _legacy_names(self) -> tuple[set[str], int]:
        """Names of the weights, and rows of the embedding."""
        names = {name for name, _ in self.ranks.shards}
        if not getattr(self.ranks.args, "untie_embeddings_and_output_weights", False):
            names.discard("output_layer.weight")
        return names, sum(shard.shape[0] for shard in self.ranks.shards.get((_EMBEDDING, None), ()))

    def _special_tokens(self, asked: Asked) -> dict[str, Any]:
        if asked.hf_config is not None:
            given: Mapping[str, Any] = read_json(asked.hf_config / HF_CONFIG)
        else:
            given = self.run.special_tokens if self.run is not None else {}
        return {key: given.get(key) for key in SPECIAL_TOKENS}

    def _models(self, asked: Asked, names: set[str], rows: int) -> dict[str, Model]:
        """The model section by family, from what the user named, else from a config or what the checkpoint says."""
        given = _given(asked, self.checkpoint)
        known = argparse.Namespace() if given is not None or self.arguments is None else self.arguments
        vocab_size = asked.vocab_size or (given and given.vocab_size) or getattr(known, "vocab_size", None)
        if given is None and self.arguments is None:
            what = f"no args in it and no {RUN_CONFIG} beside it"
            raise UserError(what, where=self.where, mend="give the model's config: --config or --hf-config")
        if vocab_size is None:
            what = f"nothing says how many of the {rows} rows of the embedding are ids"
            raise UserError(what, where=self.where, mend="give --vocab-size")
        if not isinstance(vocab_size, int) or not 0 < vocab_size <= rows:
            raise UserError(f"the embedding has {rows} rows", where=self.where, expected=f"{vocab_size} or more")
        if given is not None:
            return {given.family: with_rows(given, vocab_size, rows)}
        run = self.run
        if run is None:
            return families_for(values_of(known, self.where), names, vocab_size, rows, self.where, asked.family)
        if not run.is_known and asked.family is None:
            what = f"model._target_: {run.class_name} may build more than its keys say"
            mend = "if it is a family's network, name it: --family"
            raise UserError(what, where=str(self.checkpoint / RUN_CONFIG), mend=mend)
        values = values_of(known, str(self.checkpoint / RUN_CONFIG), model_key)
        models = families_for(values, names, vocab_size, rows, self.where, asked.family)
        return {run.family: models[run.family]} if run.family in models else models


def open_plain(checkpoint: Path, asked: Asked) -> Opened:
    """Opens a checkpoint that `find_plain` found.

    Raises:
        UserError: it cannot be read, or neither it nor `asked` says what model it is.
    """
    return Plain(checkpoint).open(asked)


def _given(asked: Asked, checkpoint: Path) -> Model | None:
    """The model section of a config; None where there is none."""
    if asked.hf_config is not None:
        path = asked.hf_config / HF_CONFIG
        config = read_json(path)
        return from_hf_config(family_of(str(config.get("model_type"))), config, str(path))
    beside = checkpoint / CONFIG
    file = asked.config or (beside if beside.is_file() else None)
    return None if file is None else load_config(file).model
