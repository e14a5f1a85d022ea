"""The manifest that makes a checkpoint complete: its step, its layout, and a checksum of every file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.run_directory import MANIFEST

FORMAT_VERSION = 2
_READABLE = (1, 2)  # 1: one model chunk a rank, the optimizer's groups as megatron-core saves them
_BLOCK = 16 * 2**20


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Layout:
    """What each rank held when a checkpoint was written; where it is the same again, random generators are restored.

    Axes that a manifest does not name had no ranks: it is from before they were there.
    """

    world: int
    tensor: int
    pipeline: int
    sequence: bool
    virtual_pipeline: int = 1
    pipeline_model_parallel_layout: str | None = None
    num_layers_in_first_pipeline_stage: int | None = None
    num_layers_in_last_pipeline_stage: int | None = None
    account_for_embedding_in_pipeline_split: bool = False
    account_for_loss_in_pipeline_split: bool = False
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    order: str = "tp-cp-ep-dp-pp"
    num_distributed_optimizer_instances: int = 1

    @classmethod
    def of(cls, config: Config, world: int) -> Layout:
        """The layout of a config in a world of `world` ranks; the experts' axes are 1 in a model without experts."""
        here = {
            "world": world,
            "num_distributed_optimizer_instances": config.ddp.megatron.get("num_distributed_optimizer_instances", 1),
        }
        if config.model.num_moe_experts is None:
            here |= {"expert": 1, "expert_tensor": 1}
        names = [field.name for field in fields(cls) if field.name not in here]
        return cls(**here, **{name: getattr(config.parallel, name) for name in names})


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
    distrib_optim_sharding_type: str = "fully_reshardable"
    """How the distributed optimizer's state is cut; unless fully reshardable, only the same layout can read it."""
    skipped_steps: int = 0
    """Of the steps done, those whose update was skipped: the schedule has not counted them."""

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
    if manifest.format_version not in _READABLE:
        expected = f"version {' or '.join(map(str, _READABLE))}"
        raise UserError(f"format version {manifest.format_version}", where=str(path), expected=expected)
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
