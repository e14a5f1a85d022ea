"""Our Hugging Face directories under transformers 4.45 to 5, also after save_pretrained there (make test-hf4)."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizer.merge.conftest import ENGLISH, chinese
from tokenizer.merge.test_extend import EDGES, fuzzed

from megatron_lm_zh.tokenizer.load import load_tokenizer
from megatron_lm_zh.tokenizer.merge.artifacts import write_extension
from megatron_lm_zh.tokenizer.merge.bases import load_base
from megatron_lm_zh.tokenizer.merge.construct import extend_from_corpus
from megatron_lm_zh.tokenizer.train import train_tokenizer

OLDER = Path(sys.prefix) / "hf4"
VERSIONS = ("own", "4.45.2", "4.51.3", "4.57.3")
SAVES_ANOTHER_CLASS = ("4.51.3",)
"""Their save_pretrained writes PreTrainedTokenizer for PreTrainedTokenizerFast, which loads with use_fast alone."""
pytestmark = pytest.mark.slow

CHILD = """
import json, sys
import transformers
from transformers import AutoTokenizer
job = json.load(open(sys.argv[1], encoding="utf-8"))
found = {}
for name, path in job["directories"].items():
    first = AutoTokenizer.from_pretrained(path)
    first.save_pretrained(path + "-again")
    found[name] = []
    for how in (path, path + "-again"):
        for fast in (True, False) if how == path or job["reloads_slow"] else (True,):
            one = AutoTokenizer.from_pretrained(how, use_fast=fast)
            texts = job["texts"]
            found[name].append({
                "version": transformers.__version__,
                "ids": [one(t, add_special_tokens=False, split_special_tokens=True).input_ids for t in texts],
                "with_special": one("the people").input_ids,
                "decoded": [one.decode(one(t, add_special_tokens=False).input_ids) for t in job["plain"]],
                "length": len(one),
                "special": sorted(one.all_special_tokens),
                "named": [one.bos_token, one.eos_token, one.unk_token, one.pad_token],
                "padding_side": one.padding_side,
                "most": one.model_max_length if one.model_max_length < 1e9 else None,
                "chat": one.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
                if one.chat_template else None,
            })
json.dump(found, open(sys.argv[2], "w", encoding="utf-8"))
"""


@pytest.fixture(scope="module")
def directories(
    tmp_path_factory: pytest.TempPathFactory,
    sentencepiece_base: Path,
    chat_directory: Path,
    user_defined_base: Path,
    byte_level_base: Path,
    ignore_merges_base: Path,
) -> dict[str, Path]:
    """Extended tokenizers of every kind of base, and a trained one."""
    root = tmp_path_factory.mktemp("made")
    bases = {
        "model": sentencepiece_base,
        "chat": chat_directory,
        "user_defined": user_defined_base,
        "byte_level": byte_level_base,
        "ignore_merges": ignore_merges_base,
    }
    for name, base in bases.items():
        write_extension(extend_from_corpus(load_base(base), chinese(600), 60), root / name)
    (root / "text.txt").write_text(ENGLISH * 30 + "".join(chinese(300)), encoding="utf-8")
    train_tokenizer([root / "text.txt"], root / "trained", vocab_size=500)
    return {name: root / name for name in (*bases, "trained")}


def texts() -> list[str]:
    rng = random.Random(11)
    alphabet = "ab 1\n\t我们，。<s>/|é😀\u3000\u2581th"
    more = ["".join(rng.choices(alphabet, k=rng.randint(1, 20))) for _ in range(600)]
    return [*EDGES, *fuzzed(400), *more, *chinese(30, seed=9), *ENGLISH.split("\n")]


@pytest.mark.parametrize("version", VERSIONS)
def test_ids_and_settings_are_ours_and_stay_so(version: str, directories: dict[str, Path], tmp_path: Path) -> None:
    environment = {**os.environ, "USE_TORCH": "0", "HF_HUB_OFFLINE": "1"}
    if version != "own":
        if not (OLDER / version).is_dir():
            pytest.skip(f"transformers {version} is not there: make test-hf4 installs it")
        environment["PYTHONPATH"] = str(OLDER / version)
    # Copies: each version saves its own beside them.
    paths = {name: str(tmp_path / name) for name in directories}
    for name, path in directories.items():
        (tmp_path / name).mkdir()
        for file in path.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    plain = [text for text in texts() if "<" not in text and "\u2581" not in text][:200]
    reloads_slow = version not in SAVES_ANOTHER_CLASS
    job = {"directories": paths, "texts": texts(), "plain": plain, "reloads_slow": reloads_slow}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "job.json"), str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    for name, loads in found.items():
        has_model = (Path(paths[name]) / "tokenizer.model").is_file()
        ours = load_tokenizer("SentencePiece" if has_model else "HuggingFace", paths[name])
        again = load_tokenizer("HuggingFace", paths[name] + "-again")
        expected = [ours.encode(text) for text in job["texts"]]
        assert [again.encode(text) for text in job["texts"]] == expected, name
        assert (again.eod, again.vocab_size) == (ours.eod, ours.vocab_size)
        assert len(loads) == (4 if reloads_slow else 3)
        for one in loads:
            assert version in ("own", one["version"])
            for text, ids, right in zip(job["texts"], one["ids"], expected, strict=True):
                assert ids == right, (name, text)
            assert one["decoded"] == [ours.decode(ours.encode(text)) for text in plain], name
            assert one["length"] == ours.vocab_size
            assert {key: one[key] for key in SETTINGS[name]} == SETTINGS[name], name
            begins = {"chat": 1, "ignore_merges": len_of_base(directories["ignore_merges"])}.get(name)
            assert one["with_special"] == [*([begins] if begins else []), *ours.encode("the people")], name


def len_of_base(directory: Path) -> int:
    """Id of <|begin_of_text|>, the token behind the ranks."""
    return json.loads((directory / "tokenizer.json").read_text())["added_tokens"][0]["id"]


MODEL = {"named": ["<s>", "</s>", "<unk>", None], "special": ["</s>", "<s>", "<unk>"], "chat": None}

SETTINGS: dict[str, dict[str, object]] = {
    "model": MODEL,
    "user_defined": MODEL,
    "trained": {"chat": None},
    "chat": {
        "named": ["<s>", "</s>", "<unk>", "<unk>"],
        "special": ["</s>", "<s>", "<unk>"],
        "padding_side": "left",
        "most": 4096,
        "chat": "user: hi",
    },
    "byte_level": {"named": [None, "<|end|>", None, None], "special": ["<|end|>"], "most": None},
    "ignore_merges": {
        "named": ["<|begin_of_text|>", "<|end_of_text|>", None, None],
        "special": ["<|begin_of_text|>", "<|end_of_text|>"],
        "most": 8192,
        "chat": "user: hi",
    },
}
