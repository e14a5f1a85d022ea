"""Says what a directory holds: which kind of model files, of which model, and what is wrong with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from megatron_lm_zh.config.schema import Model
from megatron_lm_zh.convert.engine import Conversion, Source, TensorSpec
from megatron_lm_zh.convert.hf_files import CONFIG, HFWeights
from megatron_lm_zh.convert.hf_source import open_hf
from megatron_lm_zh.convert.legacy.find import NOTHING_ASKED, Asked, Plain, find_plain
from megatron_lm_zh.convert.megatron_files import MODEL_FILE, MegatronWeights, find_checkpoint, is_weight
from megatron_lm_zh.convert.plan import natural
from megatron_lm_zh.convert.sizes import Sizes
from megatron_lm_zh.convert.to_hf import read_model
from megatron_lm_zh.convert.torch_dist import METADATA
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.families.registry import huggingface
from megatron_lm_zh.files import read_json
from megatron_lm_zh.run_directory import MANIFEST

_NO_PARTS: Mapping[str, int | None] = MappingProxyType({})
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


def inspect(path: Path, asked: Asked = NOTHING_ASKED, *, values: bool = False) -> Inspection:
    """Looks at a directory.

    Args:
        asked: what the user says of a checkpoint of Megatron-LM's own.
        values: read every weight, too, and look for NaN and infinity.

    Raises:
        UserError: there is nothing that this program knows.
    """
    is_hf = (path / CONFIG).is_file()
    plain = None if is_hf else find_plain(path)
    if plain is not None:
        return _inspect_plain(path, Plain(plain), asked, values)
    if asked != NOTHING_ASKED:
        raise UserError("it says itself what model it is", where=str(path), mend="leave the flags out")
    if is_hf:
        found = Inspection(str(path), "Hugging Face directory")
        _look(found, lambda: _inspect_hf(found, path, values))
        return found
    checkpoint = path if (path / METADATA).is_file() else find_checkpoint(path)
    if (checkpoint / MODEL_FILE).is_file():
        kind = "checkpoint of weights that from-hf made (torch_dist)"
    else:
        kind = "checkpoint of a run (torch_dist)"
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
    model, _ = read_model(checkpoint)
    _plan(found, _describe(found, model), source)
    if values and not found.problems:
        _check_values(found, source)


def _inspect_plain(path: Path, plain: Plain, asked: Asked, values: bool) -> Inspection:
    """Looks at a checkpoint of Megatron-LM's own."""
    found = Inspection(str(path), "checkpoint of Megatron-LM's own")
    _look(found, lambda: _inspect_files(found, plain))
    if plain.checkpoint != path:
        found.kind = f"save directory, whose newest checkpoint is {plain.checkpoint.name}: {found.kind}"
    if not found.problems:
        _look(found, lambda: _inspect_model(found, plain, asked, values))
    return found


def _inspect_files(found: Inspection, plain: Plain) -> None:
    """What its files are, and whether they are whole."""
    found.kind, found.step, found.has_optimizer = plain.kind, plain.step, plain.has_optimizer
    if not plain.is_legacy:
        _count(found, plain.stacked.specs)
        plain.stacked.check()


def _inspect_model(found: Inspection, plain: Plain, asked: Asked, values: bool) -> None:
    """The model, where something says it."""
    if not plain.says_its_model(asked):
        if values:
            _check_values(found, plain.stacked)
        return
    found.layout = dict(plain.layout)
    opened = plain.open(asked, any_family=True)
    _count(found, opened.source.specs)
    _describe(found, opened.model)
    found.family = " or ".join(opened.families)
    _plan(found, opened.conversion, opened.source)
    if values:
        _check_values(found, opened.source, {step.megatron: step.parts for step in opened.conversion.steps})


def _plan(found: Inspection, conversion: Conversion, source: Source) -> None:
    """Checks every tensor against the model and counts the numbers without padding."""
    planned = conversion.plan_to_hf(source)
    found.parameters = sum(math.prod(spec.shape) for spec in planned.values())


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


def _check_values(found: Inspection, source: Source, parts: Mapping[str, int | None] = _NO_PARTS) -> None:
    """Looks at every number, a few millions at a time; what has parts is read part by part."""
    for name in sorted(source.specs, key=natural):
        if not source.specs[name].dtype.is_floating_point:
            continue
        bad = 0
        count = parts.get(name)
        for part in (None,) if count is None else range(count):
            for block in source.read(name, part).reshape(-1).split(_BLOCK):
                bad += int((~torch.isfinite(block.float())).sum())
        if bad:
            found.problems.append(f"{name} has {bad:,} numbers that are NaN or infinite")
