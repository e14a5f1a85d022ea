"""Cuts plain text into documents of about 2,000 characters, at blank lines, and writes them shuffled as JSONL.

Usage: python benchmarks/text_to_jsonl.py TEXT [TEXT ...] OUT.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

CHARACTERS = 2000


def documents(text: str) -> Iterator[str]:
    """Whole paragraphs, gathered until there are enough characters."""
    gathered = ""
    for paragraph in re.split(r"\n\s*\n", text):
        gathered += paragraph + "\n\n"
        if len(gathered) > CHARACTERS:
            yield gathered.strip()
            gathered = ""
    if gathered.strip():
        yield gathered.strip()


def main() -> None:
    """Reads, cuts, shuffles (seed 0), writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    found = [document for path in args.text for document in documents(path.read_text(encoding="utf-8"))]
    random.Random(0).shuffle(found)  # the held-out end of the file then holds a bit of everything
    lines = [json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in found]
    args.output.write_text("".join(lines), encoding="utf-8")
    print(f"{args.output}: {len(found):,} documents")


if __name__ == "__main__":
    main()
