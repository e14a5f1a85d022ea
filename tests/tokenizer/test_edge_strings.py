"""Strings made to be difficult, under extended tokenizers: all files agree, and the text comes back.

Two exceptions, both the base's own: a SentencePiece model writes a space as U+2581, so U+2581 comes back as a space; a
base that normalises (Qwen: NFC) gives the normalised text back.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizer.merge.conftest import chinese
from tokenizers.normalizers import NFC

from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.merge.artifacts import write_extension
from megatron_lm_zh.tokenizer.merge.bases import load_base
from megatron_lm_zh.tokenizer.merge.construct import Rules, extend_from_corpus

DATA = Path(__file__).parents[3] / "shared/data"
TRAIN = DATA / "zh/train.txt"
EDGES = {
    "empty": "",
    "one space": " ",
    "spaces only": "     ",
    "leading space": " 我们",
    "leading spaces": "    people",
    "trailing spaces": "people  我们   ",
    "spaces between": "人工  智能   people    city",
    "tabs": "\t\t我们\tpeople\t",
    "line feeds": "\n\n我们\n\n\npeople\n",
    "CRLF": "我们\r\n今天\r\n\r\n",
    "lone CR": "我们\r今天",
    "vertical tab and form feed": "a\x0b我们\x0cb",
    "unicode line ends": "我们\u2028今天\u2029天气\x85",
    "ideographic spaces": "\u3000\u3000我们\u3000今天\u3000",
    "no-break and thin spaces": "我们\u00a0今天\u2009天气\u202f",
    "end of sequence": "</s>",
    "end of sequence in text": "我们</s>今天 </s> <s>people",
    "end of text": "<|endoftext|>我们<|end|><|im_start|>user\n",
    "unknown and padding": "<unk>我们<pad>[MASK]",
    "byte tokens": "<0x0A><0xE4><0xB8><0x80>",
    "family": "👨‍👩‍👧‍👦我们👩🏽‍🚀",
    "flags": "🇨🇳🇺🇸🇨我们🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "keycaps and selectors": "1️⃣❤️❤︎☺️",
    "full-width letters": "ＡＢＣａｂｃ我们",
    "full-width digits": "２０２４年１２月",
    "full-width punctuation": "（我们）：！？；～＿｜",
    "half-width kana": "ﾃｽﾄｶﾞ我们",
    "CJK punctuation": "“我们”《今天》「天气」『不错』【中国】……——·",
    "extension A": "㐀㐁䶵",
    "extension B": "𠮷野家𠀀𪛖",
    "extensions C to I": "𪜀𫝀𫠠𬺰𰀀𱍐𮯰",
    "compatibility Han": "豈更車\ufa0e\U0002f800\uf900",
    "radicals and strokes": "⼀⼁⺀㇀",
    "ideographic description": "⿰木目⿱艹化",
    "variation sequences": "葛\U000e0100城\U000e0101",
    "traditional and old": "龘龗㊀㊊〇々〆",
    "bopomofo": "ㄅㄆㄇㄈ我们",
    "Yi, Tangut, Nushu": "ꀀꀁ𗀀𛅰",
    "literal U+2581": "\u2581我们\u2581people \u2581",
    "U+2581 alone": "\u2581",
    "NUL": "我\x00们\x00",
    "control characters": "\x01\x02我们\x1b[31m\x7f",
    "byte order mark": "\ufeff我们\ufeff",
    "combining mark alone": "\u0301",
    "many combining marks": "我\u0301\u0302们e\u0301\u0327" + "z\u0316\u0301" * 8,
    "not composed": "e\u0301 o\u0308 \u1112\u1161\u11ab Å",
    "right to left": "我们 שלום العربية \u202e我们\u202c",
    "zero width": "我\u200b们\u200c今\u200d天\u2060",
    "soft hyphen": "people\u00adcity我\u00ad们",
    "Hangul jamo": "\u1100\u1161\u11a8 한국어 \u3131\u314f",
    "kana": "ひらがなカタカナ々ー",
    "Indic and Thai": "हिन्दी ไทยภาษา தமிழ்",
    "mathematics": "𝐀𝔸𝓐 ∑∫√ x²₃",
    "private use": "\ue000\uf8ff\U000f0000\U0010fffd",
    "noncharacters": "\ufdd0\ufffe\uffff\U0001fffe\U0010ffff",
    "replacement character": "\ufffd我\ufffd们",
    "unassigned": "\u0378\U000e1000",
    "tags": "\U000e0041\U000e007f",
    "long run of Han": "我" * 3000,
    "long run of one piece": "我们" * 2000,
    "long run of spaces": " " * 3000,
    "long run of a letter": "a" * 3000,
    "long run of emoji": "😀" * 700,
    "digits": "12345 1,234.56 ٣٤ ४५ Ⅷ ½",
    "mixed": "我们在GitHub上的TiDB-v7.5，https://例え.jp/路径?q=人工智能#1。",
    "code": "def 函数(参数: int) -> str:\n\treturn f'{参数}个'  # 注释\n",
}


def fuzzed(count: int, seed: int = 0) -> list[str]:
    """Pieces of the edge strings, words and learnt pieces in any order, some of them cut."""
    rng = random.Random(seed)
    parts = [text[:40] for text in EDGES.values() if text] + [
        *"  \n\t,.，。ab1",
        *chinese(5, seed=9),
        "people",
        "人工智能",
    ]
    made = []
    for _ in range(count):
        text = "".join(rng.choices(parts, k=rng.randint(1, 8)))
        begin = rng.randrange(len(text))
        made.append(text[begin : begin + rng.randint(1, 60)])
    return made


def random_unicode(count: int, seed: int = 0) -> list[str]:
    """Characters of all planes, surrogates alone left out; every fifth of them Han."""
    rng = random.Random(seed)
    ends = (0x80, 0x3000, 0x10000, 0x110000)
    made = []
    for _ in range(count):
        codes = []
        for _ in range(rng.randint(1, 24)):
            kind = rng.randrange(5)
            code = rng.randrange(0x4E00, 0xA000) if kind == 4 else rng.randrange(ends[kind])
            codes.append(0x2581 if 0xD800 <= code < 0xE000 else code)
        made.append("".join(map(chr, codes)))
    return made


@dataclass(frozen=True)
class Made:
    """An extended tokenizer: each form in which it can be read, and what a text comes back as."""

    directory: Path
    forms: tuple[Tokenizer, ...]
    comes_back: Callable[[str], str]

    def check(self, texts: Iterable[str]) -> None:
        first, *others = self.forms
        for text in texts:
            ids = first.encode(text)
            expected = self.comes_back(text)
            for form in others:
                assert form.encode(text) == ids, ascii(text)
            for form in self.forms:
                assert form.decode(ids) == expected, ascii(text)


def extended(base: Path, directory: Path, texts: Sequence[str], pieces: int) -> Path:
    write_extension(extend_from_corpus(load_base(base), texts, pieces, Rules("base")), directory)
    return directory


def opened(directory: Path, comes_back: Callable[[str], str]) -> Made:
    """Each form that there is; a .model comes first."""
    types = ["SentencePiece"] if (directory / "tokenizer.model").is_file() else []
    forms = tuple(load_tokenizer(type_, directory) for type_ in (*types, "HuggingFace"))
    return Made(directory, forms, comes_back)


def with_spaces(text: str) -> str:
    return text.replace("\u2581", " ")


@pytest.fixture(scope="session", params=["SentencePiece", "byte-level", "byte-level, NFC"])
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sentencepiece_base: Path,
    byte_level_base: Path,
) -> Made:
    directory = tmp_path_factory.mktemp("edges")
    if request.param == "SentencePiece":
        return opened(extended(sentencepiece_base, directory / "new", chinese(600), 90), with_spaces)
    base, comes_back = byte_level_base, str
    if request.param == "byte-level, NFC":
        base, comes_back = directory / "base", NFC().normalize_str
        base.mkdir()
        content = json.loads((byte_level_base / "tokenizer.json").read_bytes()) | {"normalizer": {"type": "NFC"}}
        (base / "tokenizer.json").write_text(json.dumps(content))
        (base / "tokenizer_config.json").write_bytes((byte_level_base / "tokenizer_config.json").read_bytes())
    return opened(extended(base, directory / "new", chinese(600), 90), comes_back)


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_string(made: Made, name: str) -> None:
    made.check([EDGES[name]])


def test_transformers_agrees(made: Made) -> None:
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(made.directory)
    for text in [*EDGES.values(), *fuzzed(300, seed=2), *random_unicode(300, seed=2)]:
        ids = auto(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids == made.forms[0].encode(text), ascii(text)
        assert auto.decode(ids) == made.comes_back(text), ascii(text)


def test_fuzzed_and_random_strings(made: Made) -> None:
    made.check(fuzzed(1000))
    made.check(random_unicode(2000))


@pytest.mark.slow
def test_many_fuzzed_and_random_strings(made: Made) -> None:
    made.check(fuzzed(10_000, seed=1))
    made.check(random_unicode(100_000, seed=1))


@pytest.mark.slow
@pytest.mark.skipif(not TRAIN.is_file(), reason="shared/data is not beside the repository")
@pytest.mark.parametrize(
    ("name", "comes_back"), [("llama2", with_spaces), ("qwen2", NFC().normalize_str), ("gpt2", str)]
)
def test_real_bases(tmp_path: Path, name: str, comes_back: Callable[[str], str]) -> None:
    with TRAIN.open(encoding="utf-8") as stream:
        texts = stream.readlines(1_000_000)
    made = opened(extended(DATA / "tok" / name, tmp_path / "new", texts, 1000), comes_back)
    made.check(EDGES.values())
    made.check(fuzzed(10_000, seed=1))
    made.check(random_unicode(100_000, seed=1))


def test_the_strings_are_what_they_say() -> None:
    assert len(EDGES) >= 30
    assert len(set(EDGES.values())) == len(EDGES)
    assert len(set(fuzzed(1000))) > 900
    assert {ord(c) >> 16 for text in random_unicode(2000) for c in text} == set(range(17))
