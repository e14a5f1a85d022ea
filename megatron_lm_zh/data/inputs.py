"""What a run reads, opened and checked before anything else happens: tokenizer, vocabulary, datasets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.data.datasets import Datasets, build_datasets
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.base import Tokenizer
from megatron_lm_zh.tokenizer.extension import RECORD_FILE, base_vocab_size
from megatron_lm_zh.tokenizer.load import load_tokenizer


@dataclass(frozen=True)
class Inputs:
    """A config whose vocabulary is known, its tokenizer and its datasets."""

    config: Config
    tokenizer: Tokenizer
    datasets: Datasets


def open_inputs(config: Config, *, train_steps: int | None = None) -> Inputs:
    """Opens what `config.data` names; writes nothing.

    Args:
        train_steps: steps that the training data must last for; default: those of the config.

    Raises:
        UserError: a file is missing or damaged, was made with another tokenizer, or does not fit the embedding.
    """
    tokenizer = load_tokenizer(config.data.tokenizer.type, config.data.tokenizer.path)
    config = _with_base_vocabulary(_with_vocabulary(config, tokenizer))
    samples = config.batch_sizes.consumed_by(train_steps or config.total_steps)
    return Inputs(config, tokenizer, build_datasets(config, tokenizer, train_samples=samples))


def _with_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    """The config with `model.vocab_size` set from the tokenizer where it was left open."""
    asked = config.model.vocab_size
    if asked is not None and asked < tokenizer.vocab_size:
        raise UserError(
            f"{asked} rows for a tokenizer of {tokenizer.vocab_size} ids",
            where="model.vocab_size",
            expected=f"at least {tokenizer.vocab_size}",
            mend="leave it out to take the tokenizer's size",
        )
    return replace(config, model=replace(config.model, vocab_size=asked or tokenizer.vocab_size))


def _with_base_vocabulary(config: Config) -> Config:
    """The config with `optim.base_vocab_size` set from the tokenizer's record where the body is frozen at first."""
    if not config.optim.freeze_body_steps or config.optim.base_vocab_size is not None:
        return config
    size = base_vocab_size(config.data.tokenizer.path)
    if size is None:
        raise UserError(
            f"{config.data.tokenizer.path} has no {RECORD_FILE}, so it is not known which rows are new",
            where="optim.freeze_body_steps",
            mend="set optim.base_vocab_size to the number of ids before the extension",
        )
    return replace(config, optim=replace(config.optim, base_vocab_size=size))
