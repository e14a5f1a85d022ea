"""Loading a recipe: YAML and overrides in, one frozen Recipe out, or every mistake at once, each in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from megatron_lm_zh.config.document import Document, KeyPath, dotted
from megatron_lm_zh.config.load import Checked, load_document, validated
from megatron_lm_zh.data.clean.recipe import Recipe
from megatron_lm_zh.data.clean.steps import BannedWords, Extract, Language
from megatron_lm_zh.errors import UserError


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: YAML file.
        overrides: `a.b.c=value`, applied in order after the file; steps by their index, e.g. `stages.0.threshold=0.5`.

    Raises:
        UserErrors: every unknown key, wrong type and step that cannot work where it stands.
    """
    return load_document(path, overrides, _check)


def from_json(text: str) -> Recipe:
    """The recipe of a JSON text.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return TypeAdapter(Recipe).validate_json(text)


def to_json(recipe: Recipe) -> str:
    """The recipe as JSON, every default written out; `from_json` reads it back to an equal Recipe."""
    values: dict[str, Any] = dataclasses.asdict(recipe)
    return json.dumps(values, ensure_ascii=False, indent=2)


def _check(document: Document) -> Checked[Recipe]:
    recipe, problems = validated(Recipe, document)
    return recipe, problems if recipe is None else _misplaced(recipe, document)


def _misplaced(recipe: Recipe, document: Document) -> dict[KeyPath, UserError]:
    """What each step or section by itself is right about, but not beside the others."""
    problems: dict[KeyPath, UserError] = {}

    def add(path: KeyPath, what: str, expected: str) -> None:
        problems[path] = UserError(f"{dotted(path)}: {what}", where=document.place(path), expected=expected)

    extracts = any(isinstance(step, Extract) for step in recipe.stages)
    if recipe.input.format == "warc" and not extracts:
        add(("stages",), "no step extracts the text of the HTML pages", "a step `kind: extract`")
    if recipe.input.format == "wet" and extracts:
        add(("stages",), "extract reads HTML and WET files hold text", "no step `kind: extract`")
    noted: tuple[str, ...] = ()
    for index, step in enumerate(recipe.stages):
        only = getattr(step, "only", None)
        if only is not None and only not in noted:
            known = f"one of {', '.join(noted)}" if noted else "a step `kind: language` before it"
            add(("stages", index, "only"), f"no step before it notes the language {only}", known)
        if isinstance(step, Language):
            noted = (*noted, *step.languages)
            if step.model is not None and not Path(step.model).is_file():
                add(("stages", index, "model"), f"no file {step.model}", "a fastText model, e.g. lid.176.bin")
        if isinstance(step, BannedWords) and not Path(step.file).is_file():
            add(("stages", index, "file"), f"no file {step.file}", "a UTF-8 file, a word a line")
    if Path(recipe.output.dir).resolve() == Path(recipe.run.dir).resolve():
        add(("output", "dir"), "is the run's directory, too", "a directory of its own")
    return problems
