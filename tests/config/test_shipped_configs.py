"""Every config in examples/configs loads and survives being resolved."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_lm_zh.config.load import load_config, to_yaml

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml"))


def test_the_tiny_config_is_shipped() -> None:
    assert "tiny.yaml" in [path.name for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_loads(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    smallest_world = config.smallest_world
    assert load_config(path, world=smallest_world) == config
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(resolved) == config


def test_the_tiny_config_needs_no_gpu() -> None:
    path = next(path for path in CONFIGS if path.name == "tiny.yaml")
    for overrides in (
        [],
        ["parallel.tensor=2", "parallel.pipeline=2"],
        ["parallel.tensor=2", "parallel.sequence=true"],
    ):
        config = load_config(path, overrides, world=4)
        assert config.precision.dtype == "fp32"
