"""Bases of every kind: tiktoken's files, chunks taken whole (ignore_merges), user-defined pieces."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from tokenizer.merge.conftest import ENGLISH, USER_DEFINED, chinese, user_defined, write_tiktoken
from tokenizer.merge.test_extend import checked, fuzzed

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.merge.artifacts import write_extension
from megatron_lm_zh.tokenizer.merge.bases import load_base
from megatron_lm_zh.tokenizer.merge.construct import extend_from_corpus, extend_from_donor
from megatron_lm_zh.tokenizer.merge.donors import load_donor
from megatron_lm_zh.tokenizer.merge.ranking import Ranked, tokens_in, unreachable
from megatron_lm_zh.tokenizer.tiktoken import PRESETS, from_tiktoken, recovered_merges

# The patterns as tiktoken and the models' own code have them; tiktoken's library of expressions is another one.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "qwen": LLAMA3.replace("{1,3}", ""),
    "llama3": LLAMA3,
    "llama3.1": LLAMA3,
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": CL100K,
    "o200k": PRESETS["o200k"].pattern,
}


def texts(count: int) -> list[str]:
    """Runs of spaces, line ends, digits and contractions among words."""
    rng = random.Random(5)
    parts = [*" \n\t\r'./1", "  ", "12345", "'S", "'re", "the", "People", "我们", "学生们", "é", "😀", "zzz", "\u3000"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 14))) for _ in range(count)]


def peer(ranks: dict[bytes, int], pattern: str) -> tiktoken.Encoding:
    return tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_tiktoken_file_gives_the_ids_of_tiktoken(name: str, ranks: dict[bytes, int], tmp_path: Path) -> None:
    pairs = [a + b for a in (b" ", b"\n", b"\r", b"\t") for b in (b" ", b"\n", b"  ", b"\n\n")]
    known = ranks | {pair: len(ranks) + i for i, pair in enumerate(p for p in pairs if p not in ranks)}
    path = write_tiktoken(tmp_path / "x.tiktoken", known)
    made, end = from_tiktoken(path, name, ["<|stop|>", "<|pad|>"])
    assert (end, made.token_to_id(end)) == ("<|stop|>", max(known.values()) + 1)
    other = peer(known, PATTERNS[name])
    for text in [*texts(300), *ENGLISH.split("\n"), *chinese(20), ENGLISH]:
        assert made.encode(text).ids == other.encode(text, disallowed_special=()), text
        assert made.decode(made.encode(text).ids) == text


def test_merges_follow_from_any_ranks() -> None:
    rng = random.Random(1)
    for _ in range(60):
        words = {"".join(rng.choices("aab", k=rng.randint(2, 6))).encode() for _ in range(14)}
        order = [bytes([byte]) for byte in range(256)] + rng.sample(sorted(words), len(words))
        ranks = {text: rank for rank, text in enumerate(order)}
        merges, whole = recovered_merges(ranks)
        assert len(merges) + len(whole) == len(words)
        vocab = {text.decode("latin-1"): rank for text, rank in ranks.items()}
        spelled = [(left.decode("latin-1"), right.decode("latin-1")) for left, right in merges]
        model = tokenizers.models.BPE(vocab=vocab, merges=spelled, ignore_merges=bool(whole))
        other = peer(ranks, ".+")
        for _ in range(60):
            text = "".join(rng.choices("aab", k=rng.randint(1, 20)))
            assert [token.id for token in model.tokenize(text)] == other.encode(text)


def test_presets_say_what_the_file_does_not() -> None:
    llama, qwen = PRESETS["llama3"].special, PRESETS["qwen"].special
    assert (len(llama), len(qwen)) == (256, 208)
    assert llama["<|begin_of_text|>"] == 128_000
    assert llama["<|eot_id|>"] == 128_009
    assert llama["<|reserved_special_token_250|>"] == 128_255
    newer = PRESETS["llama3.1"].special
    assert newer["<|finetune_right_pad_id|>"] == 128_004
    assert newer["<|reserved_special_token_2|>"] == 128_005
    assert newer["<|reserved_special_token_247|>"] == 128_255
    assert (qwen["<|endoftext|>"], qwen["<|extra_204|>"]) == (151_643, 151_850)
    assert next(iter(llama)) == "<|end_of_text|>"


@pytest.mark.parametrize("name", ["x.tiktoken", "tokenizer.model"])
def test_a_tiktoken_base_is_extended(name: str, ranks: dict[bytes, int], tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path / name, ranks)
    with pytest.raises(UserError, match=r"\d+ tokens: not known how.*--pattern: qwen, llama3, llama3.1, gpt2"):
        load_base(path)
    options = {"pattern": "llama3", "special": ["<|stop|>", "<|pad|>"]}
    base = load_base(path, **options)  # type: ignore[arg-type]
    tokenizer = write_extension(extend_from_corpus(base, chinese(600), 60), tmp_path / "new")
    assert tokenizer.eod == len(ranks)
    assert tokenizer.vocab_size == len(ranks) + 2 + 60
    other = peer(ranks, PATTERNS["llama3"])
    for text in [*ENGLISH.split("\n"), "</s> <|stop|>", " zoological 778", "the  people\n\n"]:
        assert tokenizer.encode(text) == other.encode(text, disallowed_special=())
    # the directory that holds the file works, too, and so does the plain loader after its own save
    again = load_base(tmp_path, **options) if name == "tokenizer.model" else base  # type: ignore[arg-type]
    assert again.texts == base.texts
    assert unreachable(load_base(tmp_path / "new")) == unreachable(base) == []


def test_the_plain_loader_reads_a_known_tiktoken_file(
    ranks: dict[bytes, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import megatron_lm_zh.tokenizer.tiktoken as module

    small = module.Preset(PATTERNS["llama3"], {"<|stop|>": len(ranks)}, len(ranks), "NFC")
    monkeypatch.setattr(module, "PRESETS", {"small": small})
    source = tmp_path / "source"
    source.mkdir()
    write_tiktoken(source / "x.tiktoken", ranks)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "Own", "model_max_length": 77, "auto_map": {}}')
    tokenizer = load_tokenizer("HuggingFace", source)
    (tmp_path / "saved").mkdir()
    tokenizer.save_huggingface(tmp_path / "saved")
    saved, file = (load_tokenizer("HuggingFace", path) for path in (tmp_path / "saved", source / "x.tiktoken"))
    assert saved.fingerprint == tokenizer.fingerprint == file.fingerprint
    assert saved.eod == len(ranks)
    assert saved.encode("e\u0301") == peer(ranks, PATTERNS["llama3"]).encode("\u00e9")
    config = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    assert (config["model_max_length"], config["tokenizer_class"]) == (77, "PreTrainedTokenizerFast")
    write_tiktoken(source / "y.tiktoken", ranks)
    with pytest.raises(UserError, match="2 .tiktoken files"):
        load_tokenizer("HuggingFace", source)


def test_chunks_that_are_pieces_are_taken_whole(ignore_merges_base: Path, tmp_path: Path) -> None:
    base = load_base(ignore_merges_base)
    plain = load_tokenizer("HuggingFace", ignore_merges_base)
    assert len(plain.encode(" zoological")) == len(plain.encode("学生们")) == 1
    assert len(plain.encode("学生们的")) > 2
    assert unreachable(base) == []  # no merge makes them, but a chunk is one
    lines = ["学生们", " zoological 中国北京", *chinese(20), *fuzzed(50)]
    assert tokens_in(Ranked(base, ()).encode(lines)) == sum(len(plain.encode(line)) for line in lines)
    extension = extend_from_corpus(base, chinese(600), 90)
    tokenizer = checked(extension, ignore_merges_base, tmp_path / "new")
    for text in ["学生们", " zoological", "778", "zzz", "中国北京"]:
        assert tokenizer.encode(text) == plain.encode(text)
    lines = chinese(40, seed=3)
    assert sum(len(tokenizer.encode(line)) for line in lines) == tokens_in(extension.ranked.encode(lines))
    content = json.loads((tmp_path / "new/tokenizer.json").read_text())
    assert content["model"]["ignore_merges"] is True
    without = content | {"model": content["model"] | {"ignore_merges": False}}
    merged = tokenizers.Tokenizer.from_str(json.dumps(without))
    for text in extension.pieces:  # made by merges: as a chunk of its own and inside longer ones
        plain_text = text.decode(errors="ignore")
        if plain_text.encode() == text:
            assert merged.encode(plain_text, add_special_tokens=False).ids == tokenizer.encode(plain_text)


def test_a_dead_piece_is_told_from_a_whole_chunk(ignore_merges_base: Path, tmp_path: Path) -> None:
    content = json.loads((ignore_merges_base / "tokenizer.json").read_text())
    content["model"]["vocab"]["zz!z"] = 400  # no chunk is this, and no merge makes it
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    assert unreachable(load_base(tmp_path)) == [b"zz!z"]
    content["model"]["ignore_merges"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(unreachable(load_base(tmp_path))) == 6


def test_special_tokens_that_are_chunks_cannot_be_told_apart(ranks: dict[bytes, int], tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path / "x.tiktoken", ranks)
    with pytest.raises(UserError, match="the special token 'STOP' would become it"):
        load_base(path, pattern="llama3", special=["STOP"])
    assert load_base(path, pattern="llama3", special=["<STOP>"]).vocab_size == len(ranks) + 1


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_user_defined_pieces_cut_text(dummy_prefix: bool, tmp_path: Path) -> None:
    path = user_defined(tmp_path / "tokenizer.model", dummy_prefix=dummy_prefix)
    base, plain = load_base(path), load_tokenizer("SentencePiece", path)
    extension = extend_from_corpus(base, [line.replace("我们", "的的") for line in chinese(600)], 60)
    assert not any("的的" in text.decode() for text in extension.pieces)
    tokenizer = write_extension(extension, tmp_path / "new")
    twin = load_tokenizer("HuggingFace", tmp_path / "new")
    rng = random.Random(3)
    parts = [*"abc 1\n<>/|x", "  ", "我们", "今天", "，", "the ", "th", "\u2581", "人工智能", *USER_DEFINED]
    made = ["".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(3000)]
    differing = set()
    made += [*ENGLISH.split("\n"), *chinese(30)]
    assert sum(len(tokenizer.encode(text)) for text in made) == tokens_in(extension.ranked.encode(made))
    for text in made:
        ids = tokenizer.encode(text)
        if twin.encode(text) != ids:
            differing.add(text)
        if text.isascii():
            assert ids == plain.encode(text)
    # Where a space goes before each text, a text that is such a piece and nothing else gets none in tokenizer.json.
    assert differing <= (set(USER_DEFINED) if dummy_prefix else set())


def test_a_donor_gives_no_piece_that_text_never_holds(tmp_path: Path) -> None:
    path = user_defined(tmp_path / "tokenizer.model", dummy_prefix=True)
    (tmp_path / "words.txt").write_text("目的的\n的的\n人工智能\n", encoding="utf-8")
    extension = extend_from_donor(load_base(path), load_donor(tmp_path / "words.txt"))
    reason = "it holds a user-defined piece of the base, which cuts text"
    assert {one.text: one.reason for one in extension.dropped} == {"目的的": reason, "的的": reason}
    assert "人工智能".encode() in extension.pieces


def test_user_defined_pieces_beside_a_normaliser_are_refused(tmp_path: Path) -> None:
    path = user_defined(tmp_path / "n.model", dummy_prefix=True, normalization_rule_name="nmt_nfkc")
    with pytest.raises(UserError, match="user-defined pieces beside a normaliser"):
        load_base(path)


def test_pieces_that_the_normaliser_or_pattern_forbids_are_dropped(ignore_merges_base: Path, tmp_path: Path) -> None:
    content = json.loads((ignore_merges_base / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "NFC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    (tmp_path / "words.txt").write_text("\ufa0a学\n我们，他\n，我们\n人工\n", encoding="utf-8")  # U+FA0A becomes U+898B
    extension = extend_from_donor(load_base(tmp_path), load_donor(tmp_path / "words.txt"))
    assert {one.text: one.reason for one in extension.dropped} == {
        "\ufa0a学": "the base's normaliser never leaves it in text",
        "我们，他": "the base cuts text inside it",
    }
    assert {"，我们".encode(), "人工".encode()} <= set(extension.pieces)


def test_an_added_token_of_a_byte_level_base_cuts_text(byte_level_base: Path, tmp_path: Path) -> None:
    content = json.loads((byte_level_base / "tokenizer.json").read_text())
    added = dict(content["added_tokens"][0], id=content["added_tokens"][0]["id"] + 1, content="人工智", special=False)
    content["added_tokens"].append(added)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    base = load_base(tmp_path)
    extension = extend_from_corpus(base, chinese(600), 60)
    assert not any("人工智".encode() in text for text in extension.pieces)
    tokenizer = write_extension(extension, tmp_path / "new")
    lines = ["人工智能数据库", *chinese(40, seed=2)]
    assert sum(len(tokenizer.encode(line)) for line in lines) == tokens_in(extension.ranked.encode(lines))
