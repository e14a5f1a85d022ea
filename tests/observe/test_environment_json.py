"""environment.json: true versions, the right repository's commit, and a file that is whole or absent."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from megatron_lm_zh.observe.environment import environment, git_state, versions


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "repo" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-qm", "first")
    return package


def test_environment_holds_what_a_run_was_started_with():
    found = environment(argv=["mlzh", "pretrain"], data=[{"path": "zh"}], tokenizer={"sha256": "ab"})
    assert found["argv"] == ["mlzh", "pretrain"]
    assert found["data"] == [{"path": "zh"}]
    assert found["tokenizer"] == {"sha256": "ab"}
    assert found["packages"]["megatron-core"] == metadata.version("megatron-core")
    assert {"time", "python", "platform", "megatron_lm_zh", "git"} <= found.keys()
    json.dumps(found)


def test_a_package_that_is_not_there_has_no_version():
    assert versions(["numpy", "no-such-package-here"]) == {
        "numpy": metadata.version("numpy"), "no-such-package-here": None,
    }  # fmt: skip


def test_commit_and_dirty_flag(checkout: Path):
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout.parent / "notes.txt").write_text("not the package")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "new.py").write_text("y = 2\n")
    assert git_state(checkout) == {"commit": commit, "dirty": True}


def test_a_package_installed_inside_another_repository_has_no_commit(checkout: Path):
    installed = checkout.parent / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    assert git_state(installed) is None


def test_neither_a_plain_folder_nor_a_machine_without_git_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "package").mkdir()
    assert git_state(tmp_path / "package") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path / "package") is None
