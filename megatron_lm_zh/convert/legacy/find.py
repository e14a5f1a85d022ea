"""Megatron-LM's own checkpoint directories: which kind one is, what model it holds, and its weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lm_zh.config.load import load_config
from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.engine import Conversion, Source
from megatron_lm_zh.convert.hf_files import CONFIG as HF_CONFIG
from megatron_lm_zh.convert.legacy.archive import read_archive
from megatron_lm_zh.convert.legacy.arguments import choose_family, values_of, with_rows
from megatron_lm_zh.convert.legacy.ranks import LegacyWeights, RankFiles
from megatron_lm_zh.convert.legacy.stacked import StackedWeights
from megatron_lm_zh.convert.megatron_files import MODEL_FILE
from megatron_lm_zh.convert.model_config import SPECIAL_TOKENS, from_hf_config
from megatron_lm_zh.convert.torch_dist import METADATA
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import family_of, huggingface
from megatron_lm_zh.files import read_json
from megatron_lm_zh.run_directory import CONFIG, MANIFEST

TRACKER = "latest_checkpointed_iteration.txt"
COMMON = "common.pt"
_EMBEDDING = "embedding.word_embeddings.weight"


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
    """A checkpoint of Megatron-LM's own, ready to convert."""

    source: Source
    model: Model
    conversion: Conversion
    special_tokens: Mapping[str, Any]
    """Ids of the special tokens; null where nothing says them."""
    tokenizer: Path | None
    """A Hugging Face directory that has the tokenizer."""
    directories: tuple[Path, ...]
    """Where its files are."""


def find_plain(path: Path) -> Path | None:
    """The checkpoint of Megatron-LM's own that `path` means: itself, or the newest of a save directory; None if none.

    A checkpoint that this project made is none: it says itself what it holds.
    """
    tracker = path / TRACKER
    if tracker.is_file():
        word = tracker.read_text(encoding="utf-8", errors="replace").strip()
        path = path / (f"iter_{int(word):07d}" if re.fullmatch(r"\d+", word) else word)
    if (path / MODEL_FILE).is_file() or (path / MANIFEST).is_file():
        return None
    return path if (path / METADATA).is_file() or any(path.glob("mp_rank_*")) else None


def open_plain(checkpoint: Path, asked: Asked) -> Opened:
    """Opens a checkpoint that `find_plain` found.

    Raises:
        UserError: it cannot be read, or neither it nor `asked` says what model it is.
    """
    where = str(checkpoint)
    source: StackedWeights | LegacyWeights
    if (checkpoint / METADATA).is_file():
        source = StackedWeights(checkpoint)
        common = read_archive(checkpoint / COMMON) if (checkpoint / COMMON).is_file() else {}
        args = common.get("args") if isinstance(common, dict) else None
        model = _model(args, set(source.specs), _rows(source.specs, where), checkpoint, asked)
        conversion = _conversion(model)
    else:
        files = RankFiles(checkpoint)
        names = {name for name, _ in files.shards}
        if not getattr(files.args, "untie_embeddings_and_output_weights", False):
            names.discard("output_layer.weight")
        rows = sum(shard.shape[0] for shard in files.shards.get((_EMBEDDING, None), ()))
        model = _model(files.args, names, rows, checkpoint, asked)
        conversion = _conversion(model)
        source = LegacyWeights(files, conversion)
    source.check()
    given = read_json(asked.hf_config / HF_CONFIG) if asked.hf_config is not None else {}
    special_tokens = {key: given.get(key) for key in SPECIAL_TOKENS}
    directories = (checkpoint, *sorted(checkpoint.glob("mp_rank_*")))
    return Opened(source, model, conversion, special_tokens, asked.hf_config, directories)


def _conversion(model: Model) -> Conversion:
    assert model.vocab_size is not None
    return Conversion.of(huggingface(model.family), model, model.vocab_size)


def _rows(specs: Mapping[str, Any], where: str) -> int:
    if _EMBEDDING not in specs:
        raise UserError(f"no {_EMBEDDING}", where=where, expected="a checkpoint of a GPT model")
    return int(specs[_EMBEDDING].shape[0])


def _model(args: Any, names: set[str], rows: int, checkpoint: Path, asked: Asked) -> Model:
    """The model section, from what the user named, else from a config or the arguments that the checkpoint holds."""
    where = str(checkpoint)
    known = args if isinstance(args, argparse.Namespace) else argparse.Namespace()
    given = _given(asked, checkpoint)
    vocab_size = asked.vocab_size or (given and given.vocab_size) or getattr(known, "vocab_size", None)
    if vocab_size is None:
        what = f"its args do not say how many of the {rows} rows of the embedding are ids"
        raise UserError(what, where=where, mend="give --vocab-size")
    if not 0 < vocab_size <= rows:
        raise UserError(f"the embedding has {rows} rows", where=where, expected=f"{vocab_size} or more")
    if given is not None:
        return with_rows(given, vocab_size, rows)
    if not vars(known):
        raise UserError("no args in it", where=where, mend="give the model's config: --config or --hf-config")
    return choose_family(values_of(known, where), names, vocab_size, rows, where, asked.family)


def _given(asked: Asked, checkpoint: Path) -> Model | None:
    """The model section of a config; None where there is none."""
    if asked.hf_config is not None:
        path = asked.hf_config / HF_CONFIG
        config = read_json(path)
        return from_hf_config(family_of(str(config.get("model_type"))), config, str(path))
    beside = checkpoint / CONFIG
    file = asked.config or (beside if beside.is_file() else None)
    return None if file is None else load_config(file).model
