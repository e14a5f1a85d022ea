"""`mlzh config` and `mlzh doctor` as a user types them: output, exit codes, and what they leave unimported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "configs" / "tiny.yaml"


def _mlzh(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_lm_zh", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_show_prints_the_resolved_config() -> None:
    shown = _mlzh("config", "show", str(TINY), "optim.lr=3e-4", "parallel.tensor=2", "--world", "4")
    assert (shown.returncode, shown.stderr) == (0, "")
    values = yaml.safe_load(shown.stdout)
    assert values["optim"]["lr"] == 3e-4
    assert values["model"]["kv_channels"] == 16


def test_mistakes_are_lines_and_exit_code_2() -> None:
    shown = _mlzh("config", "show", str(TINY), "model.num_layer=3", "parallel.tensor=3", "--world", "4")
    assert shown.returncode == 2
    assert shown.stdout == ""
    lines = shown.stderr.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("error: override ") for line in lines)


def test_explain_prints_a_key() -> None:
    explained = _mlzh("config", "explain", "optim.lr")
    assert explained.returncode == 0
    assert explained.stdout.startswith("optim.lr: number > 0\n")
    unknown = _mlzh("config", "explain", "optim.lrr")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "error: optim.lrr: no such key; did you mean optim.lr?\n"


def test_doctor_names_every_package() -> None:
    report = _mlzh("doctor")
    assert report.returncode == 0, report.stdout
    for name in ("torch", "megatron-core", "apex", "transformer-engine", "NCCL", "sentencepiece", "numpy", "mpi4py"):
        assert name in report.stdout
    assert "pybind11" in report.stdout
    assert "kernels: " in report.stdout
    assert max(map(len, report.stdout.splitlines())) < 200


def test_doctor_exits_1_where_a_needed_package_is_missing(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    import argparse

    from megatron_lm_zh import compat
    from megatron_lm_zh.cli import doctor

    missing = compat.Package("torch", False, None, "tensors", "pip install torch", required=True)
    monkeypatch.setattr(compat, "packages", lambda: [missing])
    assert doctor.run(argparse.Namespace()) == 1
    assert "needed for training and missing: torch" in capsys.readouterr().out


def test_exit_codes_are_documented() -> None:
    from megatron_lm_zh import errors
    from megatron_lm_zh.cli import doctor

    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    codes = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    for code in [*codes, doctor.EXIT_MISSING]:
        assert f"\n| {code} | " in page
