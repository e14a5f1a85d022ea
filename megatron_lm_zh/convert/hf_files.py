"""Hugging Face's side: reads and writes sharded safetensors tensor by tensor, and config.json as nested keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import read_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000

_DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
)
DTYPES: Mapping[str, torch.dtype] = MappingProxyType({name: dtype for dtype, name in _DTYPE_NAMES.items()})


class HFWeights:
    """The tensors of a Hugging Face directory, read one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.where = str(directory)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, by name."""
        return {name: spec for name, (_, spec) in self._headers.items()}

    def read(self, name: str) -> Tensor:
        """The tensor `name`."""
        with _open(self._headers[name][0]) as file:
            return file.get_tensor(name)

    @cached_property
    def _headers(self) -> Mapping[str, tuple[Path, TensorSpec]]:
        """What the files' headers say of every tensor, and which file it is in."""
        found: dict[str, tuple[Path, TensorSpec]] = {}
        for path in self.files():
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    header = file.get_slice(name)
                    dtype = DTYPES.get(header.get_dtype())
                    if dtype is None:
                        raise UserError(f"{name} is {header.get_dtype()}", where=str(path), expected=", ".join(DTYPES))
                    if name in found:
                        raise UserError(f"{name} is there twice", where=str(path))
                    found[name] = (path, TensorSpec(tuple(header.get_shape()), dtype))
        return found

    def files(self) -> list[Path]:
        """The files that the index names, or the only one."""
        index = self.directory / INDEX
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError("no weight_map", where=str(index))
            files = [self.directory / name for name in sorted(set(weight_map.values()))]
        else:
            files = [self.directory / SINGLE]
        for file in files:
            if not file.is_file():
                raise UserError(f"no {file.name}", where=self.where, expected="weights in safetensors files")
        return files


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes go."""

    file: str
    offset: int
    spec: TensorSpec


class SafetensorsWriter(AbstractContextManager["SafetensorsWriter"]):
    """Writes planned tensors in any order, each straight to its place, so that only one is in memory.

    The files follow https://github.com/huggingface/safetensors: 8 bytes with the header's length, the header as JSON,
    the tensors' bytes; more than one file comes with an index.
    """

    def __init__(self, directory: Path, specs: Mapping[str, TensorSpec], max_shard_bytes: int) -> None:
        self._directory = directory
        self._places: dict[str, _Place] = {}
        self._missing = set(specs)
        shards = list(_shards(specs, max_shard_bytes))
        for number, shard in enumerate(shards, start=1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._write_header(name, shard)
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(spec.num_bytes for spec in specs.values())},
                "weight_map": {name: self._places[name].file for name in specs},
            }
            write_json(directory / INDEX, index)

    def _write_header(self, file_name: str, shard: Mapping[str, TensorSpec]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        # wide dtypes first: every tensor then begins at a multiple of its item size
        for name, spec in sorted(shard.items(), key=lambda item: -item[1].dtype.itemsize):
            end = offset + spec.num_bytes
            header[name] = {"dtype": _DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": (offset, end)}
            self._places[name] = _Place(file_name, offset, spec)
            offset = end
        content = header_bytes(header)
        for name in shard:
            place = self._places[name]
            self._places[name] = _Place(file_name, len(content) + place.offset, place.spec)
        with (self._directory / file_name).open("wb") as file:
            file.write(content)
            file.truncate(len(content) + offset)

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one planned tensor."""
        place = self._places[name]
        assert (tuple(tensor.shape), tensor.dtype) == (place.spec.shape, place.spec.dtype), f"{name} is not as planned"
        self._missing.remove(name)
        with (self._directory / place.file).open("r+b") as file:
            file.seek(place.offset)
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        assert kind is not None or not self._missing, f"never written: {sorted(self._missing)[:3]}"


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> Iterator[dict[str, TensorSpec]]:
    """Cuts the tensors, in order, into runs of at most `max_bytes` (a larger tensor has a file of its own)."""
    shard: dict[str, TensorSpec] = {}
    size = 0
    for name, spec in specs.items():
        if shard and size + spec.num_bytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = spec
        size += spec.num_bytes
    yield shard


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """What stands before the tensors in a safetensors file."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, of any dtypes, and where its data begin; UserError where it is no such file."""
    with _open(path), path.open("rb") as file:  # the library checks header, offsets and the file's length
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"unreadable: {error}", where=str(path)) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object as Hugging Face does: two spaces, sorted keys, a final line break."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
