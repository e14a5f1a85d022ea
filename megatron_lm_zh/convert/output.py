"""A result directory that is whole or not there: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import sync_directory, write_error

_SPARE_BYTES = 4 << 20
"""What a result takes beside its tensors: tokenizer, metadata, headers."""


@contextmanager
def new_directory(output: Path, num_bytes: int) -> Iterator[Path]:
    """Yields an empty directory beside `output` that becomes `output` when the block ends without an error.

    Args:
        output: where the result shall be; must not exist, or be an empty directory.
        num_bytes: what the tensors will take, checked against the free space first.

    Raises:
        UserError: the output is taken, cannot be written, or the disk is full; nothing is left behind.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError("the output exists already", where=str(output), mend="name another one or remove it")
    partial = output.with_name(f"{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if free < num_bytes + _SPARE_BYTES:
            what = f"{num_bytes / 1e9:.2f} GB do not fit, {free / 1e9:.2f} GB are free"
            raise UserError(what, where=str(output.parent))
        shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
        partial.mkdir()
        try:
            yield partial
            for path in [*partial.rglob("*"), partial]:
                sync_directory(path)  # a file as well as a directory: fsync of a descriptor opened for reading
            partial.rename(output)  # takes the place of an empty directory, too
            sync_directory(output.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise write_error(output, error) from error
