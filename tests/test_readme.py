"""The commands of the README do what it says, run in its order in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.tiny import documents, tiny_config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def block(heading: str) -> list[str]:
    """The lines of the first bash block under a heading, continuation lines joined, comments dropped."""
    section = README.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    match = re.search(r"```bash\n(.*?)```", section, flags=re.S)
    assert match, heading
    joined = match.group(1).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip()]


@pytest.mark.dist
def test_your_own_run(tmp_path: Path) -> None:
    setup, *commands = block("Your own run")
    assert setup == "make install && source .venv/bin/activate"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents(400, seed=7)]
    (tmp_path / "my.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    config = tiny_config(tmp_path / "data", Path("runs/my"))
    config["data"]["tokenizer"]["path"] = "data/tokenizer"
    config["data"]["train"] = [{"path": "data/my_text_document"}]
    config["train"]["steps"] = 6
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    environ = dict(os.environ) | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        small = command.replace("--vocab-size 8000", "--vocab-size 400")  # what this little text can give
        done = subprocess.run(small, shell=True, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs/my/DONE").is_file()
    assert (tmp_path / "hf/my/model.safetensors").is_file()


def test_the_mistake_it_shows_is_answered_as_shown() -> None:
    text = README.read_text(encoding="utf-8")
    match = re.search(r"\$ (mlzh config show .*)\n(error: .*?); \.\.\.\n", text)
    assert match
    command, shown = match.groups()
    words = command.split()[1:]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_lm_zh", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert any(line.startswith(shown) for line in done.stderr.splitlines()), done.stderr


def test_every_command_is_listed() -> None:
    from megatron_lm_zh.cli.main import COMMANDS

    text = README.read_text(encoding="utf-8")
    assert all(f"`mlzh {name}" in text for name in COMMANDS)


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md", "docs/README.md"])
def test_links_lead_somewhere(readme: str) -> None:
    path = ROOT / readme
    targets = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        assert target.startswith("http") or (path.parent / target).exists(), target
