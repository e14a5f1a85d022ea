"""Hugging Face to megatron and back: every bit, every key, equal logits, in files that megatron-core reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_models import logits, make_hf, make_tokenizer, read_json, run_python, same_bits, weights

from megatron_lm_zh.convert import to_hf as to_hf_module
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.megatron_files import MegatronWeights
from megatron_lm_zh.convert.to_hf import to_hf

# Loads each key twice: whole, and as the two halves that two tensor-parallel ranks would ask for.
LOAD_WITH_MEGATRON = """
import sys, torch
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=0, world_size=1)
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
expected = torch.load(sys.argv[2])
state = {}
for name, tensor in expected.items():
    state[name + "/whole"] = ShardedTensor.from_rank_offsets(name, torch.empty_like(tensor))
loaded = dist_checkpointing.load(state, sys.argv[1], validate_access_integrity=False)
assert all(torch.equal(loaded[name + "/whole"], tensor) for name, tensor in expected.items())
for half in range(2):
    state = {
        name: ShardedTensor.from_rank_offsets(name, torch.empty_like(tensor.chunk(2)[half]), (0, half, 2))
        for name, tensor in expected.items()
    }
    loaded = dist_checkpointing.load(state, sys.argv[1], validate_access_integrity=False)
    assert all(torch.equal(loaded[name], tensor.chunk(2)[half]) for name, tensor in expected.items())
print("equal")
"""


REWRITTEN = ("transformers_version", "pretraining_tp")  # neither changes what the model computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_bit_comes_back(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    hf = make_hf(tmp_path / "hf", tied=tied, dtype=dtype, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")

    source = MegatronWeights(tmp_path / "megatron")
    assert source.specs["embedding.word_embeddings.weight"].shape == (256, 48)
    assert ("output_layer.weight" in source.specs) is not tied
    assert same_bits(weights(hf), weights(tmp_path / "back"))
    ids = torch.randint(131, (2, 40))
    assert torch.equal(logits(hf, ids), logits(tmp_path / "back", ids))
    assert not list(tmp_path.glob("*.partial"))


def test_config_comes_back(tmp_path: Path) -> None:
    theta = {"rope_type": "default", "rope_theta": 12345.0}
    other = {"rms_norm_eps": 3e-6, "head_dim": 16, "initializer_range": 0.03, "rope_parameters": theta}
    hf = make_hf(tmp_path / "hf", bos_token_id=5, eos_token_id=[6, 7], pad_token_id=8, dtype=torch.bfloat16, **other)
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")

    before, after = read_json(hf / "config.json"), read_json(tmp_path / "back" / "config.json")
    assert {key: after[key] for key in before if key not in REWRITTEN} == {
        key: value for key, value in before.items() if key not in REWRITTEN
    }
    assert after["rope_theta"] == 12345 and after["torch_dtype"] == "bfloat16"  # what transformers 4 reads
    generation = "generation_config.json"
    assert (hf / generation).read_bytes() == (tmp_path / "back" / generation).read_bytes()


def test_remote_code_travels(tmp_path: Path) -> None:
    import json

    hf = make_hf(tmp_path / "hf")
    config = read_json(hf / "config.json")
    auto_map = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (hf / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    (hf / "modeling_own.py").write_text("class OwnForCausalLM: ...\n")
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    assert read_json(tmp_path / "back" / "config.json")["auto_map"] == auto_map
    assert (tmp_path / "back" / "modeling_own.py").read_text() == (hf / "modeling_own.py").read_text()


def test_a_config_of_transformers_4_reads_the_same(tmp_path: Path) -> None:
    import json

    hf = make_hf(tmp_path / "hf", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    config = read_json(hf / "config.json")
    del config["rope_parameters"], config["dtype"], config["head_dim"]
    (hf / "config.json").write_text(json.dumps(config | {"rope_theta": 500000.0, "rope_scaling": None}))
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    after = read_json(tmp_path / "back" / "config.json")
    assert after["rope_theta"] == after["rope_parameters"]["rope_theta"] == 500000
    assert after["head_dim"] == 8


def test_tokenizer_files_travel_verbatim(tmp_path: Path) -> None:
    hf = make_hf(tmp_path / "hf", vocab_size=400)
    make_tokenizer(hf)
    (hf / "additional_chat_templates").mkdir()
    more = ["additional_chat_templates/tool.jinja", "chat_template.jinja", "qwen.tiktoken", "spiece.model", "code.py"]
    for name in more:
        (hf / name).write_text(f"{name}: 天下\n", encoding="utf-8")
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    names = [path.name for path in hf.glob("tokenizer*")] + more
    assert len(names) >= 2 + len(more)
    assert all((hf / name).read_bytes() == (tmp_path / "back" / name).read_bytes() for name in names)


def test_shards_have_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_hf_module, "MAX_SHARD_BYTES", 60_000)
    hf = make_hf(tmp_path / "hf")
    from_hf(hf, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    index = read_json(tmp_path / "back" / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 2
    assert index["weight_map"].keys() == weights(hf).keys()
    assert same_bits(weights(hf), weights(tmp_path / "back"))
    ids = torch.randint(131, (1, 20))
    assert torch.equal(logits(hf, ids), logits(tmp_path / "back", ids))
    from_hf(tmp_path / "back", tmp_path / "again")
    assert MegatronWeights(tmp_path / "again").specs == MegatronWeights(tmp_path / "megatron").specs


def test_megatron_core_loads_it(tmp_path: Path) -> None:
    from_hf(make_hf(tmp_path / "hf", dtype=torch.bfloat16), tmp_path / "megatron")
    source = MegatronWeights(tmp_path / "megatron")
    torch.save({name: source.read(name) for name in source.specs}, tmp_path / "expected.pt")
    output = run_python(LOAD_WITH_MEGATRON, tmp_path / "megatron", tmp_path / "expected.pt", tmp_path / "store")
    assert output.endswith("equal\n")
