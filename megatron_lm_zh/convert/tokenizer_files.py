"""What travels with a model and is copied as it is: the tokenizer's files, the generation config, remote code."""

from __future__ import annotations

import shutil
from pathlib import Path

_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def copy_from_hf(hf_dir: Path, target: Path) -> None:
    """Copies what goes through unread to a new directory `target`: tokenizer, generation config, remote code."""
    present = [hf_dir / name for name in _NAMES if (hf_dir / name).is_file()] + sorted(hf_dir.glob("*.py"))
    if present:
        target.mkdir(exist_ok=True)
        for path in present:
            shutil.copyfile(path, target / path.name)


def copy_all(source: Path, target: Path) -> None:
    """Copies every file of a directory that holds a tokenizer and nothing else."""
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
