"""Encoders: the same ids as the tokenizer's, whichever is chosen, and a word on why it was."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from megatron_lm_zh.compat import has_module
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer import encoders
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.encoder_audit import difficult_texts, first_difference
from megatron_lm_zh.tokenizer.encoders import choose_encoder, encoder_named
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.train import train_tokenizer
from megatron_lm_zh.tokenizer.unicode_ages import YOUNG_CHARACTERS, YOUNG_SYMBOLS

needs_gigatoken = pytest.mark.skipif(not has_module("gigatoken"), reason="gigatoken is not installed")

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
POLICIES: list[encoders.SpecialTokens] = ["text", "token"]
TEXTS = [
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。北京在中国。",
    "The quick brown fox doesn't jump over 12 lazy dogs; it's 3.14 o'clock.\n\n",
    "def f(x):\n    return x + 1  # 注释\n\nclass A:\n\tpass\r\n",
    " leading and trailing  ",
    "<|endoftext|> </s> e\u0301 😀",
]


def byte_level(directory: Path, *, pattern: str = QWEN2, nfc: bool = True) -> Path:
    """A small tokenizer of Qwen2's kind, with two special tokens and one that is not special."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.add_tokens(["<tool>"])
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[0]}))
    return directory


def sentencepiece_model(path: Path, **options: object) -> Path:
    model = io.BytesIO()
    lines = [line for text in TEXTS * 20 for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, hard_vocab_limit=False, **options
    )
    path.write_bytes(model.getvalue())
    return path


BPE = {"model_type": "bpe", "vocab_size": 450, "byte_fallback": True}
KINDS: dict[str, Callable[[Path], Tokenizer]] = {
    "qwen2": lambda path: load_tokenizer("HuggingFace", byte_level(path / "hf")),
    "llama2": lambda path: load_tokenizer(
        "SentencePiece",
        sentencepiece_model(
            path / "m.model", normalization_rule_name="identity", remove_extra_whitespaces=False, **BPE
        ),
    ),
    "nfkc": lambda path: load_tokenizer("SentencePiece", sentencepiece_model(path / "m.model", **BPE)),
    "spaces": lambda path: load_tokenizer(
        "SentencePiece", sentencepiece_model(path / "m.model", normalization_rule_name="identity", **BPE)
    ),
    "ours": lambda path: load_tokenizer("SentencePiece", train_tokenizer([ours(path)], path / "o", vocab_size=400)),
    "ours in Hugging Face's files": lambda path: load_tokenizer(
        "HuggingFace", train_tokenizer([ours(path)], path / "o", vocab_size=400)
    ),
}


def ours(path: Path) -> Path:
    (path / "t.txt").write_text("\n".join(TEXTS * 20), encoding="utf-8")
    return path / "t.txt"


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))


def reference_of(tokenizer: Tokenizer, policy: str) -> Callable[[str], list[int]]:
    return tokenizer.encode if policy == "text" else tokenizer.encode_special


def assert_same_ids(encoder: encoders.Encoder, reference: Callable[[str], list[int]], texts: list[str]) -> None:
    ids, lengths = encoder.encode_batch(texts)
    assert (ids.dtype, lengths.dtype) == (np.uint32, np.int32)
    expected = [reference(text) for text in texts]
    assert lengths.tolist() == [len(of_text) for of_text in expected]
    for text, found, right in zip(texts, np.split(ids, np.cumsum(lengths)[:-1]), expected, strict=True):
        assert found.tolist() == right, ascii(text)


def random_texts(count: int, seed: int) -> list[str]:
    """Strings of all of Unicode, its youngest characters often among them, and of what tokenizers treat specially."""
    rng = random.Random(seed)
    blocks = [(0x20, 0x7E), (0, 0x1F), (0x80, 0x250), (0x300, 0x370), (0x370, 0x2000), (0x2000, 0x3100)]
    blocks += [(0x4E00, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF), (0x1F300, 0x1FA00)]
    words = [
        "  ",
        "\n",
        "\r\n",
        "'s",
        "'LL",
        "</s>",
        "<s>",
        "<unk>",
        *SPECIAL,
        "<tool>",
        "\u2581",
        "e\u0301",
        "ﬁ",
        "ᄀ",
    ]

    def character() -> str:
        return chr(rng.randint(*rng.choice(rng.choice([blocks, blocks, YOUNG_CHARACTERS, YOUNG_SYMBOLS]))))

    makers = [
        character,
        lambda: rng.choice(words),
        lambda: rng.choice("ab '\n 1中") * rng.randint(1, 40),
        lambda: rng.choice(TEXTS)[rng.randrange(30) :][: rng.randint(1, 30)],
    ]
    return ["".join(rng.choice(makers)() for _ in range(rng.randint(1, 16))) for _ in range(count)]


@needs_gigatoken
@pytest.mark.parametrize("policy", POLICIES)
def test_gigatoken_is_chosen_and_agrees(tokenizer: Tokenizer, policy: encoders.SpecialTokens) -> None:
    choice = choose_encoder(tokenizer, TEXTS, policy)
    assert choice.encoder.name == "gigatoken", choice.note
    assert "same ids" in choice.note and "\n" not in choice.note
    reference = reference_of(tokenizer, policy)
    assert_same_ids(choice.encoder, reference, [*TEXTS, *difficult_texts(SPECIAL), *random_texts(300, seed=1)])
    assert_same_ids(encoder_named("gigatoken", tokenizer, policy), reference, TEXTS)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_tokenizers_own_library(tokenizer: Tokenizer, policy: encoders.SpecialTokens) -> None:
    encoder = encoder_named(tokenizer.library, tokenizer, policy)
    assert encoder.name == tokenizer.library
    assert_same_ids(encoder, reference_of(tokenizer, policy), [*TEXTS, ""])
    ids, lengths = encoder.encode_batch([])
    assert (ids.shape, lengths.shape) == ((0,), (0,))


@needs_gigatoken
@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_gigatoken_agrees_on_many_strings(tokenizer: Tokenizer, policy: encoders.SpecialTokens) -> None:
    encoder = choose_encoder(tokenizer, TEXTS, policy).encoder
    assert encoder.name == "gigatoken"
    assert_same_ids(encoder, reference_of(tokenizer, policy), random_texts(20_000, seed=2))


@needs_gigatoken
@pytest.mark.slow
def test_every_character_is_taken_alike(tmp_path: Path) -> None:
    tokenizer = KINDS["qwen2"](tmp_path)
    encoder = encoder_named("gigatoken", tokenizer)
    planes = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]
    texts = []
    for begin in range(0, len(planes), 40):
        characters = map(chr, planes[begin : begin + 40])
        texts.append("\n".join(f"a{c}b {c} 1{c}2 {c}{c}\u0345{c}\u0334 {c}'s{c}" for c in characters))
    assert_same_ids(encoder, tokenizer.encode, texts)


def test_special_tokens_become_tokens(tmp_path: Path) -> None:
    tokenizer = KINDS["qwen2"](tmp_path)
    start = tokenizer.encode_special("<|im_start|>")
    assert start == [1]
    both = tokenizer.encode_special("hello<|im_start|>world<|endoftext|>")
    assert both == [*tokenizer.encode("hello"), 1, *tokenizer.encode("world"), 0]
    assert not {0, 1} & set(tokenizer.encode("hello<|im_start|>world<|endoftext|>"))
    model = KINDS["llama2"](tmp_path)
    assert model.encode_special("a</s><s>b<unk>") == [*model.encode("a"), 2, 1, *model.encode("b"), 0]
    assert model.encode_special("") == []
    assert not {1, 2} & set(model.encode("a</s><s>b"))


def test_special_tokens_are_those_of_the_exported_tokenizer(tmp_path: Path) -> None:
    """AutoTokenizer, left as it is, gives the ids of policy "token"."""
    model = KINDS["llama2"](tmp_path)
    exported = tmp_path / "exported"
    exported.mkdir()
    model.save_huggingface(exported)
    again = load_tokenizer("HuggingFace", exported)
    for text in [*TEXTS, "a</s> <s>b<unk></s>", "</s>"]:
        assert again.encode_special(text) == model.encode_special(text)


def test_without_gigatoken(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "has_module", lambda name: False)
    choice = choose_encoder(tokenizer, TEXTS)
    assert choice.encoder.name == tokenizer.library
    assert "pip install" in choice.note
    with pytest.raises(UserError, match="gigatoken cannot be used"):
        encoder_named("gigatoken", tokenizer)


def test_what_gigatoken_does_not_take(tmp_path: Path) -> None:
    unigram = load_tokenizer(
        "SentencePiece", sentencepiece_model(tmp_path / "u.model", model_type="unigram", vocab_size=90)
    )
    choice = choose_encoder(unigram, TEXTS)
    assert choice.encoder.name == "sentencepiece"
    assert_same_ids(choice.encoder, unigram.encode, TEXTS)
    with pytest.raises(UserError, match="no encoder 'tokenizers'"):
        encoder_named("tokenizers", unigram)


@needs_gigatoken
def test_an_unknown_way_to_split_is_left_to_tokenizers(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("HuggingFace", byte_level(tmp_path / "hf", pattern=r"\p{L}+|\P{L}+"))
    choice = choose_encoder(tokenizer, TEXTS)
    assert choice.encoder.name == "tokenizers"
    assert "does not take" in choice.note and "\n" not in choice.note
    assert_same_ids(choice.encoder, tokenizer.encode, TEXTS)
    with pytest.raises(UserError, match="does not take"):
        encoder_named("gigatoken", tokenizer)


@needs_gigatoken
def test_a_difference_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer.json that is not quite the .model: a piece more."""
    options = {**BPE, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    tokenizer = load_tokenizer("SentencePiece", sentencepiece_model(tmp_path / "m.model", **options))
    other = sentencepiece_model(tmp_path / "other.model", user_defined_symbols=["the"], **options)
    form = load_tokenizer("SentencePiece", other).json_form()
    monkeypatch.setattr(tokenizer, "json_form", lambda: form)
    choice = choose_encoder(tokenizer, TEXTS)
    assert choice.encoder.name == "sentencepiece"
    assert "differs from the tokenizer on " in choice.note and "\n" not in choice.note


def test_differences_are_found_wherever_they_are() -> None:
    def lengths(text: str) -> list[int]:
        return [len(text)]

    def wrong_from(size: int) -> Callable[[str], list[int]]:
        return lambda text: [len(text) + (len(text) >= size)]

    def wrong_on(word: str) -> Callable[[str], list[int]]:
        return lambda text: [len(text) + (word in text)]

    sample = ["fine", "some text with a needle in it" + " and more" * 50]
    assert first_difference(lengths, lengths, SPECIAL, sample) is None
    found = first_difference(wrong_on("needle"), lengths, SPECIAL, sample)
    assert found is not None and "document 2 of the sample" in found and "needle" in found
    assert first_difference(wrong_on("<|im_start|>"), lengths, SPECIAL, []) is not None
    assert first_difference(wrong_from(33_000), lengths, [], []) is not None


@needs_gigatoken
def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text is new, and gigatoken would remember all of them."""
    monkeypatch.setattr(encoders, "MOST_CACHED", 8 << 20)
    tokenizer = KINDS["qwen2"](tmp_path)
    encoder = encoder_named("gigatoken", tokenizer)
    draw = np.random.default_rng(0)
    backends = [encoder._backend]
    for _ in range(60):
        codes = draw.integers(0x4E00, 0x9FFF, (50_000, 8), dtype=np.uint32)
        codes[:, 7] = ord("，")
        encoder.encode_batch([codes.tobytes().decode("utf-32-le")])
        if encoder._backend is not backends[-1]:
            backends.append(encoder._backend)
            break
    assert len(backends) > 1
    assert_same_ids(encoder, tokenizer.encode, TEXTS)


@pytest.mark.parametrize("name", [pytest.param("gigatoken", marks=needs_gigatoken), "own"])
def test_half_surrogate_pairs_are_refused(tokenizer: Tokenizer, name: str) -> None:
    encoder = encoder_named(tokenizer.library if name == "own" else name, tokenizer)
    with pytest.raises(UnicodeEncodeError):
        encoder.encode_batch(["fine", "\ud800"])
