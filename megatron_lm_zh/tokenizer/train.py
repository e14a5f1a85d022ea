"""Training a SentencePiece BPE tokenizer on text files; the same input gives the same tokenizer."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.tokenizer.sentencepiece import MODEL_FILE, SentencePieceTokenizer

LONGEST_LINE = 2048
"""Characters; longer lines are cut, as SentencePiece leaves out sentences above its limit in bytes."""


def train_tokenizer(inputs: Sequence[Path], output: Path, *, vocab_size: int, json_key: str = "text") -> Path:
    """Trains a byte-fallback BPE and writes ``output``/tokenizer.model and its Hugging Face files.

    Text is taken as it is (no normalisation, no space put before it), digits are tokens of their own, 99.95% of the
    characters seen get a token, the others are spelled in bytes; so every text comes back exactly (but U+2581, which
    stands for a space). All the text is held in memory. Ids: 0 unknown, 1 beginning of sequence, 2 end of sequence
    (ends documents), then 256 bytes.

    Args:
        inputs: .jsonl files (one object a line, text under ``json_key``) or .txt files.
        output: directory; it is made when it does not exist.
        vocab_size: number of token ids.

    Returns:
        The directory, loadable as type SentencePiece and as type HuggingFace.

    Raises:
        UserError: an input is missing or broken, or the vocabulary size does not suit the text.
    """
    for path in inputs:
        if path.suffix not in (".jsonl", ".txt"):
            raise UserError(f"unknown kind of file {path.suffix!r}", where=str(path), expected=".jsonl or .txt")
        if not path.is_file():
            raise UserError("no such file", where=str(path))
    lines = [line for path in inputs for line in _lines(path, json_key)]
    if not lines:
        raise UserError("no text to train on", where=", ".join(map(str, inputs)))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9995,
            max_sentence_length=4 * LONGEST_LINE,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # Messages read "INTERNAL: file.cc(12) [condition] what is wrong".
        raise UserError(
            f"SentencePiece cannot train {vocab_size} ids on this text: {str(error).rpartition('] ')[2]}",
            where="--vocab-size",
        ) from error
    output.mkdir(parents=True, exist_ok=True)
    write_bytes(output / MODEL_FILE, model.getvalue())
    SentencePieceTokenizer(output).save_huggingface(output)
    return output


def _lines(path: Path, json_key: str) -> Iterator[str]:
    """Lines of text of one file, none empty, none longer than LONGEST_LINE."""
    number = 0
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, 1):  # noqa: B007 - the number is for the message below
                text = line if path.suffix == ".txt" else json.loads(line)[json_key]
                for part in text.split("\n"):
                    for at in range(0, len(part), LONGEST_LINE):
                        yield part[at : at + LONGEST_LINE]
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error.reason}", where=f"{path}:{number + 1}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"broken line ({type(error).__name__}: {error})",
            where=f"{path}:{number}",
            expected=f'a JSON object with a text "{json_key}"',
        ) from error
