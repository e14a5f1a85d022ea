"""The export does not know the layout that saved the checkpoint: every one gives the files that one rank gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from export_ranks import save_initial
from hf_models import make_tokenizer, mlzh, read_json, same_bits, weights
from support.pool import RankPool

from megatron_lm_zh.convert.to_hf import to_hf

# Eight layers, so that four stages can hold two chunks each; sizes that four tensor-parallel ranks divide.
DENSE = """num_layers: 8, hidden_size: 32, num_attention_heads: 8, num_query_groups: 4, ffn_hidden_size: 48,
  seq_length: 32, vocab_size: {vocab}"""
# Biases, layers with and without experts in no regular order, shared experts and their gate.
EXPERTS = f"""{DENSE}, family: qwen2_moe, num_moe_experts: 4, moe_ffn_hidden_size: 16,
  moe_shared_expert_intermediate_size: 32, moe_layer_freq: [1, 0, 1, 1, 1, 1, 0, 1]"""
# Latents that tensor parallelism does not split, fp32 biases of the router in a bf16 model, a prediction module.
LATENT = """family: deepseek_v3, num_layers: 8, hidden_size: 32, num_attention_heads: 4, q_lora_rank: 16,
  kv_lora_rank: 16, qk_head_dim: 8, qk_pos_emb_head_dim: 4, v_head_dim: 8, ffn_hidden_size: 48, seq_length: 32,
  vocab_size: {vocab}, num_moe_experts: 8, moe_router_num_groups: 4, moe_router_group_topk: 2, moe_router_topk: 4,
  moe_ffn_hidden_size: 16, moe_shared_expert_intermediate_size: 32, moe_layer_freq: [0, 1, 1, 1, 1, 1, 1, 1],
  mtp_num_layers: 1"""
# Groups scored by their best expert: the family's default, and no key of config.json but topk_method.
GROUPS = LATENT.replace("deepseek_v3", "deepseek_v2").replace(",\n  mtp_num_layers: 1", "")
MODELS = {
    "dense": (DENSE, "fp32"),
    "tied": (f"{DENSE}, tie_embeddings: true", "bf16"),
    "experts": (EXPERTS, "fp32"),
    "latent": (LATENT, "bf16"),
    "groups": (GROUPS, "bf16"),
}
CONFIG = """
run: {{dir: {run}}}
model: {{{model}}}
precision: {{dtype: {dtype}}}
data: {{tokenizer: {{type: HuggingFace, path: {run}/gone}}, train: [{{path: {run}/none}}]}}
train: {{steps: 5, global_batch_size: 32}}
optim: {{lr: 0.01, use_distributed_optimizer: true}}
"""


@dataclass(frozen=True)
class Layout:
    """How a checkpoint's ranks shared the model; experts are spread over data parallelism."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    others: tuple[str, ...] = ()

    @property
    def world(self) -> int:
        """Ranks that hold every weight at least once."""
        return self.tensor * self.pipeline * self.expert

    @property
    def overrides(self) -> list[str]:
        """Overrides of the config."""
        sizes = {name: getattr(self, name) for name in ("tensor", "pipeline", "expert")}
        sequence = f"sequence={self.tensor > 1}".lower()
        return [f"parallel.{setting}" for setting in (*(f"{k}={v}" for k, v in sizes.items()), sequence, *self.others)]


def both_ends(first: int, last: int) -> tuple[str, str]:
    return f"num_layers_in_first_pipeline_stage={first}", f"num_layers_in_last_pipeline_stage={last}"


GRID = [Layout(*sizes) for sizes in itertools.product((1, 2, 4), (1, 2, 4), (1, 2))]
INTERLEAVED = ("virtual_pipeline=2",)
PIPELINES = [
    Layout(1, 2, 2, INTERLEAVED),
    Layout(1, 4, 1, both_ends(1, 3)),
    Layout(1, 4, 1, INTERLEAVED),
    Layout(2, 2, 1, ("num_layers_in_first_pipeline_stage=3",)),
    Layout(1, 4, 1, ("num_layers_in_last_pipeline_stage=5",)),
    Layout(2, 2, 1, (*INTERLEAVED, "num_layers_in_first_pipeline_stage=2")),
]
"""All on four ranks."""
# As a user may write them; the prediction module, where there is one, is the last layer but the loss.
SPELLED_OUT = {
    "": ["Et*3|t*4|t|L", "Et|t*3|t*2|t*2L"],
    "m": ["Et*3|t*4|t|mL", "Et|t*3|t*2|t*2mL"],
}


class Exports:
    """Checkpoints of one model in many layouts, and their exports."""

    def __init__(self, pool: RankPool, run: Path, model: str) -> None:
        self.run, self._pool, self._steps = run, pool, itertools.count(1)
        body, dtype = MODELS[model]
        self._tokenizer = make_tokenizer(run / "tokenizer")
        body = body.format(vocab=len(self._tokenizer))
        (run / "config.yaml").write_text(CONFIG.format(run=run, model=body, dtype=dtype))

    def of(self, world: int, layouts: list[Layout]) -> Iterator[tuple[Layout, Path]]:
        """Each layout, on a number of ranks, and what `to_hf` makes of the checkpoint that it saves."""
        steps = {next(self._steps): layout for layout in layouts}
        overrides = {step: layout.overrides for step, layout in steps.items()}
        self._pool.run(world, save_initial, str(self.run / "config.yaml"), overrides, timeout_s=550)
        for step, layout in steps.items():
            checkpoint = self.run / f"checkpoints/iter_{step:07d}"
            saved = read_json(checkpoint / "manifest.json")["layout"]
            sizes = [saved[name] for name in ("world", "tensor", "pipeline", "expert")]
            assert sizes == [world, layout.tensor, layout.pipeline, layout.expert]
            to_hf(checkpoint, self.run / f"hf{step}")
            yield layout, self.run / f"hf{step}"

    def of_one_rank(self) -> Path:
        """The export that all others must equal; no tensor in it is like another, so none can stand for another."""
        ((_, export),) = self.of(1, [Layout()])
        model = read_json(export / "config.json")
        tensors = weights(export)
        copies = 2 * model.get("num_nextn_predict_layers", 0)  # the embedding and the output layer
        assert len({tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors.values()}) == len(tensors) - copies
        return export


def assert_same_files(one: Path, two: Path, layout: Layout) -> None:
    """Every file has the same bytes; what differs in the weights is named by its tensor."""
    ours, theirs = weights(one), weights(two)
    different = [
        name for name in ours.keys() & theirs.keys() if not same_bits({name: ours[name]}, {name: theirs[name]})
    ]
    assert ours.keys() == theirs.keys() and not different, (layout, different)
    assert read_json(one / "config.json") == read_json(two / "config.json"), layout
    files = {path.name: path.read_bytes() for path in one.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= files.keys()
    assert files == {path.name: path.read_bytes() for path in two.iterdir()}, layout


def check(pool: RankPool, run: Path, model: str, worlds: dict[int, list[Layout]]) -> None:
    exports = Exports(pool, run, model)
    expected = exports.of_one_rank()
    for world, layouts in worlds.items():
        for layout, export in exports.of(world, layouts):
            assert_same_files(export, expected, layout)


@pytest.fixture(scope="module")
def many_ranks() -> Iterator[RankPool]:
    with RankPool(size=32) as pool:
        yield pool


def of_world(world: int, model: str) -> list[Layout]:
    """The grid's layouts that fill a world, of a model with experts or without."""
    has_experts = "num_moe_experts" in MODELS[model][0]
    return [layout for layout in GRID if layout.world == world and (has_experts or layout.expert == 1)]


@pytest.mark.dist
def test_layouts_of_experts_export_the_same(ranks: RankPool, tmp_path: Path) -> None:
    eight = of_world(8, "experts")
    for axis, sizes in {"tensor": {1, 2, 4}, "pipeline": {1, 2, 4}, "expert": {1, 2}}.items():
        assert {getattr(layout, axis) for layout in eight} == sizes
    check(ranks, tmp_path / "run", "experts", {8: eight, 4: PIPELINES[:2]})


@pytest.mark.dist
def test_layouts_of_a_dense_model_export_the_same(ranks: RankPool, tmp_path: Path) -> None:
    check(ranks, tmp_path / "run", "dense", {4: [Layout(4), Layout(2, 2), PIPELINES[2]]})


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "world"),
    [(model, 2**n) for model in ("experts", "dense", "latent") for n in range(1, 6) if of_world(2**n, model)],
)
def test_every_layout_of_the_grid_exports_the_same(
    many_ranks: RankPool, tmp_path: Path, model: str, world: int
) -> None:
    check(many_ranks, tmp_path / "run", model, {world: of_world(world, model)})


def test_the_grid_is_whole() -> None:
    assert len(GRID) == len(set(GRID)) == 18
    assert sorted(itertools.chain(*(of_world(2**n, "experts") for n in range(6))), key=GRID.index) == GRID


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_way_to_cut_the_pipeline_exports_the_same(ranks: RankPool, tmp_path: Path, model: str) -> None:
    module = "m" if "mtp_num_layers" in MODELS[model][0] else ""
    has_experts = "num_moe_experts" in MODELS[model][0]
    layouts = [layout for layout in PIPELINES if has_experts or layout.expert == 1]
    four, two = (f"pipeline_model_parallel_layout={letters}" for letters in SPELLED_OUT[module])
    layouts += [Layout(1, 4, 1, (four,)), Layout(1, 2, 1, (*INTERLEAVED, two))]
    check(ranks, tmp_path / "run", model, {4: layouts})


@pytest.mark.dist
@pytest.mark.slow
def test_other_ways_to_spread_experts_export_the_same(ranks: RankPool, tmp_path: Path) -> None:
    whole = "expert_tensor=1"
    layouts = [Layout(2, 1, 2, (whole,)), Layout(4, 1, 2, (whole,)), Layout(2, 2, 4, (whole,))]
    layouts += [Layout(2, 2, 2, (whole, "order=tp-cp-ep-pp-dp")), Layout(2, 1, 2, ("context=2",))]
    check(ranks, tmp_path / "run", "experts", {8: layouts})


@pytest.mark.dist
def test_a_family_without_tables_is_one_line(ranks: RankPool, tmp_path: Path) -> None:
    exports = Exports(ranks, tmp_path / "run", "dense")
    exports.of_one_rank()
    config = exports.run / "checkpoints/iter_0000001/config.yaml"
    text = config.read_text()
    config.write_text(text.replace("family: llama", "family: gpt"))
    assert config.read_text() != text
    done = mlzh("convert", "to-hf", exports.run, tmp_path / "hf")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: family gpt has no conversion to Hugging Face; expected one of llama, ")
    assert not (tmp_path / "hf").exists()
