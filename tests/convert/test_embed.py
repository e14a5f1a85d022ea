"""An extended model: new rows as said, all else to the bit, files that load; checked against transformers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_hf, read_json, run_python, same_bits, weights
from safetensors.torch import load_file, save_file
from support.extended import (
    BYTE_PIECES,
    PIECES,
    make_byte_level,
    make_sentencepiece,
    size_of,
    spelled_by_merges,
    spelled_by_sentencepiece,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from megatron_lm_zh.convert.embedding.extend import Options, Result, extend_embedding, rows_for
from megatron_lm_zh.convert.embedding.methods import METHODS
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.to_hf import to_hf
from megatron_lm_zh.tokenizer.load import load_tokenizer

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tokenizers(tmp_path: Path) -> tuple[Path, Path]:
    """A SentencePiece base and its extension."""
    return make_sentencepiece(tmp_path / "tokenizers")


def model_for(base: Path, directory: Path, **config: Any) -> Path:
    """A random model with the rows that a tokenizer has ids, and that tokenizer."""
    make_hf(directory, **{"vocab_size": size_of(base)} | config)
    load_tokenizer("SentencePiece", base).save_huggingface(directory)
    return directory


def extend(source: Path, tokenizer: Path, output: Path, **options: Any) -> Result:
    """Runs without a word."""
    return extend_embedding(source, tokenizer, output, Options(**options), lambda line: None)


def expected_rows(rows: torch.Tensor, parts: list[list[int]], method: str, base: Path) -> torch.Tensor:
    """[n, h] by the definitions, a token at a time."""
    made = []
    sizes = load_tokenizer("SentencePiece", base).token_sizes()[:, 0]
    for ids in parts:
        own = rows.double()[ids]
        shares = torch.tensor([max(int(sizes[id_]), 1) if method == "byte-mean" else 1 for id_ in ids]).double()
        row = (own * (shares / shares.sum())[:, None]).sum(0)
        if method == "centred-scaled-mean":
            centre = rows.double()[: size_of(base)].mean(0)
            own, row = own - centre, row - centre
            norm = sum(float(one.norm()) for one in own) / len(ids)
            row = centre + torch.nn.functional.normalize(row, dim=0) * norm
        if method == "scaled-mean":
            row = torch.nn.functional.normalize(row, dim=0) * sum(float(one.norm()) for one in own) / len(ids)
        made.append(row)
    return torch.stack(made)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("method", ["scaled-mean", "centred-scaled-mean", "mean", "byte-mean"])
def test_rows_of_pieces(
    tokenizers: tuple[Path, Path], tmp_path: Path, method: str, dtype: torch.dtype, tied: bool
) -> None:
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf", dtype=dtype, tied=tied)
    result = extend(source, new, tmp_path / "out", method=method, output_method=method)
    before, after = weights(source), weights(tmp_path / "out")
    tables = {INPUT} if tied else {INPUT, OUTPUT}
    parts = [spelled_by_sentencepiece(base, piece) for piece in PIECES]
    for name in tables:
        old, table = before.pop(name), after.pop(name)
        assert table.dtype == dtype and len(table) == size_of(new)
        assert same_bits({"": table[: len(old)]}, {"": old})
        wanted = expected_rows(old, parts, method, base)
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8 * float(wanted.abs().max())
        assert float((table[len(old) :].double() - wanted).abs().max()) < tolerance
        assert result.norms[name].base == pytest.approx(float(old.double().norm(dim=1).mean()))
        assert result.norms[name].new == pytest.approx(float(table[len(old) :].double().norm(dim=1).mean()))
    assert same_bits(before, after)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_rows_that_give_logits_have_a_method_of_their_own(
    tokenizers: tuple[Path, Path], tmp_path: Path, tied: bool
) -> None:
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf", tied=tied)
    chosen: dict[str, dict[str, Any]] = {
        "scaled-mean/scaled-mean": {},
        "scaled-mean/centred-scaled-mean": {"output_method": "centred-scaled-mean"},
        "byte-mean/byte-mean": {"method": "byte-mean"},
        "normal/byte-mean": {"method": "normal", "output_method": "byte-mean"},
        "mean/scaled-mean": {"method": "mean", "output_method": "scaled-mean"},
    }
    for number, (methods, options) in enumerate(chosen.items()):
        result = extend(source, new, tmp_path / f"out{number}", **options)
        first, second = methods.split("/")
        assert result.methods == ({INPUT: second} if tied else {INPUT: first, OUTPUT: second})
        for name, method in result.methods.items():
            extend(source, new, tmp_path / f"{number}{name}", method=method, output_method=method)
            assert torch.equal(weights(tmp_path / f"out{number}")[name], weights(tmp_path / f"{number}{name}")[name])


def test_the_mean_is_what_transformers_computes(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """The recipe with transformers: resize, then the mean of the input and output rows of each piece's tokens."""
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf")
    extend(source, new, tmp_path / "out", method="mean")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    first = size_of(base)
    model.resize_token_embeddings(size_of(new), mean_resizing=False)
    with torch.no_grad():
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            for number, piece in enumerate(PIECES):
                table[first + number] = table[spelled_by_sentencepiece(base, piece)].mean(0)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(made.state_dict()[name], tensor, rtol=0, atol=1e-6), name


def test_english_has_the_same_logits_of_old_ids(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf")
    extend(source, new, tmp_path / "out")
    before, after = (AutoTokenizer.from_pretrained(path) for path in (source, tmp_path / "out"))
    text = "The cat sat on the mat, and the dog is there."
    ids = before(text, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, after(text, return_tensors="pt")["input_ids"])
    assert len(after("天下大势")["input_ids"]) < len(before("天下大势")["input_ids"])
    loaded = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (source, tmp_path / "out")]
    with torch.no_grad():
        old, extended = (model(ids, output_hidden_states=True) for model in loaded)
    assert torch.equal(old.hidden_states[-1], extended.hidden_states[-1])
    # the same dot products; a wider matrix product may add in another order
    assert torch.allclose(old.logits, extended.logits[..., : size_of(base)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["vocabulary-mean", "normal"])
def test_random_rows_have_the_bases_mean_and_deviation(tmp_path: Path, method: str) -> None:
    base, new = make_sentencepiece(tmp_path / "tokenizers", [chr(0x3400 + number) for number in range(2000)])
    source = model_for(base, tmp_path / "hf", hidden_size=24)
    tensors = weights(source)
    tensors[INPUT] = tensors[INPUT] * torch.linspace(0.5, 2, 24) + torch.linspace(-1, 1, 24)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    extend(source, new, tmp_path / "one", method=method, seed=3)
    extend(source, new, tmp_path / "two", method=method, seed=3)
    extend(source, new, tmp_path / "three", method=method, seed=4)
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert same_bits(one, two) and not same_bits(one, three)
    share = 0.01 if method == "vocabulary-mean" else 1.0
    for name in (INPUT, OUTPUT):
        old, rows = tensors[name].double(), one[name][size_of(base) :].double()
        assert torch.allclose(rows.mean(0), old.mean(0), rtol=0, atol=0.15 * share * float(old.std(0).max()))
        assert torch.allclose(rows.std(0), share * old.std(0), rtol=0.1)
        assert len(rows.unique(dim=0)) == len(rows)
    noise = [(one[name][size_of(base) :] - tensors[name].mean(0)).flatten().double() for name in (INPUT, OUTPUT)]
    assert abs(float(torch.corrcoef(torch.stack(noise))[0, 1])) < 0.1, "the two tables draw apart"


def test_methods_say_what_they_do() -> None:
    assert all(method.__doc__ for method in METHODS.values())


def test_shards_keep_their_names_and_other_tensors_their_bytes(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf")
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(source, max_shard_size="100KB")
    (source / "model.safetensors").unlink()
    files = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(files) > 3
    lines: list[str] = []
    extend_embedding(source, new, tmp_path / "out", Options(), lines.append)
    assert len(lines) == len(files) and lines[0].startswith(f"1 of {len(files)}: {files[0]}")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == files
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    old_index = read_json(source / "model.safetensors.index.json")
    assert index["weight_map"] == old_index["weight_map"]
    for name in files:
        held = {key for key, file in index["weight_map"].items() if file == name}
        assert load_file(tmp_path / "out" / name).keys() == held
        if not {INPUT, OUTPUT} & load_file(source / name).keys():
            assert (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
            assert (source / name).stat().st_ino != (tmp_path / "out" / name).stat().st_ino
    made = weights(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in made.values())
    if "total_parameters" in index["metadata"]:
        assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in made.values())
    assert load_in_transformers(tmp_path / "out").keys() == made.keys()


def load_in_transformers(directory: Path) -> dict[str, torch.Tensor]:
    """The state of the loaded model; every key must be in its place."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.state_dict()


def test_tensors_of_any_dtype_stay_aligned(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """One odd row of bfloat16 more must not shift what follows off its item size."""
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf", hidden_size=48)
    tensors = {name: tensor.bfloat16() for name, tensor in weights(source).items()}
    for name in (INPUT, OUTPUT):
        tensors[name] = tensors[name][:, :5].contiguous()
    tensors |= {
        "model.layers.0.scale": torch.rand(7),
        "model.layers.0.steps": torch.arange(3),
        "model.layers.0.codes": torch.arange(5, dtype=torch.uint8),
        "model.layers.0.small": torch.rand(9).to(torch.float8_e4m3fn),
        "model.layers.0.one": torch.tensor([2.5], dtype=torch.float64),
    }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt", "by": "us"})
    extend(source, new, tmp_path / "out")
    made = weights(tmp_path / "out")
    for name in (INPUT, OUTPUT):
        assert same_bits({"": tensors.pop(name)}, {"": made.pop(name)[: size_of(base)]})
    assert same_bits(tensors, made)
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt", "by": "us"}
    assert header["model.layers.0.scale"]["data_offsets"][0] % 4 == 0


def test_of_config_json_only_the_size_changes(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf")
    text = (source / "config.json").read_text()
    text = text.replace("{", '{\n   "a_note": "naïve \\"vocab_size\\": 12",\n "inner": {"vocab_size": 77},', 1)
    (source / "config.json").write_text(text)
    extend(source, new, tmp_path / "out")
    old, made = text.splitlines(), (tmp_path / "out" / "config.json").read_text().splitlines()
    differ = [(one, two) for one, two in zip(old, made, strict=True) if one != two]
    assert differ == [(f'  "vocab_size": {size_of(base)}', f'  "vocab_size": {size_of(new)}')]


def test_a_size_inside_text_config(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf")
    config = read_json(source / "config.json")
    (source / "config.json").write_text(json.dumps({"model_type": "both", "text_config": config, "vision": {"a": 1}}))
    extend(source, new, tmp_path / "out")
    config["vocab_size"] = size_of(new)
    assert read_json(tmp_path / "out" / "config.json")["text_config"] == config


PADDED = [  # rows of the source, its ids, new ids, asked multiple -> rows
    (32000, 32000, 49953, None, 49953),
    (32000, 32000, 49953, 64, 49984),
    (50257, 50257, 55257, None, 55257),
    (151936, 151646, 151900, None, 151936),
    (151936, 151646, 161646, None, 161664),
    (152064, 151646, 161646, None, 161664),
    (32016, 32000, 40001, None, 40016),
    (101, 100, 120, None, 120),
    (151936, 151646, 151900, 1, 151936),
    (151936, 151646, 151900, 1000, 152000),
]


@pytest.mark.parametrize(("rows", "base", "new", "multiple", "wanted"), PADDED)
def test_how_many_rows(rows: int, base: int, new: int, multiple: int | None, wanted: int) -> None:
    assert rows_for(rows, base, new, multiple) == wanted


@pytest.mark.parametrize("spare", [6, 10, 40])
@pytest.mark.parametrize("multiple", [None, 50])
def test_new_ids_take_padding_rows(
    tokenizers: tuple[Path, Path], tmp_path: Path, spare: int, multiple: int | None
) -> None:
    base, new = tokenizers
    ids, new_ids = size_of(base), size_of(new)
    source = model_for(base, tmp_path / "hf", vocab_size=ids + spare)
    result = extend(source, new, tmp_path / "out", multiple=multiple, output_method="scaled-mean")
    rows = rows_for(ids + spare, ids, new_ids, multiple)
    assert (result.kept, result.new, result.padding) == (ids, new_ids - ids, rows - new_ids)
    assert read_json(tmp_path / "out" / "config.json")["vocab_size"] == rows
    parts = [spelled_by_sentencepiece(base, piece) for piece in PIECES]
    for name in (INPUT, OUTPUT):
        old, made = weights(source)[name], weights(tmp_path / "out")[name]
        assert len(made) == rows and torch.equal(made[:ids], old[:ids])
        wanted = expected_rows(old, parts, "scaled-mean", base)
        assert torch.allclose(made[ids:new_ids].double(), wanted, rtol=0, atol=1e-6)
        assert torch.equal(made[new_ids : ids + spare], old[new_ids:])
        assert not made[max(new_ids, ids + spare) :].any()
    load_in_transformers(tmp_path / "out")


def test_it_converts_and_comes_back(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """339 rows are no multiple of 128: the checkpoint pads them, the way back cuts them."""
    base, new = tokenizers
    extend(model_for(base, tmp_path / "hf"), new, tmp_path / "out")
    from_hf(tmp_path / "out", tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    assert same_bits(weights(tmp_path / "out"), weights(tmp_path / "back"))
    assert read_json(tmp_path / "back" / "config.json")["vocab_size"] == size_of(new)


def test_gpt2_and_a_byte_level_tokenizer(tmp_path: Path) -> None:
    base, new = make_byte_level(tmp_path / "tokenizers")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=size_of(base), n_embd=32, n_layer=2, n_head=2, n_positions=64))
    model.save_pretrained(tmp_path / "hf")
    shutil.copy(base / "tokenizer.json", tmp_path / "hf")
    shutil.copy(base / "tokenizer_config.json", tmp_path / "hf")
    extend(tmp_path / "hf", new, tmp_path / "out", method="mean")
    name = "transformer.wte.weight"
    old, made = weights(tmp_path / "hf"), weights(tmp_path / "out")
    for number, piece in enumerate(BYTE_PIECES):
        wanted = old[name].double()[spelled_by_merges(base, piece)].mean(0)
        assert torch.allclose(made[name][size_of(base) + number].double(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(made.pop(name)[: size_of(base)], old.pop(name)) and same_bits(old, made)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight.data_ptr() == loaded.transformer.wte.weight.data_ptr()


def test_copies_and_a_bias(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """A tied head that is in the file, DeepSeek's copy in its last layer, and a bias with a number an id."""
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf", tied=True)
    tensors = weights(source)
    bias = torch.randn(size_of(base))
    copies = (OUTPUT, "model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight")
    tensors |= {name: tensors[INPUT].clone() for name in copies} | {"lm_head.bias": bias}
    save_file(tensors, source / "model.safetensors")
    for method in METHODS:
        extend(source, new, tmp_path / method, method=method)
        made = weights(tmp_path / method)
        for name in copies:
            assert torch.equal(made[name], made[INPUT])
        assert torch.equal(made["lm_head.bias"][: len(bias)], bias) and len(made["lm_head.bias"]) == size_of(new)
    for number, piece in enumerate(PIECES):
        wanted = bias[spelled_by_sentencepiece(base, piece)].mean()
        row = weights(tmp_path / "scaled-mean")["lm_head.bias"][len(bias) + number]
        assert math.isclose(float(row), float(wanted), abs_tol=1e-6)


def test_a_piece_that_the_base_cannot_spell(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = make_byte_level(tmp_path / "bytes", ["天下"])
    content = json.loads((new / "tokenizer.json").read_text())
    content["model"]["vocab"]["☃"] = size_of(new)  # no byte has this character
    (new / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    source = make_hf(tmp_path / "hf", vocab_size=size_of(base))
    assert extend(source, new, tmp_path / "out", base_tokenizer=base).unspelled == 1
    for name in (INPUT, OUTPUT):
        old, made = weights(source)[name], weights(tmp_path / "out")[name]
        assert torch.allclose(made[-1].double(), old.double().mean(0), rtol=0, atol=1e-6)


def test_what_is_carried_along(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = tokenizers
    source = model_for(base, tmp_path / "hf")
    carried = {"modeling_own.py": "class Own: ...", "README.md": "# A model", "LICENSE": "free"}
    carried |= {"generation_config.json": '{"eos_token_id": 2}', "chat_template.jinja": "{{ messages }}"}
    stale = {"pytorch_model.bin": "x", "pytorch_model.bin.index.json": "{}", "model.gguf": "x", "vocab.json": "{}"}
    for name, content in (carried | stale).items():
        (source / name).write_text(content)
    (source / ".gitattributes").write_text("*.bin")
    (new / "extension.json").write_text('{"base_vocab_size": 1, "pieces": 10}')
    result = extend(source, new, tmp_path / "out")
    assert result.left_out == ("model.gguf", "pytorch_model.bin", "pytorch_model.bin.index.json")
    for name, content in carried.items():
        assert (tmp_path / "out" / name).read_text() == content
    assert not {path.name for path in (tmp_path / "out").iterdir()} & {*stale, ".gitattributes"}
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (new / "tokenizer.model").read_bytes()
    record = read_json(tmp_path / "out" / "extension.json")
    assert (record["base_vocab_size"], record["pieces"]) == (size_of(base), 10)
    assert record["embedding"]["methods"] == {INPUT: "scaled-mean", OUTPUT: "scaled-mean"}
    assert record["embedding"]["new"] == len(PIECES)
    assert load_tokenizer("HuggingFace", tmp_path / "out").fingerprint == result.fingerprint


def test_whose_chat_template(tmp_path: Path) -> None:
    """The new tokenizer's; the source's where the new one has none."""
    base, new = make_byte_level(tmp_path / "tokenizers")
    source = make_hf(tmp_path / "hf", vocab_size=size_of(base))
    for path in base.iterdir():
        shutil.copy(path, source)
    config = json.loads((new / "tokenizer_config.json").read_text())
    for name, template, wanted in (("own", "{{ 1 }}", "{{ 1 }}"), ("none", None, "{{ messages }}")):
        own = {key: value for key, value in config.items() if key != "chat_template"}
        (new / "tokenizer_config.json").write_text(json.dumps(own | ({"chat_template": template} if template else {})))
        extend(source, new, tmp_path / name)
        assert read_json(tmp_path / name / "tokenizer_config.json")["chat_template"] == wanted
        assert AutoTokenizer.from_pretrained(tmp_path / name).chat_template == wanted
    (new / "chat_template.jinja").write_text("{{ 2 }}")
    (source / "chat_template.jinja").write_text("{{ 3 }}")
    extend(source, new, tmp_path / "file")
    assert (tmp_path / "file" / "chat_template.jinja").read_text() == "{{ 2 }}"


def test_it_needs_no_megatron(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    code = """
import sys
from megatron_lm_zh.cli.main import main_for_arguments
assert main_for_arguments(["tokenizer", "embed", "--from", sys.argv[1], "--tokenizer", sys.argv[2], "--output",
    sys.argv[3]]) == 0
print([name for name in ("megatron", "transformers") if name in sys.modules])
"""
    base, new = tokenizers
    printed = run_python(code, model_for(base, tmp_path / "hf"), new, tmp_path / "out").splitlines()
    assert printed[-1] == "[]"
    counts = f"{size_of(new)} rows, {size_of(base)} of them kept, 10 new, 0 padding; fingerprint "
    assert printed[0].startswith(f"{tmp_path / 'out'}: {counts}")
