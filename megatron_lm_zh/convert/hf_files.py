"""Hugging Face's side: sharded safetensors, read tensor by tensor and planned file by file, and JSON files.

The format is https://github.com/huggingface/safetensors: 8 bytes with the header's length, the header as JSON, the
tensors' bytes; more than one file comes with an index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.convert.mapped import mapped
from megatron_lm_zh.convert.plan import Piece, Plan, PlannedFile, cut
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import read_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
_DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})


class HFWeights:
    """The tensors of a Hugging Face directory, read one at a time, by any number of threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.where = str(directory)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, by name."""
        return {name: spec for name, (_, _, spec) in self._places.items()}

    def read(self, name: str, part: int | None = None) -> Tensor:
        """The tensor `name`, or `part` of its first axis, as a view of the file."""
        path, offset, spec = self._places[name]
        try:
            tensor = mapped(path, offset, spec)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{name} is unreadable: {error}", where=str(path)) from error
        return tensor if part is None else tensor[part]

    @cached_property
    def files(self) -> list[Path]:
        """The files that the index names, or the only one."""
        index = self.directory / INDEX
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise UserError("no weight_map", where=str(index))
            files = [self.directory / name for name in sorted(set(weight_map.values()))]
        else:
            files = [self.directory / SINGLE]
        for file in files:
            if file.parent != self.directory or not file.is_file():
                raise UserError(f"no {file.name}", where=self.where, expected="weights in safetensors files")
        return files

    @cached_property
    def _places(self) -> Mapping[str, tuple[Path, int, TensorSpec]]:
        """The file of every tensor, where it begins in it, its shape and dtype."""
        found: dict[str, tuple[Path, int, TensorSpec]] = {}
        for path in self.files:
            for name, (offset, spec) in read_header(path).items():
                if name in found:
                    raise UserError(f"{name} is there twice", where=str(path))
                found[name] = (path, offset, spec)
        return found


def read_header(path: Path) -> dict[str, tuple[int, TensorSpec]]:
    """Where each tensor of a safetensors file begins, its shape and dtype; UserError where the file is not whole."""
    header, start = raw_header(path)
    try:
        return _tensors(header, start, path.stat().st_size)
    except (OSError, ValueError) as error:
        raise UserError(f"unreadable: {str(error)[:300]}", where=str(path)) from error


def raw_header(path: Path) -> tuple[Any, int]:
    """The JSON at the beginning of a safetensors file, and where the tensors begin; UserError where there is none."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"{size:,} bytes, and a header of {length:,}")
            return json.loads(file.read(length), object_pairs_hook=_once), 8 + length
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"unreadable: {str(error)[:300]}", where=str(path)) from error


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """What stands before the tensors in a safetensors file."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that has no key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in the header")
    return found


def _tensors(header: Any, start: int, size: int) -> dict[str, tuple[int, TensorSpec]]:
    """The header's entries; ValueError unless they fill the file, each with the bytes that its shape takes."""
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    found = {}
    bounds = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name[:200]!r} is no entry of a tensor")
        shape, dtype = entry["shape"], DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            raise ValueError(f"{name} is {str(entry['dtype'])[:50]}; expected one of {', '.join(DTYPES)}")
        if not _whole_numbers(shape) or not _whole_numbers(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
            raise ValueError(f"{name[:200]!r} has no shape or no offsets")
        begin, end = entry["data_offsets"]
        num_bytes = dtype.itemsize
        for axis in shape:
            num_bytes *= axis
        if end - begin != num_bytes:
            raise ValueError(f"{name[:200]!r} has {end - begin:,} bytes, its shape {num_bytes:,}")
        bounds.append((begin, end))
        found[name] = (start + begin, TensorSpec(tuple(shape), dtype))
    position = 0
    for begin, end in sorted(bounds):
        if begin != position:
            raise ValueError("the tensors do not follow one another")
        position = end
    if start + position != size:
        raise ValueError(f"{size:,} bytes, and {start + position:,} by its header")
    return found


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in value)


def plan_safetensors(specs: Mapping[str, TensorSpec], max_shard_bytes: int) -> Plan:
    """The files for some tensors, in their order; each file has at most `max_shard_bytes`, or one larger tensor."""
    shards = list(cut(specs, max_shard_bytes))
    files, pieces = [], []
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        # wide dtypes first: every tensor then begins at a multiple of its item size
        for name, spec in sorted(shard.items(), key=lambda item: -item[1].dtype.itemsize):
            end = offset + spec.num_bytes
            header[name] = {"dtype": _DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": (offset, end)}
            offset = end
        text = header_bytes(header)
        files.append(PlannedFile(file, len(text) + offset, text))
        for name, spec in shard.items():
            begin = len(text) + header[name]["data_offsets"][0]
            pieces.append(Piece(name, None, spec, file, begin, spec.num_bytes))
    return Plan(tuple(files), tuple(pieces), lambda spec, blocks: blocks)


def write_index(directory: Path, plan: Plan) -> None:
    """Writes the index of a plan of more than one file."""
    if len(plan.files) > 1:
        index = {
            "metadata": {"total_size": sum(piece.spec.num_bytes for piece in plan.pieces)},
            "weight_map": {piece.key: piece.file for piece in plan.pieces},
        }
        write_json(directory / INDEX, index)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object as Hugging Face does: two spaces, sorted keys, a final line break."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
