"""A Hugging Face model at work: loaded, asked to go on with a prompt, asked to score a text.

Only for processes in which megatron-core has not been adapted to the CPU: transformers would load broken models there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from transformers.utils import logging

from megatron_lm_zh.data.windows import Windows
from megatron_lm_zh.errors import UserError


def load_model(directory: Path, device: torch.device) -> PreTrainedModel:
    """The model of a Hugging Face directory, ready for inference, in the dtype of its files.

    Raises:
        UserError: the directory holds no model that transformers loads.
    """
    if not (directory / "config.json").is_file():
        mend = "export a run with `mlzh convert to-hf RUN_DIR HF_DIR`"
        raise UserError("no config.json", where=str(directory), expected="a Hugging Face model directory", mend=mend)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, torch_dtype="auto")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"transformers cannot load it: {error}", where=str(directory)) from error
    return model.to(device).eval()


def generate(directory: Path, prompt: str, device: torch.device, *, tokens: int, temperature: float, seed: int) -> str:
    """The prompt and what the model makes of it, at most `tokens` tokens more; temperature 0 is greedy.

    Raises:
        UserError: there is no model or tokenizer, or the prompt is empty.
    """
    model = load_model(directory, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"transformers cannot load its tokenizer: {error}", where=str(directory)) from error
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(device)
    if ids.shape[1] == 0:
        raise UserError("the prompt is empty")
    set_seed(seed)
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling["temperature"] = temperature
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        **sampling,
    )
    return tokenizer.decode(out[0], skip_special_tokens=True)


def score(model: PreTrainedModel, windows: Windows, *, batch_size: int) -> float:
    """Total negative log-likelihood, in nats, of every target of the windows; `batch_size` windows a forward pass."""
    total = 0.0
    with torch.no_grad():
        for ids, counts in windows.batches(batch_size):
            rows = torch.from_numpy(ids).to(model.device)
            logits = model(input_ids=rows[:, :-1]).logits.float()  # [b, s, v]
            losses = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(counts.shape)
            total += float((losses.double().cpu() * torch.from_numpy(counts)).sum())
    return total
