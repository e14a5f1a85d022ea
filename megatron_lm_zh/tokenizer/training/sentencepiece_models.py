"""Training of SentencePiece models: BPE and unigram."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.tokenizer.sentencepiece import MODEL_FILE, SentencePieceTokenizer
from megatron_lm_zh.tokenizer.training.options import Options, Texts

LONGEST_LINE = 2048
"""Characters; longer lines are cut, as SentencePiece leaves out sentences above its limit in bytes."""
OWN_TOKENS = ("<unk>", "<s>", "</s>")
NORMALIZATIONS = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
"""SentencePiece's own rules; _cf folds case, nmt_ changes white space and control characters, too."""
LONGEST_PIECE = 16
"""SentencePiece's default, in characters."""
THREADS = 16
"""SentencePiece's default. A unigram model's sums, and so its pieces, differ with the number of threads."""


def train_bpe(texts: Texts, options: Options, directory: Path) -> SentencePieceTokenizer:
    """Trains a BPE; see `_train`."""
    return _train("bpe", texts, options, directory)


def train_unigram(texts: Texts, options: Options, directory: Path) -> SentencePieceTokenizer:
    """Trains a unigram model; see `_train`."""
    return _train("unigram", texts, options, directory)


def _train(model_type: str, texts: Texts, options: Options, directory: Path) -> SentencePieceTokenizer:
    """Writes tokenizer.model and its Hugging Face files.

    No space is put before a text, and spaces stay as they are. Ids: 0 unknown, 1 beginning of sequence, 2 end of
    sequence (ends documents), the padding token where there is one, other special tokens, then 256 bytes.

    Raises:
        UserError: the vocabulary size does not suit the text.
    """
    special = len(OWN_TOKENS) + len(options.special_tokens) + (options.pad_token is not None)
    bytes_ = 256 if options.byte_fallback else 0
    options.check_room(special + bytes_ + 1, f"{special} special tokens, {bytes_} bytes and the text's characters")
    given: dict[str, Any] = {}  # SentencePiece writes what it is given into the model: no defaults
    if options.special_tokens:
        given["control_symbols"] = list(options.special_tokens)
    if options.pad_token is not None:
        given["pad_piece"] = options.pad_token
    if options.longest_piece not in (None, LONGEST_PIECE):
        given["max_sentencepiece_length"] = options.longest_piece
    if model_type == "unigram":
        given["num_threads"] = THREADS
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(texts),
            model_writer=model,
            model_type=model_type,
            vocab_size=options.vocab_size,
            byte_fallback=options.byte_fallback,
            split_digits=options.split_digits,
            normalization_rule_name=options.normalization,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=options.character_coverage,
            max_sentence_length=4 * LONGEST_LINE,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1 if options.pad_token is None else 3,
            minloglevel=2,
            **given,
        )
    except RuntimeError as error:
        # Messages read "INTERNAL: file.cc(12) [condition] what is wrong".
        reason = str(error).rpartition("] ")[2] or str(error)
        raise UserError(
            f"SentencePiece cannot train {options.vocab_size} ids on this text: {reason}",
            where="--vocab-size",
        ) from error
    write_bytes(directory / MODEL_FILE, model.getvalue())
    tokenizer = SentencePieceTokenizer(directory)
    tokenizer.save_huggingface(directory)
    return tokenizer


def lines(texts: Texts) -> Iterator[str]:
    """Lines of the texts, none empty, none longer than LONGEST_LINE."""
    for text in texts():
        for line in text.split("\n"):
            for at in range(0, len(line), LONGEST_LINE):
                yield line[at : at + LONGEST_LINE]
