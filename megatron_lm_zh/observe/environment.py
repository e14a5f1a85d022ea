"""environment.json: which software, code and data a run was started with."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import megatron_lm_zh

PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "apex",
    "triton",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
    "numpy",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "pydantic",
    "mpi4py",
)
_GIT_TIMEOUT_S = 30


def environment(*, argv: Sequence[str], data: Any, tokenizer: Any) -> dict[str, Any]:
    """What environment.json holds.

    Args:
        argv: the command line that started the run.
        data: fingerprints of the datasets, as JSON can hold them.
        tokenizer: fingerprint of the tokenizer, likewise.

    Returns:
        ``time`` (UTC), ``argv``, ``python``, ``platform``, ``packages`` (name to version, None where not installed),
        ``megatron_lm_zh`` (version), ``git`` (commit and dirty flag; None when the package is no checkout), ``data``,
        ``tokenizer``.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "megatron_lm_zh": megatron_lm_zh.__version__,
        "packages": versions(PACKAGES),
        "git": git_state(Path(megatron_lm_zh.__file__).resolve().parent),
        "data": data,
        "tokenizer": tokenizer,
    }


def versions(packages: Sequence[str]) -> Mapping[str, str | None]:
    """Installed version of each package, None where there is none; imports nothing."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_state(package: Path) -> dict[str, Any] | None:
    """Commit of the checkout whose top holds ``package``, and whether the package differs from it; None without one.

    A package installed into a virtual environment inside some other repository is not that repository's code, so the
    top of the checkout must be the package's own parent.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != package.parent:
        return None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):  # no git here, or a shared filesystem that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None
