"""Says what a directory holds: which kind of model files, of which model, and what is wrong with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.engine import Conversion, Source, TensorSpec
from megatron_lm_zh.convert.hf_files import CONFIG, HFWeights
from megatron_lm_zh.convert.hf_source import open_hf
from megatron_lm_zh.convert.megatron_files import MODEL_FILE, MegatronWeights, find_checkpoint, is_weight
from megatron_lm_zh.convert.plan import natural
from megatron_lm_zh.convert.sizes import Sizes
from megatron_lm_zh.convert.to_hf import read_model
from megatron_lm_zh.convert.torch_dist import METADATA
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import huggingface
from megatron_lm_zh.files import read_json
from megatron_lm_zh.run_directory import MANIFEST

_BLOCK = 1 << 24
_PROBLEMS_SHOWN = 20


@dataclass
class Inspection:
    """What was found; fields that do not apply, or could not be read, are None."""

    path: str
    kind: str
    family: str | None = None
    layers: int | None = None
    parameters: int | None = None
    """Numbers of the model, without the rows that pad the vocabulary."""
    num_bytes: int = 0
    """Of the weights' numbers."""
    vocab_size: int | None = None
    padded_vocab_size: int | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    """Weight tensors of each dtype."""
    has_optimizer: bool = False
    step: int | None = None
    layout: dict[str, Any] | None = None
    """What saved it: ranks along each axis."""
    tensors: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self, *, tensors: bool) -> Iterator[str]:
        """What was found, in words."""
        yield f"{self.path}: {self.kind}"
        if self.vocab_size is not None:
            yield f"family {self.family}, {self.layers} layers, vocabulary {self._vocabulary()}"
        if self.parameters is not None:
            dtypes = ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
            yield f"{self.parameters:,} parameters, {self.num_bytes:,} bytes of weights; tensors: {dtypes}"
        if self.step is not None:
            optimizer = "with optimizer state" if self.has_optimizer else "without optimizer state"
            axes = {name: size for name, size in (self.layout or {}).items() if size not in (1, None, False, "")}
            layout = ", ".join(f"{name} {size}" for name, size in axes.items())
            yield f"step {self.step}, {optimizer}; saved by: {layout or 'one rank'}"
        if tensors:
            for tensor in self.tensors:
                yield f"  {tensor['key']}  {tensor['shape']}  {tensor['dtype']}"
        yield from (f"problem: {problem}" for problem in self.problems[:_PROBLEMS_SHOWN])
        if len(self.problems) > _PROBLEMS_SHOWN:
            yield f"and {len(self.problems) - _PROBLEMS_SHOWN} problems more"
        if not self.problems:
            yield "no problems found"

    def to_json(self) -> dict[str, Any]:
        """What was found, for programs."""
        return asdict(self)

    def _vocabulary(self) -> str:
        if self.padded_vocab_size is None or self.padded_vocab_size == self.vocab_size:
            return f"{self.vocab_size:,}"
        return f"{self.vocab_size:,} padded to {self.padded_vocab_size:,}"


def inspect(path: Path, *, values: bool = False) -> Inspection:
    """Looks at a directory.

    Args:
        values: read every weight, too, and look for NaN and infinity.

    Raises:
        UserError: there is nothing that this program knows.
    """
    if (path / CONFIG).is_file():
        found = Inspection(str(path), "Hugging Face directory")
        _look(found, lambda: _inspect_hf(found, path, values))
        return found
    checkpoint = find_checkpoint(path) if not (path / METADATA).is_file() else path
    if (checkpoint / MODEL_FILE).is_file():
        kind = "checkpoint of weights that from-hf made (torch_dist)"
    elif (checkpoint / MANIFEST).is_file():
        kind = "checkpoint of a run (torch_dist)"
    else:
        kind = "torch_dist files of another program"
    if checkpoint != path:
        kind = f"run directory, whose newest complete checkpoint is {checkpoint.name}: {kind}"
    found = Inspection(str(path), kind)
    _look(found, lambda: _inspect_checkpoint(found, checkpoint, values))
    return found


def _look(found: Inspection, act: Any) -> None:
    """Runs `act`; what it cannot read becomes a problem."""
    try:
        act()
    except UserError as error:
        found.problems.append(str(error))


def _inspect_hf(found: Inspection, path: Path, values: bool) -> None:
    found.family = str(read_json(path / CONFIG).get("model_type"))
    plain = HFWeights(path)
    _look(found, lambda: _count(found, plain.specs))
    _, model, source = open_hf(path)
    conversion = _describe(found, model)
    found.padded_vocab_size = None
    conversion.plan_to_megatron(source)
    if values:
        _check_values(found, plain)


def _inspect_checkpoint(found: Inspection, checkpoint: Path, values: bool) -> None:
    if (checkpoint / MANIFEST).is_file():
        manifest = read_json(checkpoint / MANIFEST)
        found.step, found.layout = manifest.get("step"), manifest.get("layout")
        _check_sizes(found, checkpoint, manifest.get("files"))
    source = MegatronWeights(checkpoint)
    found.has_optimizer = any(not is_weight(name) for name in source.metadata.state_dict_metadata)
    _count(found, source.specs)
    _look(found, source.check)
    if found.kind != "torch_dist files of another program":
        model, _ = read_model(checkpoint)
        planned = _describe(found, model).plan_to_hf(source)
        found.parameters = sum(math.prod(spec.shape) for spec in planned.values())
    if values and not found.problems:
        _check_values(found, source)


def _check_sizes(found: Inspection, checkpoint: Path, files: Any) -> None:
    """Compares the files with what the manifest says of them."""
    for name, record in (files if isinstance(files, dict) else {}).items():
        path, expected = checkpoint / name, record.get("bytes") if isinstance(record, dict) else None
        if not path.is_file():
            found.problems.append(f"{name} is missing")
        elif path.stat().st_size != expected:
            found.problems.append(f"{name} has {path.stat().st_size:,} bytes; expected {expected:,}")


def _describe(found: Inspection, model: Model) -> Conversion:
    assert model.vocab_size is not None
    found.family, found.layers, found.vocab_size = model.family, model.num_layers, model.vocab_size
    found.padded_vocab_size = Sizes(model, model.vocab_size).padded_vocab_size
    return Conversion.of(huggingface(model.family), model, model.vocab_size)


def _count(found: Inspection, specs: Mapping[str, TensorSpec]) -> None:
    found.parameters = sum(math.prod(spec.shape) for spec in specs.values())
    found.num_bytes = sum(spec.num_bytes for spec in specs.values())
    found.dtypes = dict(Counter(_name(spec.dtype) for spec in specs.values()).most_common())
    found.tensors = [
        {"key": name, "shape": list(specs[name].shape), "dtype": _name(specs[name].dtype)}
        for name in sorted(specs, key=natural)
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_values(found: Inspection, source: Source) -> None:
    """Looks at every number, a few millions at a time."""
    for name in sorted(source.specs, key=natural):
        if not source.specs[name].dtype.is_floating_point:
            continue
        bad = 0
        for block in source.read(name).reshape(-1).split(_BLOCK):
            bad += int((~torch.isfinite(block.float())).sum())
        if bad:
            found.problems.append(f"{name} has {bad:,} numbers that are NaN or infinite")
