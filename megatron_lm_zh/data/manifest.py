"""The manifest beside a dataset: which text and which tokenizer it was made from, how much it holds, its checksums."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lm_zh.data.indexed import bin_path
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes
from megatron_lm_zh.tokenizer.base import Tokenizer

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that made a dataset."""

    type: str
    fingerprint: str
    vocab_size: int


@dataclass(frozen=True)
class SourceRecord:
    """One input file: its name without directory, SHA-256 of its bytes, documents taken from it."""

    path: str
    sha256: str
    documents: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `P_<key>_document.json` says."""

    format_version: int = FORMAT_VERSION
    tokenizer: TokenizerRecord
    sources: tuple[SourceRecord, ...]
    json_key: str
    append_eod: bool
    documents: int
    tokens: int
    """Tokens in the .bin file, ends of documents included."""
    bytes: int
    """UTF-8 bytes of the documents' text."""
    characters: int
    """Unicode characters of the documents' text."""
    skipped: int
    """Input lines left out because of `--on-error skip`."""
    dtype: str
    bin_size: int
    bin_sha256: str
    idx_sha256: str


def manifest_path(prefix: str | Path) -> Path:
    """The manifest of a dataset."""
    return Path(f"{prefix}.json")


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Writes the manifest as readable JSON, atomically."""
    text = json.dumps(dataclasses.asdict(manifest), ensure_ascii=False, indent=2)
    write_bytes(manifest_path(prefix), f"{text}\n".encode())


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest of a dataset, or None where there is none.

    Raises:
        UserError: the file is damaged, or of a format version that this program does not know.
    """
    path = manifest_path(prefix)
    if not path.is_file():
        return None
    mend = "preprocess the dataset again, or delete the manifest to train without its checks"
    try:
        fields: dict[str, Any] = json.loads(path.read_bytes())
        version = fields["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(
                f"manifest format {version!r}", where=str(path), expected=f"format {FORMAT_VERSION}", mend=mend
            )
        fields["tokenizer"] = TokenizerRecord(**fields["tokenizer"])
        fields["sources"] = tuple(SourceRecord(**source) for source in fields["sources"])
        return Manifest(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a dataset manifest ({error})", where=str(path), mend=mend) from error


def check_manifest(prefix: str | Path, tokenizer: Tokenizer) -> Manifest | None:
    """The manifest of a dataset, once it agrees with the tokenizer and with the .bin file; None where there is none.

    Raises:
        UserError: the dataset was made with another tokenizer, or its .bin file is not the one described.
    """
    manifest = read_manifest(prefix)
    if manifest is None:
        return None
    if manifest.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"made with another tokenizer ({manifest.tokenizer.type}, {manifest.tokenizer.vocab_size} ids, "
            f"fingerprint {manifest.tokenizer.fingerprint[:12]})",
            where=str(prefix),
            expected=f"the tokenizer of data.tokenizer ({tokenizer.vocab_size} ids, "
            f"fingerprint {tokenizer.fingerprint[:12]})",
            mend="preprocess the text with this tokenizer, or name the other one",
        )
    size = bin_path(prefix).stat().st_size
    if size != manifest.bin_size:
        raise UserError(
            f"{size} bytes, not what its manifest describes",
            where=str(bin_path(prefix)),
            expected=f"{manifest.bin_size} bytes",
            mend="the file is truncated or was replaced: preprocess or copy it again",
        )
    return manifest
