"""What travels with a model and is copied as it is: the tokenizer's files, the generation config, remote code."""

from __future__ import annotations

import shutil
from pathlib import Path

from megatron_lm_zh.tokenizer.huggingface import FILES, TEMPLATES

_PATTERNS = (*FILES, "*.tiktoken", "chat_template.json", "generation_config.json", "*.py")


def copy_from_hf(hf_dir: Path, target: Path) -> None:
    """Copies what goes through unread to a directory `target`: tokenizer, chat templates, generation config, code."""
    present = [path for pattern in _PATTERNS for path in sorted(hf_dir.glob(pattern)) if path.is_file()]
    if present:
        target.mkdir(exist_ok=True)
        for path in present:
            shutil.copyfile(path, target / path.name)
        if (hf_dir / TEMPLATES).is_dir():
            shutil.copytree(hf_dir / TEMPLATES, target / TEMPLATES, dirs_exist_ok=True)


def copy_all(source: Path, target: Path) -> None:
    """Copies a directory that holds a tokenizer and nothing else into `target`."""
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
