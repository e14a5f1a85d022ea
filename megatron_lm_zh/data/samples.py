"""Fixed-length samples of one dataset, in megatron-core's GPTDataset order, bit for bit.

Documents are shuffled and read one after another, epoch after epoch; every `seq_length` tokens make a sample, which
also sees the token that follows (the last label); samples are shuffled. When only a small part of the last epoch is
needed, it is shuffled apart, so that the samples left out are its own and not those of whole epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_lm_zh.data import _indices
from megatron_lm_zh.data.indexed import IndexedDataset

SMALL_PART_OF_AN_EPOCH = 0.80  # megatron-core's threshold for a last epoch of its own


class SampleSource(Protocol):
    """A numbered list of samples."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """[seq_length + 1]: the tokens of sample ``index`` and the one that follows them."""
        ...

    def origin(self, index: int) -> str:
        """Where sample ``index`` comes from, for messages: source, sample, first document."""
        ...

    def loss_weight(self, index: int) -> float:
        """Weight of the tokens of sample ``index`` in the training loss."""
        ...


class GPTDataset:
    """Samples of some documents of one dataset.

    Args:
        dataset: the tokens.
        documents: which documents, in file order.
        seq_length: tokens of a sample, without the one that follows.
        num_samples: how many are asked for, over as many epochs as that takes; None is one epoch.
        seed: of both shuffles.
        name: of the source, for messages.
        weight: of its tokens in the training loss.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        documents: Sequence[int],
        *,
        seq_length: int,
        num_samples: int | None,
        seed: int,
        name: str = "",
        weight: float = 1.0,
    ) -> None:
        self.dataset = dataset
        self.seq_length = seq_length
        self.name = name
        self.weight = weight
        chosen = np.asarray(documents, dtype=np.int32)
        tokens = int(np.sum(dataset.sequence_lengths[chosen], dtype=np.int64))
        assert tokens > seq_length  # the loader has told the user otherwise
        epochs = 1 if num_samples is None else max(1, -(-(num_samples * seq_length + 1) // tokens))
        samples_before_last = ((epochs - 1) * tokens - 1) // seq_length if epochs > 1 else 0
        last_epoch_apart = False
        if num_samples is not None and epochs > 1:
            needed = num_samples - samples_before_last
            last_epoch_apart = needed < int(SMALL_PART_OF_AN_EPOCH * ((tokens - 1) // seq_length))

        random = np.random.RandomState(seed)  # the legacy generator: its shuffles are what megatron-core's runs have
        self.document_index = _document_index(chosen, epochs, last_epoch_apart, random)
        self.sample_index = build_sample_index(dataset.sequence_lengths, self.document_index, seq_length)
        samples = len(self.sample_index) - 1
        self.shuffle_index = _shuffle_index(samples_before_last if last_epoch_apart else samples, samples, random)

    def __len__(self) -> int:
        """Number of samples: at least those asked for, as many as the epochs hold."""
        return len(self.shuffle_index)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """[seq_length + 1]: the tokens of sample ``index`` and the one that follows them."""
        place = int(self.shuffle_index[index])
        first, first_offset = self.sample_index[place].tolist()
        last, last_offset = self.sample_index[place + 1].tolist()
        if first == last:
            length = last_offset - first_offset + 1
            parts = [self.dataset.get(int(self.document_index[first]), first_offset, length)]
        else:
            parts = [self.dataset.get(int(self.document_index[first]), first_offset)]
            parts += [self.dataset.get(int(document)) for document in self.document_index[first + 1 : last]]
            parts.append(self.dataset.get(int(self.document_index[last]), 0, last_offset + 1))
        return np.concatenate(parts, dtype=np.int64)

    def origin(self, index: int) -> str:
        """Source, sample and first document of sample ``index``."""
        position = int(self.sample_index[int(self.shuffle_index[index])][0])
        return f"{self.name} ({self.dataset.prefix}) sample {index}, document {int(self.document_index[position])}"

    def loss_weight(self, index: int) -> float:
        """Weight of the tokens of sample ``index`` in the training loss."""
        return self.weight


def build_sample_index(
    lengths: NDArray[np.int32], documents: NDArray[np.int32], seq_length: int
) -> NDArray[np.int32] | NDArray[np.int64]:
    """[samples + 1, 2]: position in ``documents`` and token offset where each sample begins, from csrc/indices.cpp."""
    if max(len(documents), int(lengths.max())) <= np.iinfo(np.int32).max:
        return _indices.build_sample_idx_int32(lengths, documents, seq_length)
    return _indices.build_sample_idx_int64(lengths, documents, seq_length)


def _document_index(
    documents: NDArray[np.int32], epochs: int, last_epoch_apart: bool, random: np.random.RandomState
) -> NDArray[np.int32]:
    """The order in which documents are read, [epochs x documents]."""
    if last_epoch_apart:
        whole = _document_index(documents, epochs - 1, False, random)
        return np.concatenate((whole, _document_index(documents, 1, False, random)))
    order = np.tile(documents, epochs)
    random.shuffle(order)
    return order


def _shuffle_index(first_part: int, total: int, random: np.random.RandomState) -> NDArray:
    """The order in which samples are given: 0 .. first_part - 1 shuffled, then the rest up to ``total`` shuffled."""
    dtype = np.uint32 if total < np.iinfo(np.uint32).max - 1 else np.int64
    order = np.arange(total, dtype=dtype)
    random.shuffle(order[:first_part])
    if first_part != total:
        random.shuffle(order[first_part:])
    return order
