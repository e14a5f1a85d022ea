"""A small valid config for the tests of the config room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_config import TEXT

from megatron_lm_zh.errors import UserErrors


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a config file and returns its path."""

    def write_text(text: str = TEXT) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


@pytest.fixture
def complaints(write: Callable[[str], Path]) -> Callable[..., list[str]]:
    """What `load_config` says, a line an error, with the file's folder cut off; [] where it loads."""
    from megatron_lm_zh.config.load import load_config

    def load(text: str = TEXT, overrides: tuple[str, ...] = (), world: int | None = None) -> list[str]:
        path = write(text)
        try:
            load_config(path, overrides, world=world)
        except UserErrors as errors:
            return str(errors).replace(f"{path.parent}/", "").splitlines()
        return []

    return load
