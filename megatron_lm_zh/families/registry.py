"""Which families there are: a new one is one file beside this one and one entry here."""

from __future__ import annotations

from megatron_lm_zh.errors import UserError, nearest
from megatron_lm_zh.families.baichuan import BAICHUAN
from megatron_lm_zh.families.base import Family, HuggingFace
from megatron_lm_zh.families.deepseek_v2 import DEEPSEEK_V2
from megatron_lm_zh.families.deepseek_v3 import DEEPSEEK_V3
from megatron_lm_zh.families.glm4 import GLM4
from megatron_lm_zh.families.glm4_0414 import GLM4_0414
from megatron_lm_zh.families.glm4_moe import GLM4_MOE
from megatron_lm_zh.families.gpt import GPT
from megatron_lm_zh.families.gpt2 import GPT2
from megatron_lm_zh.families.internlm2 import INTERNLM2
from megatron_lm_zh.families.llama import LLAMA
from megatron_lm_zh.families.mistral import MISTRAL
from megatron_lm_zh.families.mixtral import MIXTRAL
from megatron_lm_zh.families.qwen2 import QWEN2
from megatron_lm_zh.families.qwen2_moe import QWEN2_MOE
from megatron_lm_zh.families.qwen3 import QWEN3
from megatron_lm_zh.families.qwen3_moe import QWEN3_MOE

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GLM4,
    GLM4_0414,
    BAICHUAN,
    INTERNLM2,
    GPT2,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GLM4_MOE,
    GPT,
)


def family(name: str) -> Family:
    """The family called `name` in `model.family`; UserError names the known ones."""
    for candidate in FAMILIES:
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in FAMILIES]
    close = nearest(name, names)
    mend = f"did you mean {close}?" if close else ""
    raise UserError(f"no model family {name!r}", expected=f"one of {', '.join(names)}", mend=mend)


def families_using(key: str) -> list[str]:
    """Names of the families in which a key of the `model` section means anything."""
    return [candidate.name for candidate in FAMILIES if candidate.uses(key)]


def huggingface(name: str) -> HuggingFace:
    """The conversion tables of the family called `name`; UserError where it has none."""
    tables = family(name).huggingface
    if tables is None:
        converts = ", ".join(candidate.name for candidate in FAMILIES if candidate.huggingface)
        raise UserError(f"family {name} has no conversion to Hugging Face", expected=f"one of {converts}")
    return tables


def family_of(model_type: str) -> Family:
    """The family whose Hugging Face config.json says `model_type`; UserError names the known types."""
    known = {
        name: candidate
        for candidate in FAMILIES
        if candidate.huggingface
        for name in (candidate.huggingface.model_type, *candidate.huggingface.also_read)
    }
    if model_type not in known:
        raise UserError(f"no family converts model_type {model_type!r}", expected=f"one of {', '.join(known)}")
    return known[model_type]
