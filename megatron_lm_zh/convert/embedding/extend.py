"""A Hugging Face model with the rows that an extended tokenizer needs, file by file in the memory of a few rows."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_lm_zh.convert.embedding.methods import DEFAULT, METHODS
from megatron_lm_zh.convert.embedding.rows import Extended, Norms
from megatron_lm_zh.convert.embedding.tables import Shard, Stored, find_tables
from megatron_lm_zh.convert.hf_files import (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    HFWeights,
    header_bytes,
    write_json,
)
from megatron_lm_zh.convert.output import resumable_directory
from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.files import read_json, read_json_if_any
from megatron_lm_zh.tokenizer.embedding.parts import Parts, find_parts
from megatron_lm_zh.tokenizer.embedding.vocabulary import Vocabulary, check_extends, holds_tokenizer, read_vocabulary
from megatron_lm_zh.tokenizer.extension import RECORD_FILE
from megatron_lm_zh.tokenizer.huggingface import FILES

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
PADDED = 128
"""A source with rows behind its tokenizer's ids stays a multiple of what its rows are of this power of two."""
OTHER_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"})
_COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Options:
    """How to extend.

    Attributes:
        method: one of `METHODS`, for rows that are only looked up.
        output_method: the same for rows that give logits: of an output layer or a tied embedding. None: as `method`.
        seed: for methods that draw.
        multiple: what the rows become a multiple of; None: as the source's are (`rows_for`).
        base_tokenizer: the source's tokenizer, where it is not in the source's directory.
    """

    method: str = DEFAULT
    output_method: str | None = None
    seed: int = 1234
    multiple: int | None = None
    base_tokenizer: Path | None = None

    @property
    def logits_method(self) -> str:
        """The method of rows that give logits."""
        return self.output_method or self.method


@dataclass(frozen=True)
class Result:
    """What was done: rows kept, new and behind those; parts a new token on average; each table's method and norms."""

    kept: int
    new: int
    padding: int
    parts: float
    unspelled: int
    fingerprint: str
    methods: Mapping[str, str]
    norms: Mapping[str, Norms]
    left_out: tuple[str, ...]


def rows_for(rows: int, base: int, new: int, multiple: int | None) -> int:
    """How many rows there will be; none is taken away.

    Args:
        rows: of the source.
        base: ids of its tokenizer.
        new: ids of the new tokenizer.
        multiple: what to pad to. None: nothing for a source without padding, else the largest power of two, up to 128,
            that its rows are a multiple of.
    """
    if multiple is None:
        multiple = 1 if rows == base else math.gcd(rows, PADDED)
    return -(-max(rows, new) // multiple) * multiple


def extend_embedding(
    source: Path, tokenizer: Path, output: Path, options: Options, progress: Callable[[str], None]
) -> Result:
    """Makes a Hugging Face directory whose embedding and output layer have rows for the new tokenizer's ids.

    Rows of the base's ids and all other tensors keep their bytes and dtypes. The tokenizer's files are the new one's,
    the other files the source's; of config.json only vocab_size changes. ``extension.json`` records what was done.

    Args:
        source: a directory with config.json and safetensors.
        tokenizer: the extended tokenizer.
        output: the directory to make; it is whole when it is there.
        options: how.
        progress: told of each file of weights.

    Raises:
        UserError: the tokenizer does not extend the source's, the two do not fit together, or the output cannot be
            written; nothing is left behind.
    """
    _check(options)
    if not (source / CONFIG).is_file():
        raise UserError(f"no {CONFIG}", where=str(source), expected="a Hugging Face model directory")
    config = read_json(source / CONFIG)
    base, new = _vocabularies(source, tokenizer, options)
    parts = find_parts(new, base)
    shards = [Shard.read(path) for path in HFWeights(source).files]
    tables = _plan(source, config, shards, parts, options)
    _check_special_ids(source, config, base, new)
    rows = next(iter(tables.values())).rows
    more = sum(one.num_bytes - one.table.rows * one.table.row_bytes for one in tables.values())
    size = more + sum(shard.path.stat().st_size for shard in shards)
    with resumable_directory(output, size, fingerprint=new.tokenizer.fingerprint) as result_directory:
        partial = result_directory.path
        left_out = _copy_other_files(source, shards, partial)
        _put_tokenizer(new, source, partial)
        (partial / CONFIG).write_text(_with_vocab_size(source / CONFIG, config, rows), encoding="utf-8")
        if (source / INDEX).is_file():
            write_json(partial / INDEX, _index(source / INDEX, more, tables.values()))
        result = Result(
            kept=base.size,
            new=parts.count,
            padding=rows - new.size,
            parts=len(parts.ids) / parts.count,
            unspelled=parts.unspelled,
            fingerprint=new.tokenizer.fingerprint,
            methods={name: one.method for name, one in tables.items()},
            norms=_write_weights(shards, tables, partial, progress),
            left_out=left_out,
        )
        _write_record(new.path, partial, result, options)
    return result


def _check(options: Options) -> None:
    for method in (options.method, options.logits_method):
        if method not in METHODS:
            close = nearest(method, METHODS)
            mend = f"did you mean {close}?" if close else ""
            raise UserError(f"no method {method!r}", expected=f"one of {', '.join(METHODS)}", mend=mend)
    if options.multiple is not None and options.multiple < 1:
        raise UserError(f"rows a multiple of {options.multiple}", expected="1 or more")
    if not 0 <= options.seed < 1 << 62:
        raise UserError(f"seed {options.seed}", expected="0 or more, and below 2**62")


def _vocabularies(source: Path, tokenizer: Path, options: Options) -> tuple[Vocabulary, Vocabulary]:
    if options.base_tokenizer is None and not holds_tokenizer(source):
        raise UserError("no tokenizer in it", where=str(source), mend="name the model's own: --base-tokenizer DIR")
    base, new = read_vocabulary(options.base_tokenizer or source), read_vocabulary(tokenizer)
    check_extends(new, base)
    return base, new


def _plan(
    source: Path, config: Mapping[str, Any], shards: list[Shard], parts: Parts, options: Options
) -> dict[str, Extended]:
    """What becomes of each tensor that has a row per id; config.json or its text_config says how many rows it has."""
    section = config if "vocab_size" in config else config.get("text_config", {})
    size = section.get("vocab_size")
    if not isinstance(size, int):
        raise UserError("no vocab_size", where=str(source / CONFIG), expected="the number of the embedding's rows")
    if parts.first > size:
        what = f"its tokenizer has {parts.first:,} ids and its embedding {size:,} rows: id {size} has none"
        raise UserError(what, where=str(source), mend="name the tokenizer that it was trained with: --base-tokenizer")
    rows = rows_for(size, parts.first, parts.first + parts.count, options.multiple)
    tied = {"tie_word_embeddings": config.get("tie_word_embeddings")}
    planned = {}
    for table in find_tables(shards, tied | dict(section), str(source)):
        method = options.logits_method if table.logits else options.method
        planned[table.stored.name] = Extended(table, parts, rows, method, options.seed)
    return planned


def _check_special_ids(source: Path, config: Mapping[str, Any], base: Vocabulary, new: Vocabulary) -> None:
    """No id that the model's settings name may become a new piece."""
    generation = read_json_if_any(source / GENERATION_CONFIG)
    for file, settings in ((CONFIG, config), (GENERATION_CONFIG, generation)):
        for key, value in settings.items():
            for id_ in value if isinstance(value, list) else [value]:
                if key.endswith("_token_id") and isinstance(id_, int) and id_ in new.tokens and id_ >= base.size:
                    what = f"{key} {id_} is no id of its tokenizer, and would become the new {new.tokens[id_]!r}"
                    raise UserError(what, where=str(source / file), expected=f"an id below {base.size}, or null")


def _copy_other_files(source: Path, shards: list[Shard], partial: Path) -> tuple[str, ...]:
    """Copies what is no tokenizer, no weights and not written anew; returns the weights that were left out."""
    written = {CONFIG, INDEX, *FILES, RECORD_FILE, *(shard.path.name for shard in shards)} - set(TEMPLATES)
    left_out = []
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.name in written:
            continue
        if OTHER_WEIGHTS & {Path(path.name.removesuffix(".index.json")).suffix}:
            left_out.append(path.name)
        else:
            shutil.copyfile(path, partial / path.name)
    return tuple(left_out)


def _put_tokenizer(new: Vocabulary, source: Path, partial: Path) -> None:
    """The new tokenizer's files; the source's chat template where the new one has none."""
    new.tokenizer.save_huggingface(partial)
    config = read_json_if_any(partial / TOKENIZER_CONFIG)
    own = [new.path / name for name in TEMPLATES if (new.path / name).is_file()]
    if own or "chat_template" in config:
        for name in TEMPLATES:
            (partial / name).unlink(missing_ok=True)
        for path in own:
            shutil.copyfile(path, partial / path.name)
        return
    carried = read_json_if_any(source / TOKENIZER_CONFIG)
    if "chat_template" in carried:
        config["chat_template"] = carried["chat_template"]
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (partial / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")


def _with_vocab_size(path: Path, config: Mapping[str, Any], rows: int) -> str:
    """The text of config.json with another vocab_size, and no other character changed."""
    text = path.read_text(encoding="utf-8")
    if "vocab_size" in config:
        wanted = {**config, "vocab_size": rows}
    else:
        wanted = {**config, "text_config": {**config["text_config"], "vocab_size": rows}}
    for place in re.finditer(r'("vocab_size"\s*:\s*)\d+', text):
        changed = f"{text[: place.start()]}{place[1]}{rows}{text[place.end() :]}"
        if json.loads(changed) == wanted:
            return changed
    raise UserError("vocab_size is there twice", where=str(path))


def _write_weights(
    shards: list[Shard], tables: Mapping[str, Extended], partial: Path, progress: Callable[[str], None]
) -> dict[str, Norms]:
    """Copies files without a table, and writes the others anew."""
    norms: dict[str, Norms] = {}
    for number, shard in enumerate(shards, start=1):
        changed = {tensor.name: tables[tensor.name] for tensor in shard.tensors if tensor.name in tables}
        progress(f"{number} of {len(shards)}: {shard.path.name}, {', '.join(changed) or 'copied'}")
        if changed:
            norms |= _rewrite(shard, changed, partial / shard.path.name)
        else:
            shutil.copyfile(shard.path, partial / shard.path.name)
    return norms


def _index(path: Path, more: int, tables: Iterable[Extended]) -> dict[str, Any]:
    """The index with the new totals; no tensor moves to another file."""
    index = read_json(path)
    metadata = dict(index.get("metadata") or {})
    grown = sum((one.rows - one.table.rows) * math.prod(one.table.stored.shape[1:]) for one in tables)
    for key, difference in (("total_size", more), ("total_parameters", grown)):
        if isinstance(metadata.get(key), int | float):
            metadata[key] = int(metadata[key]) + difference
    return {**index, "metadata": metadata}


def _rewrite(shard: Shard, tables: Mapping[str, Extended], target: Path) -> dict[str, Norms]:
    """Writes a shard with longer tables; the other tensors are copied as bytes."""
    # wide items first: every tensor then begins at a multiple of its item size
    ordered = sorted(shard.tensors, key=lambda tensor: -_item_size(tensor))
    header: dict[str, Any] = {} if shard.metadata is None else {"__metadata__": shard.metadata}
    offset = 0
    for tensor in ordered:
        longer = tables.get(tensor.name)
        shape = tensor.shape if longer is None else (longer.rows, *tensor.shape[1:])
        end = offset + (tensor.end - tensor.begin if longer is None else longer.num_bytes)
        header[tensor.name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": (offset, end)}
        offset = end
    norms = {}
    with shard.path.open("rb") as source, target.open("wb") as file:
        file.write(header_bytes(header))
        for tensor in ordered:
            if tensor.name in tables:
                norms[tensor.name] = tables[tensor.name].write(file)
            else:
                _copy(source, file, tensor)
    return norms


def _item_size(tensor: Stored) -> float:
    return (tensor.end - tensor.begin) / max(math.prod(tensor.shape), 1)


def _copy(source: BinaryIO, file: BinaryIO, tensor: Stored) -> None:
    source.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        block = source.read(min(left, _COPY_BYTES))
        if not block:
            raise UserError(f"{tensor.name} is cut short", where=source.name)
        file.write(block)
        left -= len(block)


def _write_record(tokenizer: Path, partial: Path, result: Result, options: Options) -> None:
    """extension.json: the tokenizer's own, with what became of the embedding."""
    directory = tokenizer if tokenizer.is_dir() else tokenizer.parent
    record = read_json_if_any(directory / RECORD_FILE)
    embedding = {
        "methods": dict(result.methods),
        "seed": options.seed,
        "kept": result.kept,
        "new": result.new,
        "padding": result.padding,
        "unspelled": result.unspelled,
        "norms": {name: asdict(norms) for name, norms in result.norms.items()},
    }
    text = json.dumps({**record, "base_vocab_size": result.kept, "embedding": embedding}, ensure_ascii=False, indent=2)
    (partial / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
