"""Writes docs/layouts.md from the rules and the configs that break them: `python tests/config/write_layouts.py`."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import broken_experts
import broken_layout
import broken_memory
import broken_network
import broken_optim
import broken_precision
import broken_run
from small_config import TEXT

from megatron_lm_zh.config.load import load_document, validated
from megatron_lm_zh.config.rules import RULES, TOPICS, broken_rules
from megatron_lm_zh.config.rules.rule import Rule
from megatron_lm_zh.config.schema import Config

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
TABLES = (
    broken_layout,
    broken_network,
    broken_experts,
    broken_memory,
    broken_precision,
    broken_optim,
    broken_run,
)
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [row for table in TABLES for row in table.BROKEN]

INTRODUCTION = """\
# Layouts, and the rules that hold them

`parallel` divides a model and its batch over ranks. `mlzh config show FILE --world N` checks a config for N ranks;
`pretrain` checks it before anything is built.

| key | what it divides | what must divide |
|---|---|---|
| `tensor` | each layer's matrices | heads, key/value heads, widths, the padded vocabulary |
| `sequence` | norms and dropout, along the sequence, over `tensor`'s ranks | `seq_length` by tensor x context |
| `context` | each sequence, attention included | `seq_length` by 2 x context |
| `pipeline` | the layers | `num_layers`, unless the stages are spelled out |
| `virtual_pipeline` | each rank's layers into chunks that take turns | the layers of a stage |
| `expert` | the experts, over ranks that data, context and tensor parallelism have | `num_moe_experts` |
| `expert_tensor` | each expert's matrices | `moe_ffn_hidden_size` |

What is left of the world is data parallelism: world / (tensor x context x pipeline) copies of the model, and
world / (expert x expert_tensor x pipeline) copies of the experts. Both must be whole numbers.

"""
EXAMPLES = """\
Each is broken by a config in `tests/config/broken_*.py`; what it then says is its example here. All that a config
breaks is reported together.
"""


def page() -> str:
    """The page's text."""
    count = f"There are {len(RULES)} rules, in {len(TOPICS)} files of `megatron_lm_zh/config/rules/`.\n"
    return INTRODUCTION + count + EXAMPLES + "".join(line for topic in TOPICS for line in _section(topic))


def _section(topic: str) -> Iterator[str]:
    rules = [rule for rule in RULES if rule.topic == topic]
    yield f"\n## {topic}.py\n\n{TOPICS[topic]}\n\n| rule | why | says, for example | reads |\n|---|---|---|---|\n"
    for rule in rules:
        keys = ", ".join(f"`{key}`" for key in rule.reads)
        yield f"| `{rule.name}` | {_cell(rule.reason)} | {_cell(_example(rule))} | {keys} |\n"


def _example(rule: Rule) -> str:
    """What the rule says of the first config that breaks it."""
    overrides, world = next((overrides, world) for name, overrides, world, _ in BROKEN if name == rule.name)
    return next(str(error) for broken, error in broken_rules(unchecked(overrides), world) if broken == rule)


def unchecked(overrides: tuple[str, ...]) -> Config:
    """The tests' small config with overrides; it may break rules, but not the schema."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(TEXT, encoding="utf-8")
        return load_document(path, overrides, functools.partial(validated, Config))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
