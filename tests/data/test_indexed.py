"""The .bin/.idx format: the same bytes as megatron-core's, and one clear line for every damaged file."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from megatron_lm_zh.data.indexed import IndexedDataset, IndexedDatasetWriter, dtype_for
from megatron_lm_zh.errors import UserError

DOCUMENTS = [[1, 2, 3], [4], [], [5, 6, 7, 8, 299]]


def write(prefix: Path, dtype: type = np.uint16) -> Path:
    with IndexedDatasetWriter(prefix, np.dtype(dtype)) as writer:
        for document in DOCUMENTS:
            writer.add_document(document)
    return prefix


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_writes_the_bytes_that_megatron_core_writes(tmp_path: Path, dtype: type) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    ours = write(tmp_path / "ours", dtype)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert Path(f"{ours}{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()

    read = IndexedDataset(tmp_path / "theirs")
    assert [document.tolist() for document in read] == DOCUMENTS
    assert read.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_megatron_core_reads_it(tmp_path: Path, dtype: type) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronDataset

    theirs = MegatronDataset(str(write(tmp_path / "ours", dtype)))
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3, 4]


def test_dtype_is_megatron_cores() -> None:
    from megatron.core.datasets.indexed_dataset import DType

    for size in (10, 65499, 65500, 65536, 151936):
        assert dtype_for(size) == np.dtype(DType.optimal_dtype(size))


def test_get_reads_a_part(tmp_path: Path) -> None:
    dataset = IndexedDataset(write(tmp_path / "d"))
    assert dataset.get(3, 1, 2).tolist() == [6, 7]
    assert dataset.get(3, 2).tolist() == [7, 8, 299]
    assert dataset.num_tokens == 9


def test_writer_leaves_nothing_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), IndexedDatasetWriter(tmp_path / "d", np.dtype(np.uint16)) as writer:
        writer.add_document([1])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_writer_keeps_the_older_dataset_when_it_fails(tmp_path: Path) -> None:
    prefix = write(tmp_path / "d")
    with pytest.raises(RuntimeError), IndexedDatasetWriter(prefix, np.dtype(np.uint16)) as writer:
        writer.add_document([9])
        raise RuntimeError
    assert len(IndexedDataset(prefix)) == len(DOCUMENTS)


def truncate_bin(prefix: Path) -> None:
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes()[:-3])


def truncate_idx(prefix: Path) -> None:
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:-1])


def truncate_header(prefix: Path) -> None:
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:12])


def change(at: int, content: bytes):
    def damage(prefix: Path) -> None:
        path = Path(f"{prefix}.idx")
        raw = bytearray(path.read_bytes())
        raw[at : at + len(content)] = content
        path.write_bytes(bytes(raw))

    return damage


def other_idx(prefix: Path) -> None:
    with IndexedDatasetWriter(prefix.parent / "other", np.dtype(np.uint16)) as writer:
        writer.add_document([1, 2])
    shutil.copy(prefix.parent / "other.idx", f"{prefix}.idx")


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (truncate_bin, ".bin", "15 bytes, which is less than its index describes; expected 18 bytes"),
        (other_idx, ".bin", "18 bytes, which is more than its index describes; expected 4 bytes"),
        (truncate_idx, ".idx", "121 bytes; expected 122 bytes"),
        (truncate_header, ".idx", "truncated: 12 bytes"),
        (change(0, b"MMX"), ".idx", "not a Megatron index"),
        (change(9, struct.pack("<Q", 7)), ".idx", "index version 7"),
        (change(17, b"\x63"), ".idx", "unknown dtype code 99"),
        (change(18, struct.pack("<Q", 1 << 60)), ".idx", "truncated or damaged"),
        (lambda prefix: Path(f"{prefix}.bin").unlink(), ".bin", "no such file"),
        (lambda prefix: Path(f"{prefix}.idx").unlink(), ".idx", "no such file"),
        (lambda prefix: Path(f"{prefix}.idx").write_bytes(b""), ".idx", "not a Megatron index"),
    ],
)
def test_damage_is_one_line_naming_the_file(tmp_path: Path, damage, file: str, message: str) -> None:
    prefix = write(tmp_path / "d")
    damage(prefix)
    with pytest.raises(UserError) as raised:
        IndexedDataset(prefix)
    assert f"{prefix}{file}: " in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
