"""SentencePiece: plain-text encoding, and Hugging Face files that give the same ids."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
import sentencepiece

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.spm_file import parse_model
from megatron_lm_zh.tokenizer.train import train_tokenizer

SENTENCE = "春天 的 花 开了 ， 北京 在 中国 。 one two three water 42 def return x = y + 1 hello --- ==== aaaa end"
WORDS = [*SENTENCE.split(), "", "", ""]
HOSTILE = [
    "",
    " ",
    "  two spaces  ",
    "tab\tand\nline\r\n",
    "<s>not a token</s><unk><0x0A>",
    "罕见字𠮷😀👨‍👩‍👧 é e\u0301 \u200b",
    "a" * 50 + " " * 33 + "-" * 21,
    "\x00\x01",
    "١٢٣ ১২৩ 12.5%",
    "▁▁x▁",
]


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]
    alphabet = "a b-=花。\n😀1e<s/>"
    return words + ["".join(rng.choice(alphabet) * rng.randint(1, 7) for _ in range(9)) for _ in range(count)]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(random_texts(400)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(text_file: Path) -> Path:
    return train_tokenizer([text_file], text_file.parent / "trained", vocab_size=400)


def train_model(text_file: Path, path: Path, **options: object) -> Path:
    """A model of another kind than ours, as users bring them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text_file.read_text(encoding="utf-8").split("\n")),
        model_writer=model,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize(
    ("options", "sampled"),
    [
        ({}, HOSTILE),  # ours
        (
            {
                "model_type": "bpe",
                "vocab_size": 390,
                "byte_fallback": True,
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
            },
            HOSTILE,
        ),  # like Llama 2's
        ({"model_type": "bpe", "vocab_size": 100, "normalization_rule_name": "nmt_nfkc"}, HOSTILE[:7]),
        ({"model_type": "unigram", "vocab_size": 100, "normalization_rule_name": "nmt_nfkc"}, HOSTILE[:4]),
        ({"model_type": "unigram", "vocab_size": 350, "byte_fallback": True, "pad_id": 3}, HOSTILE[:4]),
    ],
)
def test_huggingface_files_give_the_same_ids(
    trained: Path, text_file: Path, tmp_path: Path, options: dict[str, object], sampled: list[str]
) -> None:
    from transformers import AutoTokenizer

    path = train_model(text_file, tmp_path / "m.model", **options) if options else trained
    tokenizer = load_tokenizer("SentencePiece", path)
    directory = tmp_path / "hf"
    directory.mkdir()
    tokenizer.save_huggingface(directory)
    (directory / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    auto = AutoTokenizer.from_pretrained(directory)
    ours = load_tokenizer("HuggingFace", directory)
    assert len(auto) == ours.vocab_size == tokenizer.vocab_size
    assert auto.eos_token_id == ours.eod == tokenizer.eod
    assert ours.fingerprint == tokenizer.fingerprint
    assert (ours.token_sizes() == tokenizer.token_sizes()).all()
    texts = random_texts(150, seed=5)
    if options.get("model_type") == "unigram":
        texts = texts[:150]  # words: in runs of one character it is rounding that breaks ties
    for text in [*texts, *sampled]:
        expected = tokenizer.encode(text)
        assert ours.encode(text) == expected, text
        assert auto(text, add_special_tokens=False, split_special_tokens=True).input_ids == expected, text
        if "<" not in text:
            assert auto(text).input_ids == expected, text
            assert auto.decode(expected, skip_special_tokens=True) == ours.decode(expected)


def test_fingerprint_changes_with_the_ids_alone(trained: Path, text_file: Path, tmp_path: Path) -> None:
    base = load_tokenizer("SentencePiece", trained).fingerprint
    assert load_tokenizer("HuggingFace", trained).fingerprint == base
    smaller = train_tokenizer([text_file], tmp_path / "smaller", vocab_size=399)
    assert load_tokenizer("SentencePiece", smaller).fingerprint != base
    file = smaller / "tokenizer.json"
    recorded = load_tokenizer("HuggingFace", smaller).fingerprint
    file.write_text(file.read_text().replace('"fuse_unk": true', '"fuse_unk": false'))
    assert load_tokenizer("HuggingFace", smaller).fingerprint != recorded


def test_bad_models_are_one_line(tmp_path: Path, text_file: Path, trained: Path) -> None:
    content = (trained / "tokenizer.model").read_bytes()
    cases = {
        "none": None,
        "empty": b"",
        "garbage": bytes(range(256)) * 9,
        "text": b"hello, this is no model",
        "cut": content[:-100],
        "cut2": content[: len(content) // 2],
    }
    for name, raw in cases.items():
        path = tmp_path / f"{name}.model"
        if raw is not None:
            path.write_bytes(raw)
        with pytest.raises(UserError) as raised:
            load_tokenizer("SentencePiece", path)
        assert str(raised.value).startswith(f"{path}: no")
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="no such tokenizer file"):
        load_tokenizer("SentencePiece", tmp_path)
    word = train_model(text_file, tmp_path / "w.model", model_type="word", vocab_size=20)
    with pytest.raises(UserError, match="of type word; expected bpe or unigram"):
        load_tokenizer("SentencePiece", word)
    endless = train_model(text_file, tmp_path / "e.model", model_type="bpe", vocab_size=100, eos_id=-1)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer("SentencePiece", endless)


def test_unknown_type_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown tokenizer type 'Sentencepiece'.*did you mean SentencePiece"):
        load_tokenizer("Sentencepiece", "x")


def test_model_file_is_read_as_sentencepiece_reads_it(trained: Path) -> None:
    content = (trained / "tokenizer.model").read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    model = parse_model(content)
    assert [piece.text for piece in model.pieces] == [processor.id_to_piece(i) for i in range(len(processor))]
    assert [piece.score for piece in model.pieces] == [processor.get_score(i) for i in range(len(processor))]
    assert (model.byte_fallback, model.add_dummy_prefix, model.remove_extra_whitespaces) == (True, False, False)
