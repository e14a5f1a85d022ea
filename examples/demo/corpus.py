"""Writes the demo's corpus: bilingual facts, English and code of the Python standard library, and a user's own text."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import facts

FACTS = 50_000
VALID_FACTS = 1_500
HELD_OUT_PER_RELATION = 40
LEXICON_DOCUMENTS = 4_000
LEXICON_REPEATS = 200
LIBRARY_CHARACTERS = 900_000
DOCUMENT_CHARACTERS = 3_000
USER_CHARACTERS = 20_000_000
VALID_EVERY = 20
SEED = 20
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"}


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> int:
    """Writes one JSON object a line and returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def library_files(root: Path) -> list[Path]:
    """The standard library's Python files in a fixed order."""
    return sorted(path for path in root.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts))


def docstrings(source: str) -> Iterator[str]:
    """The cleaned docstrings of a module, its classes and functions that are at least 80 characters long."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node, clean=True) or ""
            if len(text) >= 80:
                yield text


def library_documents(root: Path, characters: int) -> Iterator[str]:
    """English (docstrings) and code (the source without them repeated) in equal parts, `characters` in all.

    Takes a piece of every file, in an order spread over the whole library, so that a small part of it stands for all.
    """
    seen: set[str] = set()
    budget = {"english": characters // 2, "code": characters // 2}
    files = library_files(root)
    for path in (files[i] for start in range(8) for i in range(start, len(files), 8)):
        source = path.read_text(encoding="utf-8", errors="ignore")
        try:
            pieces = [("english", text) for text in docstrings(source)]
        except SyntaxError:  # a template or a file of another Python version
            continue
        pieces.append(("code", inspect.cleandoc(source)[:DOCUMENT_CHARACTERS]))
        for kind, text in pieces:
            text = text[:DOCUMENT_CHARACTERS]
            if text and text not in seen and budget[kind] > 0:
                seen.add(text)
                budget[kind] -= len(text)
                yield text
        if max(budget.values()) <= 0:
            return


def user_documents(path: Path) -> Iterator[str]:
    """The `text` of a user's JSONL, up to USER_CHARACTERS."""
    left = USER_CHARACTERS
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise SystemExit(f'error: {path}:{number}: expected a JSON object with a "text" ({error!r})') from error
            left -= len(text)
            if left < 0:
                return
            yield text


def write_split(output: Path, name: str, documents: Iterable[str]) -> tuple[int, int]:
    """Every VALID_EVERY-th document to `NAME_valid.jsonl`, the others to `NAME.jsonl`."""
    texts = list(documents)
    train = write_jsonl(output / f"{name}.jsonl", ({"text": t} for i, t in enumerate(texts) if i % VALID_EVERY))
    valid = write_jsonl(
        output / f"{name}_valid.jsonl", ({"text": t} for i, t in enumerate(texts) if not i % VALID_EVERY)
    )
    return train, valid


def lexicon() -> list[str]:
    """What the tokenizer reads of the facts: each Chinese character and each English word by itself, many times.

    From the sentences themselves it would make pieces of whole wordings (等于几) and of runs of numerals (百四十).
    A small model learns faster where one character is one token.
    """
    words: set[str] = set()
    for _, statement in facts.documents(LEXICON_DOCUMENTS, SEED):
        words.update(re.findall(r"[^A-Za-z\s]| ?[A-Za-z]+", statement.text))
    return sorted(words) * LEXICON_REPEATS


def write_facts(output: Path) -> tuple[int, int]:
    """Training facts, validation text made of held-out facts alone, and the prompts that the trained model answers."""
    train = write_jsonl(output / "zh_facts.jsonl", ({"text": s.text} for _, s in facts.documents(FACTS, SEED)))
    kept_out = [{"text": s.text} for _, s in facts.held_out(VALID_FACTS // len(facts.RELATIONS), SEED)]
    valid = write_jsonl(output / "zh_facts_valid.jsonl", kept_out)
    write_jsonl(
        output / "held_out.jsonl",
        (
            {
                "prompt": s.prompt,
                "answer": s.answer,
                "relation": r.name,
                "kind": "memorised" if r.memorised else "derived",
            }
            for r, s in facts.held_out(HELD_OUT_PER_RELATION, SEED + 1)
        ),
    )
    (output / "lexicon.txt").write_text("".join(f"{word}\n" for word in lexicon()), encoding="utf-8")
    return train, valid


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the JSONL files are written")
    parser.add_argument(
        "--corpus", type=Path, metavar="USER.jsonl", help='further text to train on, {"text": ...} a line'
    )
    args = parser.parse_args()
    if args.corpus and not args.corpus.is_file():
        raise SystemExit(f"error: {args.corpus}: no such file")
    args.output.mkdir(parents=True, exist_ok=True)
    counts = {"zh_facts": write_facts(args.output)}
    root = Path(sysconfig.get_paths()["stdlib"])
    counts["en_code"] = write_split(args.output, "en_code", library_documents(root, LIBRARY_CHARACTERS))
    if args.corpus:
        counts["user"] = write_split(args.output, "user", user_documents(args.corpus))
    for name, (train, valid) in counts.items():
        characters = sum(
            len(json.loads(line)["text"]) for line in (args.output / f"{name}.jsonl").open(encoding="utf-8")
        )
        print(f"{name:<10}{train:>8,} documents, {characters:>10,} characters; {valid:,} more to validate on")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
