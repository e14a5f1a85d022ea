"""JSON lines to Megatron datasets: the same output whatever the number of workers, all of it or none."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_lm_zh.data.documents import Chunk, EncodedChunk, encode_chunk, read_chunks
from megatron_lm_zh.data.indexed import IndexedDatasetWriter, bin_path, dtype_for, idx_path
from megatron_lm_zh.data.manifest import Manifest, SourceRecord, TokenizerRecord, manifest_path, write_manifest
from megatron_lm_zh.data.workers import ordered_map
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Job:
    """What to preprocess, how."""

    inputs: tuple[Path, ...]
    """JSONL files, one document a line."""
    output_prefix: str
    """Datasets are named ``<output_prefix>_<key>_document``."""
    tokenizer_type: str
    json_keys: tuple[str, ...] = ("text",)
    """Keys of a line's object; each makes a dataset of its own."""
    append_eod: bool = False
    """End every document with the tokenizer's end-of-document id."""
    workers: int = 1
    skip_errors: bool = False
    """Leave broken lines out instead of stopping at the first."""


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    documents: int
    bytes_done: int
    bytes_total: int
    seconds: float


@dataclass
class _Totals:
    """Running sums of one dataset."""

    bytes: int = 0
    characters: int = 0


@dataclass
class _Tally:
    """Running sums of a job."""

    totals: dict[str, _Totals]
    documents: list[int]
    digests: list[hashlib._Hash]
    skipped: int = 0
    bytes_done: int = 0
    started: float = field(default_factory=time.monotonic)


def preprocess(
    job: Job,
    tokenizer: Tokenizer,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_skip: Callable[[str], None] = lambda message: None,
) -> dict[str, Manifest]:
    """Tokenizes the job's files and writes one dataset with its manifest for every key.

    Args:
        job: what to do.
        tokenizer: the tokenizer of ``job.tokenizer_type``.
        on_progress: called after every chunk of text.
        on_skip: called with file, line and reason of every line left out.

    Returns:
        The manifest of each dataset, by dataset prefix.

    Raises:
        UserError: an input is missing, empty or broken, or the output cannot be written; then nothing is left behind.
    """
    _check_inputs(job)
    dtype = dtype_for(tokenizer.vocab_size)
    prefixes = {key: f"{job.output_prefix}_{key}_document" for key in job.json_keys}
    tally = _Tally(
        totals={key: _Totals() for key in job.json_keys},
        documents=[0] * len(job.inputs),
        digests=[hashlib.sha256() for _ in job.inputs],
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_directory(Path(job.output_prefix).parent))
        writers = {key: stack.enter_context(IndexedDatasetWriter(prefixes[key], dtype)) for key in job.json_keys}
        _write(job, tokenizer, writers, tally, on_progress, on_skip)
        if not sum(tally.documents):
            raise UserError(
                f"no documents: all {tally.skipped} lines were left out", where=", ".join(map(str, job.inputs))
            )
        for prefix in prefixes.values():
            manifest_path(prefix).unlink(missing_ok=True)  # an older one must not speak for the new files
    manifests = {prefixes[key]: _manifest(job, key, tokenizer, writers[key], tally) for key in job.json_keys}
    try:
        for prefix, manifest in manifests.items():
            write_manifest(prefix, manifest)
    except UserError:
        for prefix in manifests:
            for path in (bin_path(prefix), idx_path(prefix), manifest_path(prefix)):
                path.unlink(missing_ok=True)
        raise
    return manifests


def _write(
    job: Job,
    tokenizer: Tokenizer,
    writers: dict[str, IndexedDatasetWriter],
    tally: _Tally,
    on_progress: Callable[[Progress], None],
    on_skip: Callable[[str], None],
) -> None:
    """Encodes every chunk and appends it to the datasets, in the order of the input."""
    total = sum(path.stat().st_size for path in job.inputs)

    def encode(chunk: Chunk) -> EncodedChunk:
        return encode_chunk(chunk, tokenizer, job.json_keys, append_eod=job.append_eod)

    def chunks() -> Iterator[Chunk]:
        for number, path in enumerate(job.inputs):
            yield from read_chunks(path, number, tally.digests[number])

    with contextlib.closing(ordered_map(encode, chunks(), job.workers)) as results:
        for encoded in results:
            for line, reason in encoded.errors:
                where = f"{job.inputs[encoded.file]}:{line}"
                if not job.skip_errors:
                    mend = "mend the line, or leave such lines out with --on-error skip"
                    raise UserError(reason, where=where, mend=mend)
                on_skip(f"{where}: {reason}")
            for key, writer in writers.items():
                text = encoded.texts[key]
                writer.add_documents(text.tokens, text.lengths)
                tally.totals[key].bytes += text.bytes
                tally.totals[key].characters += text.characters
            tally.documents[encoded.file] += encoded.documents
            tally.skipped += len(encoded.errors)
            tally.bytes_done += encoded.size
            on_progress(Progress(sum(tally.documents), tally.bytes_done, total, time.monotonic() - tally.started))


def _manifest(job: Job, key: str, tokenizer: Tokenizer, writer: IndexedDatasetWriter, tally: _Tally) -> Manifest:
    sources = zip(job.inputs, tally.digests, tally.documents, strict=True)
    return Manifest(
        tokenizer=TokenizerRecord(
            type=job.tokenizer_type, fingerprint=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size
        ),
        sources=tuple(SourceRecord(path.name, digest.hexdigest(), documents) for path, digest, documents in sources),
        json_key=key,
        append_eod=job.append_eod,
        documents=sum(tally.documents),
        tokens=writer.num_tokens,
        bytes=tally.totals[key].bytes,
        characters=tally.totals[key].characters,
        skipped=tally.skipped,
        dtype=writer.dtype.name,
        bin_size=writer.num_tokens * writer.dtype.itemsize,
        bin_sha256=writer.bin_sha256.hexdigest(),
        idx_sha256=writer.idx_sha256.hexdigest(),
    )


def _check_inputs(job: Job) -> None:
    for path in job.inputs:
        if not path.is_file():
            raise UserError("no such file", where=str(path), expected="a JSONL file")
        if path.stat().st_size == 0 and not job.skip_errors:
            raise UserError("the file is empty", where=str(path), expected="one JSON object a line")
        if bin_path(f"{job.output_prefix}_{job.json_keys[0]}_document").resolve() == path.resolve():
            raise UserError("the output would overwrite the input", where=str(path))
    if job.workers < 1:
        raise UserError(f"{job.workers} workers", where="--workers", expected="1 or more")
    if len(set(job.json_keys)) != len(job.json_keys):
        raise UserError("a key is named twice", where="--json-keys", expected="different keys")
    for key in job.json_keys:
        if "/" in key:
            raise UserError(f"{key!r} cannot be part of a file name", where="--json-keys")


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Makes the output directory where there is none, and takes it away again when the job fails."""
    existed = path.is_dir()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the directory: {error.strerror}", where=str(path), mend="choose another --output-prefix"
        ) from error
    try:
        yield
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):  # someone else has put something there
                path.rmdir()
        raise
