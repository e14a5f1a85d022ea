"""What a Hugging Face model computes on some ids, layer by layer, and the ids of a text.

Only for processes in which megatron-core has not been adapted to the CPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from megatron_lm_zh.convert.states import States, state_names
from megatron_lm_zh.errors import UserError


def hf_states(directory: Path, ids: Tensor, dtype: torch.dtype) -> States:
    """Hidden states and logits of ids [b, s], in fp32.

    Raises:
        UserError: transformers cannot load the directory, or does not find every weight in its place.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"transformers cannot load it: {error}", where=str(directory)) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise UserError(f"transformers reports {kind}: {sorted(map(str, info[kind]))[0]}", where=str(directory))
    with torch.no_grad():
        out = model.eval()(ids, output_hidden_states=True, use_cache=False)
    names = state_names(len(out.hidden_states) - 1)
    hidden = {name: state.float() for name, state in zip(names, out.hidden_states, strict=True)}
    return States(hidden, out.logits.float())


def ids_of(tokenizer: Path, text: str, tokens: int) -> Tensor:
    """[1, s] ids of a text as its tokenizer makes them, without special tokens, at most `tokens` of them.

    Raises:
        UserError: transformers cannot load the tokenizer, or the text is empty.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"transformers cannot load the tokenizer: {error}", where=str(tokenizer)) from error
    ids = loaded(text, add_special_tokens=False)["input_ids"][:tokens]
    if not ids:
        raise UserError("the text has no tokens")
    return torch.tensor([ids])
