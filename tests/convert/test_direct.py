"""What is written past the page cache is what was asked for, and nothing beside it."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from megatron_lm_zh.convert.direct import DirectWriter

MEGABYTE = 1 << 20
PLACES = [
    (0, 0),
    (0, 1),
    (4095, 2),
    (0, 4096),
    (1, 3 * MEGABYTE),
    (4096, MEGABYTE),
    (4096, 4 * MEGABYTE),
    (8191, 9 * MEGABYTE + 17),
    (100, MEGABYTE + 5000),
]


def cut(content: bytes, rng: random.Random) -> list[bytes | memoryview]:
    """The content as buffers of all sizes, empty ones too."""
    places = sorted(rng.randrange(len(content) + 1) for _ in range(5))
    return [content[a:b] for a, b in zip([0, *places], [*places, len(content)], strict=True)]


@pytest.mark.parametrize(("offset", "length"), PLACES)
def test_bytes_go_to_their_place_and_no_other(offset: int, length: int, tmp_path: Path) -> None:
    rng, path = random.Random(offset + length), tmp_path / "file"
    before, content = rng.randbytes(offset + length + 5000), rng.randbytes(length)
    path.write_bytes(before)
    DirectWriter().write(path, offset, cut(content, rng))
    assert path.read_bytes() == before[:offset] + content + before[offset + length :]


def test_two_neighbours_share_a_page(tmp_path: Path) -> None:
    path, writer, rng = tmp_path / "file", DirectWriter(), random.Random(0)
    parts = [rng.randbytes(length) for length in (2 * MEGABYTE + 3, 700, 5 * MEGABYTE + 1001, 0, 3 * MEGABYTE)]
    path.write_bytes(bytes(sum(map(len, parts))))
    offset = 0
    for part in parts:
        writer.write(path, offset, [part])
        offset += len(part)
    assert path.read_bytes() == b"".join(parts)


def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = tmp_path / "file", random.Random(1).randbytes(6 * MEGABYTE + 11)
    open_, pwrite, direct = os.open, os.pwrite, set()

    def refuse(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return open_(name, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        path.write_bytes(b"")
        DirectWriter().write(path, 5, [content])
    assert path.read_bytes()[5:] == content

    def accept(name: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = open_(name, flags & ~os.O_DIRECT, mode)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def write(descriptor: int, view: memoryview, offset: int) -> int:
        if descriptor in direct and len(view) < 4 * MEGABYTE:
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, view[: len(view) // 2] if len(view) > MEGABYTE else view, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", accept)
        patch.setattr(os, "pwrite", write)
        path.write_bytes(b"")
        DirectWriter().write(path, 5, [content])
    assert direct
    assert path.read_bytes()[5:] == content


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        DirectWriter().write(path, 0, [bytes(2 * MEGABYTE)])
