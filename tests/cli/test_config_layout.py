"""`mlzh config layout`: the picture of a layout, without a cluster and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lm_zh.cli.main import main_for_arguments

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "examples" / "configs" / "13b.yaml")


def test_it_draws_the_layout(capsys: pytest.CaptureFixture[str]) -> None:
    code = main_for_arguments(
        ["config", "layout", CONFIG, "parallel.tensor=4", "--world", "16", "--gpus-per-node", "4"]
    )
    assert code == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "16 ranks on 4 nodes: tensor 4 x data 2 x pipeline 2, sequence parallel"
    assert "0      embedding, layers 0-19  0-3 @ node 0   4-7 @ node 1" in lines[1]


def test_the_docs_show_what_it_draws(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_for_arguments(["config", "layout", CONFIG, "--world", "1024"]) == 0
    assert f"--gpus-per-node 8\n{capsys.readouterr().out}```" in (ROOT / "docs" / "cluster.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--world", "30"], "does not divide 30 ranks"),
        (["--world", "0"], "--world 0"),
        (["--world", "8", "--gpus-per-node", "0"], "--gpus-per-node 0"),
    ],
)
def test_it_refuses_what_cannot_be(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_for_arguments(["config", "layout", CONFIG, *options]) == 2
    assert said in capsys.readouterr().err


def test_it_loads_neither_torch_nor_megatron() -> None:
    code = (
        "import sys\nfrom megatron_lm_zh.cli.main import main_for_arguments as run\n"
        f"run(['config', 'layout', {CONFIG!r}, '--world', '1024'])\n"
        "assert not {'torch', 'megatron.core', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
