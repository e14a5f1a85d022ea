"""The manifest that makes a checkpoint complete: its step, its layout, and a checksum of every file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.run_directory import MANIFEST

FORMAT_VERSION = 1
_BLOCK = 16 * 2**20


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Layout:
    """The ranks that wrote a checkpoint; where it is the same again, random generators are restored, too."""

    world: int
    tensor: int
    pipeline: int
    sequence: bool


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    format_version: int
    step: int
    """Optimizer steps done."""
    consumed_samples: int
    """Sequences trained on: the data position."""
    layout: Layout
    files: dict[str, FileRecord]

    def write(self, checkpoint: Path) -> None:
        """Writes the manifest, atomically: from this moment on the checkpoint is complete."""
        content = json.dumps(asdict(self), indent=1) + "\n"
        write_bytes(checkpoint / MANIFEST, content.encode())


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        UserError: it is missing or not a manifest.
    """
    path = checkpoint / MANIFEST
    try:
        manifest = TypeAdapter(Manifest).validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=str(path)) from error
    except ValidationError as error:
        raise UserError("not a checkpoint manifest", where=str(path)) from error
    if manifest.format_version != FORMAT_VERSION:
        raise UserError(
            f"format version {manifest.format_version}", where=str(path), expected=f"version {FORMAT_VERSION}"
        )
    return manifest


def record(path: Path) -> FileRecord:
    """Size and checksum of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileRecord(size, digest.hexdigest())


def problem_with(checkpoint: Path, name: str, expected: FileRecord) -> str | None:
    """What is wrong with one file of a checkpoint, or None."""
    path = checkpoint / name
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != expected.bytes:
        return f"{name} has {size} bytes, expected {expected.bytes}"
    try:
        found = record(path)
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None if found.sha256 == expected.sha256 else f"{name} has another checksum than when it was written"
