"""What cannot be converted is refused in one line that names it, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_hf, mlzh, read_json
from safetensors.torch import load_file, save_file

from megatron_lm_zh.convert import streaming
from megatron_lm_zh.convert.engine import Conversion, TensorSpec
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.megatron_files import MegatronWeights
from megatron_lm_zh.convert.plan import Job
from megatron_lm_zh.convert.streaming import write_pieces
from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.convert.torch_dist import MAX_FILE_BYTES, plan_torch_dist, write_index
from megatron_lm_zh.errors import UserError


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A Hugging Face directory."""
    return make_hf(tmp_path / "hf")


@pytest.fixture
def checkpoint(hf: Path, tmp_path: Path) -> Path:
    """The same model as a megatron checkpoint."""
    from_hf(hf, tmp_path / "megatron")
    return tmp_path / "megatron"


def refused(convert: Callable[[Path, Path], None], source: Path, output: Path) -> str:
    """The one line with which a conversion is refused; checks that no output and no debris is there."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as caught:
        convert(source, output)
    assert sorted(output.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Writes the checkpoint's weights again after a change to them."""
    source = MegatronWeights(checkpoint)
    tensors = {name: source.read(name) for name in source.specs}
    change(tensors)
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    for path in (*checkpoint.glob("*.distcp"), checkpoint / ".metadata"):
        path.unlink()
    plan = plan_torch_dist(specs, set(), MAX_FILE_BYTES)
    jobs = [Job((piece,), 0, lambda name=piece.key: [(tensors[name],)]) for piece in plan.pieces]
    write_pieces(checkpoint, plan, jobs)
    write_index(checkpoint, plan, specs)


FC2 = "decoder.layers.1.mlp.linear_fc2.weight"
CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], list[str]]] = {
    "missing": (lambda tensors: tensors.pop(FC2), ["no tensor " + FC2]),
    "unknown": (lambda tensors: tensors.update({"decoder.extra": torch.ones(1)}), ["decoder.extra", "no place"]),
    "renamed": (lambda tensors: tensors.update({FC2 + "s": tensors.pop(FC2)}), [FC2, f"there is {FC2}s"]),
    "shape": (lambda tensors: tensors.update({FC2: torch.ones(48, 81)}), [FC2, "[48, 81]", "[48, 80]"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_tensor_is_named(checkpoint: Path, tmp_path: Path, change: str) -> None:
    function, words = CHANGES[change]
    rewrite(checkpoint, function)
    message = refused(to_hf, checkpoint, tmp_path / "out")
    assert all(word in message for word in words), message


def test_optimizer_state_is_passed_over(checkpoint: Path, tmp_path: Path) -> None:
    states = {f"{prefix}state.exp_avg.{FC2}": torch.ones(48, 80) for prefix in ("optimizer.", "chained_0.optimizer.")}
    rewrite(checkpoint, lambda tensors: tensors.update(states))
    to_hf(checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_truncated_file(checkpoint: Path, tmp_path: Path) -> None:
    path = next(checkpoint.glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cut short" in refused(to_hf, checkpoint, tmp_path / "out")


def test_a_missing_file(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "__0_0.distcp").unlink()
    assert "__0_0.distcp is missing" in refused(to_hf, checkpoint, tmp_path / "out")


def test_a_damaged_file(checkpoint: Path, tmp_path: Path) -> None:
    path = next(checkpoint.glob("*.distcp"))
    path.write_bytes(bytes(path.stat().st_size))
    assert "is unreadable" in refused(to_hf, checkpoint, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1})], ids=["empty", "text", "dict"])
def test_an_unreadable_index(checkpoint: Path, tmp_path: Path, content: bytes) -> None:
    (checkpoint / ".metadata").write_bytes(content)
    assert "unreadable" in refused(to_hf, checkpoint, tmp_path / "out")


def test_a_truncated_index(checkpoint: Path, tmp_path: Path) -> None:
    whole = (checkpoint / ".metadata").read_bytes()
    for length in range(1, len(whole), len(whole) // 40):
        (checkpoint / ".metadata").write_bytes(whole[:length])
        assert "unreadable" in refused(to_hf, checkpoint, tmp_path / "out")


class Attack:
    """Pickles as a call of Path.touch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_an_index_runs_no_code(checkpoint: Path, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Attack(harm)))
    assert "has no place in a checkpoint's index" in refused(to_hf, checkpoint, tmp_path / "out")
    assert not harm.exists()


def test_an_index_points_nowhere_else(checkpoint: Path, tmp_path: Path) -> None:
    metadata = MegatronWeights(checkpoint).metadata
    for stored in metadata.storage_data.values():
        shutil.copy(checkpoint / stored.relative_path, tmp_path)
        stored.relative_path = f"../{stored.relative_path}"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "is missing" in refused(to_hf, checkpoint, tmp_path / "out")


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such directory" in refused(to_hf, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "run" / "checkpoints" / "iter_0000010").mkdir(parents=True)
    assert "no complete checkpoint" in refused(to_hf, tmp_path / "run", tmp_path / "out")
    assert "no config.json" in refused(from_hf, tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize("convert", [to_hf, from_hf])
def test_an_output_is_never_overwritten(checkpoint: Path, hf: Path, tmp_path: Path, convert: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    source = checkpoint if convert is to_hf else hf
    assert "exists already" in refused(convert, source, tmp_path / "out")
    (tmp_path / "out" / "mine").unlink()
    convert(source, tmp_path / "out")  # an empty directory may become the result
    assert any((tmp_path / "out").iterdir())


def test_a_full_disk_is_seen_first(checkpoint: Path, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert "do not fit" in refused(to_hf, checkpoint, tmp_path / "out")
    assert "do not fit" in refused(from_hf, hf, tmp_path / "out")


def test_a_disk_that_fills_up(checkpoint: Path, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(streaming.os, "pwrite", full)
        assert "No space left" in refused(to_hf, checkpoint, tmp_path / "out")
    monkeypatch.setattr(Conversion, "blocks", full)
    assert "No space left" in refused(from_hf, hf, tmp_path / "out")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"model_type": "gpt_neox"}, "gpt_neox"),
    "rope scaling": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    "rope type": ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope scaling of kind 'dynamic'"),
    "two thetas": ({"rope_theta": 5.0}, "rope_theta and rope_parameters.rope_theta differ"),
    "odd theta": ({"rope_parameters": {"rope_theta": 10000.5}}, "rope_theta"),
    "bias": ({"attention_bias": True}, "attention_bias"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "no layers": ({"num_hidden_layers": None}, "num_hidden_layers"),
    "negative": ({"num_hidden_layers": -1}, "num_layers"),
    "groups": ({"num_key_value_heads": 4}, "num_key_value_heads"),
    "more layers": ({"num_hidden_layers": 4}, "no tensor model.layers.3"),
    "tied": ({"tie_word_embeddings": True}, "lm_head.weight"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_convert(hf: Path, tmp_path: Path, name: str) -> None:
    change, word = CONFIGS[name]
    path = hf / "config.json"
    path.write_text(json.dumps(read_json(path) | change))
    assert word in refused(from_hf, hf, tmp_path / "out")


def test_damaged_hf_files(hf: Path, tmp_path: Path) -> None:
    weights = hf / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:4], whole[:100], whole[:-10], b"\xff" * 16 + whole[16:]):
        weights.write_bytes(content)
        assert "unreadable" in refused(from_hf, hf, tmp_path / "out")
    weights.unlink()
    assert "no model.safetensors" in refused(from_hf, hf, tmp_path / "out")
    (hf / "config.json").write_text("{")
    assert "config.json" in refused(from_hf, hf, tmp_path / "out")


def test_mixed_dtypes_in_one_tensor(hf: Path, tmp_path: Path) -> None:
    tensors = load_file(hf / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors[name] = tensors[name].bfloat16()
    save_file(tensors, hf / "model.safetensors")
    assert name in refused(from_hf, hf, tmp_path / "out")


def test_old_rotary_buffers_are_left_out(hf: Path, tmp_path: Path) -> None:
    tensors = load_file(hf / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, hf / "model.safetensors")
    from_hf(hf, tmp_path / "out")
    assert not any("rotary" in name for name in MegatronWeights(tmp_path / "out").specs)


def test_the_command_line_says_one_line(tmp_path: Path) -> None:
    done = mlzh("convert", "to-hf", tmp_path / "nowhere", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    done = mlzh("generate", tmp_path, "text")
    assert done.returncode == 2
    assert "no config.json" in done.stderr and done.stderr.count("\n") == 1
