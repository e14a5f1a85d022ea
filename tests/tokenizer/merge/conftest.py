"""Small bases and Chinese text, made here."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from megatron_lm_zh.tokenizer.byte_level import byte_alphabet
from megatron_lm_zh.tokenizer.tiktoken import from_tiktoken

ENGLISH = (
    "the people of the city create things, and they said: we are reading 12 books and 345 pages.\n"
    "def create(people): return [person for person in people if person is not None]  # ok\n"
)
WORDS = [
    "我们",
    "他们",
    "今天",
    "天气",
    "不错",
    "中国",
    "北京",
    "大学",
    "学生",
    "学习",
    "数据",
    "数据库",
    "人工",
    "智能",
    "人工智能",
    "时候",
    "可以",
    "因为",
    "所以",
    "喜欢",
]


def chinese(count: int, seed: int = 0) -> list[str]:
    """Lines of Chinese words, punctuation, numbers and a few Latin ones."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        parts = rng.choices([*WORDS, "，", "。", "“", "”", " TiDB ", "2024年", "（", "）"], k=rng.randint(4, 20))
        lines.append("".join(parts) + "。\n")
    return lines


@pytest.fixture(scope="session")
def sentencepiece_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE like Llama 2's: identity, a space before the text, digits apart, bytes for what is unknown."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ENGLISH * 20 + "我们的一个\n" * 3).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("base") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def byte_level_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE like Qwen's, its special token numbered behind the vocabulary."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([ENGLISH * 20, "我们的一个" * 3], trainer)
    made.add_special_tokens(["<|end|>"])
    directory = tmp_path_factory.mktemp("byte_level")
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>", "chat_template": "{{ messages }}"}'
    )
    return directory


@pytest.fixture(scope="session")
def unigram_donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unigram model with numbers and Latin words among its pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line.strip() for line in chinese(600) + ["1999年 12 19 people create"] * 50),
        model_writer=model,
        model_type="unigram",
        vocab_size=150,
        split_digits=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("donor") / "donor.model"
    path.write_bytes(model.getvalue())
    return path


CHAT = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"


@pytest.fixture(scope="session")
def chat_directory(sentencepiece_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory like Llama 2's chat model: a .model and settings, no tokenizer.json."""
    directory = tmp_path_factory.mktemp("chat")
    (directory / "tokenizer.model").write_bytes(sentencepiece_base.read_bytes())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "padding_side": "left",
        "model_max_length": 4096,
        "chat_template": CHAT,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def user_defined_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE like Gemma's: no space before the text, user-defined pieces for line ends, spaces and tags."""
    return user_defined(tmp_path_factory.mktemp("user_defined") / "tokenizer.model", dummy_prefix=False)


USER_DEFINED = [
    "<tag>",
    "<tag>x",
    "\n",
    "\n\n",
    "\u2581\u2581",
    "\u2581\u2581\u2581",
    "的的",
    "th",
    "(.*)",
    "a|b",
]


def user_defined(path: Path, *, dummy_prefix: bool, **options: object) -> Path:
    """A BPE with user-defined pieces, some of which are regular expressions, parts of words, or parts of others."""
    model = io.BytesIO()
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ENGLISH * 20 + "我们的一个\n" * 3).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=dummy_prefix,
        user_defined_symbols=USER_DEFINED,
        minloglevel=2,
        **settings,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def ranks() -> dict[bytes, int]:
    """Ranks as Llama 3's file has them: bytes, what training made, and words that no merge makes."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [ENGLISH * 20, "我们的一个" * 3],
        trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False),
    )
    names = byte_alphabet()
    vocab = sorted(made.get_vocab().items(), key=lambda item: item[1])
    texts = [bytes(names[c] for c in name) for name, _ in vocab]
    whole = [" zoological", "学生们", "中国北京", "778", "zzz"]
    assert not {text.encode() for text in whole} & set(texts)
    return {text: rank for rank, text in enumerate([*texts, *map(str.encode, whole)])}


def write_tiktoken(path: Path, ranks: dict[bytes, int]) -> Path:
    """A file in tiktoken's format."""
    path.write_bytes(b"".join(base64.b64encode(text) + f" {rank}\n".encode() for text, rank in ranks.items()))
    return path


@pytest.fixture(scope="session")
def ignore_merges_base(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory like Llama 3's: ignore_merges, a beginning put before each text, special tokens last."""
    path = write_tiktoken(tmp_path_factory.mktemp("ranks") / "x.tiktoken", ranks)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    made, _ = from_tiktoken(path, "llama3", special)
    begin = made.token_to_id(special[0])
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=[special[0], "$A"], special_tokens=[(special[0], begin)]),
        ]
    )
    directory = tmp_path_factory.mktemp("ignore_merges")
    made.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[1],
        "model_max_length": 8192,
        "chat_template": CHAT,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
