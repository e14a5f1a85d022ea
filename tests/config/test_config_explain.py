"""`mlzh config explain`: every key of the schema has a manual, and an unknown one names the nearest."""

from __future__ import annotations

import pytest

from megatron_lm_zh.config.explain import explain, explain_all
from megatron_lm_zh.config.fields import all_keys, find, keys_of, valid_names
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.errors import UserError


def test_every_key_has_a_manual() -> None:
    for key in all_keys():
        name = ".".join(map(str, key.path))
        assert key.doc.endswith((".", "`.", ")")), name
        text = explain(name)
        assert text.startswith(f"{name}: {key.type_name}\ndefault: {key.default}\n")


def test_every_section_lists_its_keys() -> None:
    for name in keys_of(Config):
        text = explain(name)
        assert all(f"  {key}" in text for key in valid_names((name,)))
        assert f"  {name}" in explain_all()


def test_a_key_names_the_rules_that_read_it() -> None:
    text = explain("model.num_query_groups")
    assert "Number of key/value heads" in text
    assert "default: derived" in text
    assert "tensor_divides_query_groups: Each tensor-parallel rank holds whole key/value heads" in text


def test_items_of_lists_and_kinds() -> None:
    assert explain("data.train.0.weight").startswith("data.train.0.weight: number > 0\ndefault: 1.0")
    assert "minus_sqrt" in explain("schedule.decay_style")
    assert "kind: wsd" in explain("schedule")
    assert find(("schedule", "min_lr")).doc  # type: ignore[union-attr]  # declared by a base class


def test_an_optional_section_says_its_kinds() -> None:
    text = explain("model.rope_scaling")
    assert text.startswith("model.rope_scaling: section or null (null)\nHow the rotary embedding reaches")
    assert "kind: yarn\nYaRN (Peng et al. 2023)" in text
    assert explain("model.rope_scaling.beta_fast").startswith("model.rope_scaling.beta_fast: number > 0\ndefault: 32.0")
    assert "  rope_scaling" in explain("model")


def test_a_key_of_the_model_names_its_families() -> None:
    text = explain("model.qk_layernorm")
    normed = "qwen3, qwen3_moe, deepseek_v2, deepseek_v3"
    assert text.startswith(f"model.qk_layernorm: true or false\ndefault: false; true in {normed}\n")
    assert f"families that use it: {normed}, glm4_moe, gpt" in text
    stretched = explain("model.rope_scaling.factor")
    assert "families that use it: llama, mistral, qwen2, qwen3, " in stretched and "gpt2" not in stretched
    assert "families that use it" not in explain("model.num_layers")
    assert "default: 'swiglu'; 'gelu_tanh' in gpt2\n" in explain("model.activation")
    share = "model.rotary_percent: number > 0 and <= 1\ndefault: 1.0; 0.5 in glm4, glm4_0414\n"
    assert explain("model.rotary_percent").startswith(share)


def test_megatron_fields_come_from_its_source() -> None:
    text = explain("model.megatron.min_offloaded_tensor_size")
    assert text.startswith(
        "model.megatron.min_offloaded_tensor_size: int\ndefault: 1024 * 1024 (TransformerConfig, megatron-core 0."
    )
    assert "not to be set here: use precision.fp8_margin instead" in explain("model.megatron.fp8_margin")
    assert "not to be set here: use precision.dtype instead" in explain("optim.megatron.bf16")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.num_lyers", "did you mean model.num_layers?"),
        ("num_layers", "did you mean model.num_layers?"),
        ("modle", "did you mean model?"),
        ("model.megatron.qk_clip_alpa", "did you mean model.megatron.qk_clip_alpha?"),
        ("log.megatron.x", "no such key"),
        ("zzzzzz", "mlzh config explain lists the sections"),
        ("", "no such key"),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, words: str) -> None:
    with pytest.raises(UserError, match="no such") as caught:
        explain(key)
    assert words in str(caught.value)
