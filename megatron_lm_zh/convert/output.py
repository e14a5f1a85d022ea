"""A result directory that is whole or not there: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lm_zh.errors import UserError

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
        shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
        free = shutil.disk_usage(output.parent).free
        if free < num_bytes + _SPARE_BYTES:
            raise UserError(
                f"{num_bytes / 1e9:.2f} GB do not fit, {free / 1e9:.2f} GB are free", where=str(output.parent)
            )
        partial.mkdir()
        try:
            yield partial
            for path in partial.rglob("*"):
                _flush(path)
            _flush(partial)
            partial.rename(output)  # takes the place of an empty directory, too
            _flush(output.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        raise UserError(f"cannot write: {error.strerror}", where=str(output)) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
