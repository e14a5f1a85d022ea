"""Probing of optional packages: what counts as found, and what only bears the name."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lm_zh import compat


def _named(name: str) -> compat.Package:
    return next(package for package in compat.packages() if package.name == name)


def _module(root: Path, *files: str) -> None:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def test_required_packages_are_found_here() -> None:
    required = [package for package in compat.packages() if package.required]
    assert {"torch", "megatron-core", "numpy", "sentencepiece"} <= {package.name for package in required}
    assert all(package.found for package in required)
    # The extension's version is pybind11's, which need not be installed beside what it has built.
    assert all(package.version for package in required if package.name != "pybind11 extension")
    assert compat.megatron_core_version() >= (0, 16, 1)
    directory = compat.megatron_core_directory()
    assert directory is not None
    assert (directory / "transformer" / "transformer_config.py").exists()


def test_probing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from megatron_lm_zh import compat; compat.packages(); compat.megatron_core_directory();"
        "print([m for m in ('torch', 'megatron.core', 'transformers', 'numpy', 'mpi4py', 'wandb') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_apex_of_another_project_is_not_apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, "apex/__init__.py", "apex/lib/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert not compat.has_apex()
    assert "another project's, not NVIDIA's" in _named("apex (NVIDIA)").get


def test_apex_needs_its_cuda_extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, "apex/__init__.py", "apex/optimizers/__init__.py", "apex/multi_tensor_apply/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert not compat.has_apex()
    assert "without its CUDA extensions" in _named("apex (NVIDIA)").get
    _module(tmp_path, "amp_C.py")
    importlib.invalidate_caches()
    assert compat.has_apex()
    assert _named("apex (NVIDIA)").found


@pytest.mark.parametrize("folder", ["transformer_engine", "transformer_engine/wheel_lib", "."])
def test_transformer_engine_needs_its_pytorch_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    _module(tmp_path, "transformer_engine/__init__.py", "transformer_engine/pytorch/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert not compat.has_transformer_engine()
    assert "without its PyTorch extension" in _named("transformer-engine").get
    _module(tmp_path, f"{folder}/transformer_engine_torch.cpython-311.so")
    assert compat.has_transformer_engine()
