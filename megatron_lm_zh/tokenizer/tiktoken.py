"""Vocabularies in tiktoken's format (Qwen 1, Llama 3, OpenAI) as byte-level BPEs of the `tokenizers` library.

Such a file holds a token in base64 and its rank on each line, and nothing else: no merges, no pattern that cuts text,
no special tokens. The merges follow from the ranks; the rest comes from a preset.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.normalizers
import tokenizers.pre_tokenizers

from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.tokenizer import _bpe
from megatron_lm_zh.tokenizer.byte_level import byte_alphabet

SUFFIX = ".tiktoken"
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CL100K = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTIONS + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTIONS + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Preset:
    """What a tiktoken file does not say.

    Attributes:
        pattern: the regular expression whose matches are the chunks of a text.
        special: special tokens and their ids; the first ends a document.
        ranks: tokens of the file that is known to go with it; 0 where another preset stands for that file.
        normalizer: what text goes through first: NFC or nothing.
    """

    pattern: str
    special: dict[str, int]
    ranks: int
    normalizer: str = ""


def _numbered(first: int, *names: str) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names)}


def _llama3(*named: tuple[int, str]) -> dict[str, int]:
    """256 special tokens, all of them reserved but those named; the end of a text comes first."""
    names = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
    names |= {9: "<|eot_id|>"} | dict(named)
    free = (f"<|reserved_special_token_{i}|>" for i in range(256))
    tokens = {names[i] if i in names else next(free): 128_000 + i for i in range(256)}
    return {"<|end_of_text|>": tokens.pop("<|end_of_text|>"), **tokens}


PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "qwen": Preset(
            _CL100K.replace("{1,3}", ""),
            _numbered(151_643, "<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
            151_643,
            "NFC",
        ),
        "llama3": Preset(_CL100K, _llama3(), 128_000),
        "llama3.1": Preset(
            _CL100K, _llama3((4, "<|finetune_right_pad_id|>"), (8, "<|eom_id|>"), (10, "<|python_tag|>")), 0
        ),
        "gpt2": Preset(
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            {"<|endoftext|>": 50_256},
            50_256,
        ),
        "cl100k": Preset(
            _CL100K.replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+"),  # as tiktoken has it since 0.8
            {
                **_numbered(100_257, "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
                "<|endofprompt|>": 100_276,
            },
            100_256,
        ),
        "o200k": Preset(_O200K, {"<|endoftext|>": 199_999, "<|endofprompt|>": 200_018}, 199_998),
    }
)
"""By name. cl100k is GPT-4's, o200k GPT-4o's; Llama 3.1 has the file of Llama 3 and other special tokens."""


def tiktoken_file(path: Path) -> Path | None:
    """The file in tiktoken's format at a path: itself, or in a directory one that ends so or tokenizer.model.

    Raises:
        UserError: a directory has several.
    """
    if path.is_file():
        return path if path.suffix == SUFFIX or _looks_so(path) else None
    if not path.is_dir() or (path / "tokenizer.json").is_file():
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise UserError(f"{len(found)} {SUFFIX} files", where=str(path), expected="one, or its own path")
    model = path / "tokenizer.model"
    return found[0] if found else model if model.is_file() and _looks_so(model) else None


def _looks_so(path: Path) -> bool:
    with path.open("rb") as stream:
        return _LINE.fullmatch(stream.readline(1 << 12).rstrip(b"\r\n")) is not None


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks, the lowest first.

    Raises:
        UserError: a line is broken or said twice, or a byte has no token.
    """
    where, expected = str(path), "a token in base64, a space and its rank on each line"
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        if not _LINE.fullmatch(line):
            raise UserError("broken line", where=f"{where}:{number}", expected=expected)
        token, rank = line.split(b" ")
        try:
            text = base64.b64decode(token, validate=True)
        except ValueError as error:
            raise UserError(f"broken line ({error})", where=f"{where}:{number}", expected=expected) from error
        if text in ranks:
            raise UserError("a token for the second time", where=f"{where}:{number}", expected="each token once")
        ranks[text] = int(rank)
    if len(set(ranks.values())) < len(ranks):
        raise UserError("a rank for the second time", where=where, expected="each rank once")
    missing = 256 - sum(len(text) == 1 for text in ranks)
    if missing:
        raise UserError(f"{missing} of the 256 bytes have no token", where=where, mend="is the file whole?")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def recovered_merges(ranks: dict[bytes, int]) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """The merges, best first; and the tokens that no merge makes, which tiktoken takes where a chunk is one of them.

    tiktoken joins the neighbours whose joint text has the lowest rank, the leftmost first. What it does inside a token
    does not depend on what stands around it until a merge crosses the border, so each token has one last merge: the one
    that its own text ends with.

    Args:
        ranks: tokens and their ranks, the lowest first.
    """
    texts = list(ranks)
    symbols = {text: symbol for symbol, text in enumerate(texts)}
    pairs = [
        (symbols[text[:cut]], symbols[text[cut:]], symbol, symbol)
        for symbol, text in enumerate(texts)
        for cut in range(1, len(text))
        if text[:cut] in symbols and text[cut:] in symbols
    ]
    left, right, made, rank = (np.ascontiguousarray(c) for c in np.array(pairs, np.int32).reshape(-1, 4).T)
    single = np.array([symbols[bytes([byte])] for byte in range(256)], np.int32)
    joined = np.frombuffer(b"".join(texts), np.uint8)
    ends = np.cumsum([len(text) for text in texts])
    rows = _bpe.last_merges(np.insert(single[joined], ends, -1).astype(np.int32), left, right, made, rank).tolist()
    merges: list[tuple[bytes, bytes]] = []
    whole: list[bytes] = []
    for symbol, (count, first, one, other) in enumerate(rows):
        if (count, first) != (1, symbol):
            whole.append(texts[symbol])
        elif one >= 0:
            merges.append((texts[one], texts[other]))
    return merges, whole


def from_tiktoken(path: Path, preset: str = "", special: Sequence[str] = ()) -> tuple[tokenizers.Tokenizer, str]:
    """The tokenizer of a file in tiktoken's format, and the token that ends a document.

    Args:
        path: the file.
        preset: a key of `PRESETS`; by default the one whose file has as many tokens.
        special: special tokens, numbered behind the largest rank, the first of which ends a document; by default those
            of the preset.

    Raises:
        UserError: the file is broken, no preset goes with it, or the special tokens do not.
    """
    ranks = read_ranks(path)
    chosen = _preset(path, preset, len(ranks))
    last = max(ranks.values())
    numbered = _numbered(last + 1, *special) if special else chosen.special
    if len(set(special)) < len(special):
        raise UserError("a special token for the second time", where=f"--special {' '.join(special)}")
    if min(numbered.values()) <= last:
        raise UserError(
            f"the special tokens begin at {min(numbered.values()):,}, the file ends at {last:,}",
            where=str(path),
            mend="name the special tokens: --special",
        )
    names = {byte: character for character, byte in byte_alphabet().items()}
    spelled = {text: "".join(names[byte] for byte in text) for text in ranks}
    merges, whole = recovered_merges(ranks)
    model = tokenizers.models.BPE(
        # Special tokens stand in the vocabulary too: where ids have gaps, they would be numbered otherwise.
        vocab={spelled[text]: rank for text, rank in ranks.items()} | numbered,
        merges=[(spelled[left], spelled[right]) for left, right in merges],
        ignore_merges=bool(whole),
    )
    made = tokenizers.Tokenizer(model)
    if chosen.normalizer:
        made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(chosen.pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(numbered))
    return made, next(iter(numbered))


def _preset(path: Path, name: str, size: int) -> Preset:
    names = ", ".join(PRESETS)
    if not name:
        found = [preset for preset in PRESETS.values() if preset.ranks == size]
        if not found:
            raise UserError(
                f"{size:,} tokens: not known how its text is cut", where=str(path), mend=f"name a --pattern: {names}"
            )
        return found[0]
    if name not in PRESETS:
        close = nearest(name, PRESETS)
        raise UserError(f"--pattern {name}", expected=f"one of {names}", mend=f"did you mean {close}?" if close else "")
    return PRESETS[name]
