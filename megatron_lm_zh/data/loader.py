"""From the config to batches: which datasets a run reads, and each rank's micro-batches of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_lm_zh.config.batch_ramp import BatchSizes
from megatron_lm_zh.config.schema import Config, Data, Source
from megatron_lm_zh.data.batch import Batch, DocumentEnds, make_batch
from megatron_lm_zh.data.blend import BlendedDataset, normalise
from megatron_lm_zh.data.indexed import IndexedDataset, idx_path
from megatron_lm_zh.data.manifest import check_manifest
from megatron_lm_zh.data.samples import GPTDataset, SampleSource
from megatron_lm_zh.data.splits import parse_split, split_documents
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.tokenizer.base import Tokenizer

PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class Datasets:
    """What a run reads. Names of sources are their paths' last parts, made unique."""

    train: SampleSource
    valid: Mapping[str, SampleSource]
    test: Mapping[str, SampleSource]
    ends: DocumentEnds | None = None
    """What ends of documents mean; None where they are tokens like any others."""


@dataclass(frozen=True)
class _Opened:
    source: Source
    key: str
    name: str
    dataset: IndexedDataset


def build_datasets(config: Config, tokenizer: Tokenizer, *, train_samples: int) -> Datasets:
    """Opens and checks every dataset of the config and lays out its samples.

    `data.split` cuts the train sources; the share of a use that has datasets of its own (`data.valid`, `data.test`)
    goes to the other two. Validation and test sources give one epoch each.

    Args:
        config: the run.
        tokenizer: the one of `data.tokenizer`.
        train_samples: samples of the whole run.

    Raises:
        UserError: a dataset is missing, damaged, made with another tokenizer, or too small for its share.
    """
    data = config.data
    train = _open("train", data.train, tokenizer, data)
    valid = _open("valid", data.valid, tokenizer, data)
    test = _open("test", data.test, tokenizer, data)
    shares = parse_split(data.split)
    kept = [shares[0], 0.0 if valid else shares[1], 0.0 if test else shares[2]]
    total = sum(kept)
    if kept[0] == 0:
        raise UserError(
            f"data.split {data.split!r} leaves nothing to train on", expected="a first number above 0, e.g. 99,1,0"
        )
    parts = {
        opened.name: split_documents((kept[0] / total, kept[1] / total, kept[2] / total), len(opened.dataset))
        for opened in train
    }

    def samples(
        opened: _Opened, documents: range, use: str, num_samples: int | None, weight: float = 1.0
    ) -> GPTDataset:
        _check_size(opened, documents, use, config)
        return GPTDataset(
            opened.dataset,
            documents,
            seq_length=config.model.seq_length,
            num_samples=num_samples,
            seed=config.run.seed,
            name=opened.name,
            weight=weight,
        )

    weights = loss_weights(data.train)

    def train_part(index: int, num_samples: int) -> GPTDataset:
        documents = parts[train[index].name].train
        assert documents is not None
        return samples(train[index], documents, "train", num_samples, weights[index])

    def held_out(own: list[_Opened], use: str) -> dict[str, SampleSource]:
        if own:
            return {opened.name: samples(opened, range(len(opened.dataset)), use, None) for opened in own}
        ranges = {opened.name: getattr(parts[opened.name], use) for opened in train}
        return {
            opened.name: samples(opened, ranges[opened.name], use, None)
            for opened in train
            if ranges[opened.name] is not None
        }

    if len(train) == 1:
        blend: SampleSource = train_part(0, train_samples)
    else:
        blend = BlendedDataset(train_part, [source.weight for source in data.train], train_samples)
    return Datasets(
        train=blend,
        valid=held_out(valid, "valid"),
        test=held_out(test, "test"),
        ends=DocumentEnds.of(data, tokenizer.eod),
    )


def loss_weights(sources: tuple[Source, ...]) -> list[float]:
    """`loss_weight` of each source, scaled to a mean of 1 over the blend.

    The loss does not depend on the scale. What is added to it by the token does: the auxiliary losses of a mixture of
    experts keep their coefficients.
    """
    shares = normalise([source.weight for source in sources])
    mean = sum(share * source.loss_weight for share, source in zip(shares, sources, strict=True))
    alike = len({source.loss_weight for source in sources}) == 1
    return [1.0 if alike else source.loss_weight / mean for source in sources]


def _open(use: str, sources: tuple[Source, ...], tokenizer: Tokenizer, data: Data) -> list[_Opened]:
    names = _unique_names([source.path for source in sources])
    opened = []
    for i, (source, name) in enumerate(zip(sources, names, strict=True)):
        key = f"data.{use}[{i}].path"
        if not idx_path(source.path).is_file():
            raise UserError(
                f"no dataset at {source.path}",
                where=key,
                expected=f"{source.path}.bin and {source.path}.idx",
                mend="`mlzh preprocess` makes them",
            )
        dataset = IndexedDataset(source.path)
        manifest = check_manifest(source.path, tokenizer)
        asked = DocumentEnds.of(data, tokenizer.eod)
        if asked is not None and manifest is not None and not manifest.append_eod:
            raise UserError(
                f"the documents of {source.path} do not end with an end-of-document token",
                where=key,
                expected="one, for data.reset_attention_mask, data.reset_position_ids and data.eod_mask_loss to see",
                mend="preprocess the text with --append-eod",
            )
        opened.append(_Opened(source=source, key=key, name=name, dataset=dataset))
    return opened


def _unique_names(paths: list[str]) -> list[str]:
    """Last parts of the paths without Megatron's endings; one that comes again gets -2, -3, ..."""
    names: list[str] = []
    for path in paths:
        base = Path(path).name.removesuffix("_document").removesuffix("_text")
        name, count = base, 1
        while name in names:
            count += 1
            name = f"{base}-{count}"
        names.append(name)
    return names


def _check_size(opened: _Opened, documents: range, use: str, config: Config) -> None:
    lengths = opened.dataset.sequence_lengths[documents.start : documents.stop]
    tokens = int(np.sum(lengths, dtype=np.int64))
    needed = config.model.seq_length + 1
    if tokens < needed:
        raise UserError(
            f"the {use} part of {opened.source.path} has {len(documents)} documents with {tokens} tokens",
            where=opened.key,
            expected=f"at least model.seq_length + 1 = {needed} tokens",
            mend=f"give it more text or a larger share than in data.split={config.data.split!r}"
            + ("" if use == "train" else f", or make its share 0 to do without a {use} set"),
        )


class MicroBatches:
    """One rank's micro-batches, prepared ahead by a thread, in the order of Megatron's sequential sampler.

    A global batch holds the next samples, as many as it is large; in it data-parallel rank r's micro-batch j holds the
    `micro_batch_size` samples from (j * data_parallel_size + r) * micro_batch_size on. So the position in the data is
    `consumed_samples` alone, under every layout. Iteration ends where the next global batch would not be full.

    Args:
        dataset: what to read.
        micro_batch_size: samples of one batch.
        batch_sizes: samples of each step over all ranks; multiples of micro_batch_size x data_parallel_size.
        data_parallel_rank: this rank's place.
        data_parallel_size: copies of the model.
        consumed_samples: samples used before, by all ranks together; a multiple of micro_batch_size x
            data_parallel_size.
        vocab_size: ids that the embedding has.
        ends: what ends of documents mean.

    Raises:
        UserError: (on iteration) a token id is not in the vocabulary.
    """

    def __init__(
        self,
        dataset: SampleSource,
        *,
        micro_batch_size: int,
        batch_sizes: BatchSizes,
        data_parallel_rank: int,
        data_parallel_size: int,
        consumed_samples: int,
        vocab_size: int,
        ends: DocumentEnds | None = None,
    ) -> None:
        row = micro_batch_size * data_parallel_size
        assert all(size % row == 0 for size in batch_sizes.sizes()) and consumed_samples % row == 0
        assert 0 <= data_parallel_rank < data_parallel_size
        end = batch_sizes.last_whole_step(consumed_samples, len(dataset))
        first = data_parallel_rank * micro_batch_size
        starts = range(consumed_samples + first, end + first, row)
        self._left = len(starts)
        self._stop = threading.Event()
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCHED_BATCHES)
        micro_batches = (
            _micro_batch(dataset, range(start, start + micro_batch_size), vocab_size, ends) for start in starts
        )
        # The thread does not hold self, so an abandoned iterator is collected and stops its thread.
        self._thread = threading.Thread(
            target=_prefetch, args=(micro_batches, self._queue, self._stop), name="data", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __len__(self) -> int:
        """Micro-batches that are left for this rank."""
        return self._left

    def __next__(self) -> Batch:
        """The next micro-batch; raises what the thread met, and StopIteration at the end."""
        if self._left == 0 or self._stop.is_set():
            raise StopIteration
        batch = self._queue.get()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self._left -= 1
        return batch

    def close(self) -> None:
        """Stops the thread and drops what it has prepared."""
        self._stop.set()
        while self._thread.is_alive():  # it may be waiting for room in the queue
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.01)

    def __enter__(self) -> MicroBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self._stop.set()
            while not self._queue.empty():
                self._queue.get_nowait()


def _micro_batch(dataset: SampleSource, indices: range, vocab_size: int, ends: DocumentEnds | None) -> Batch:
    rows = np.stack([checked_sample(dataset, index, vocab_size) for index in indices])
    weights = torch.tensor([dataset.loss_weight(index) for index in indices])
    return make_batch(torch.from_numpy(rows), ends, weights)


def _prefetch(micro_batches: Iterator[Batch], out: queue.Queue[Batch | BaseException], stop: threading.Event) -> None:
    try:
        for batch in micro_batches:
            if stop.is_set():
                return
            out.put(batch)
            if stop.is_set():
                return
    except BaseException as error:  # whatever it is, the consumer raises it
        out.put(error)


def checked_sample(dataset: SampleSource, index: int, vocab_size: int) -> NDArray[np.int64]:
    """Sample `index`; UserError where one of its ids is not in the vocabulary."""
    sample = dataset[index]
    largest = int(sample.max())
    if largest >= vocab_size or int(sample.min()) < 0:
        wrong = largest if largest >= vocab_size else int(sample.min())
        raise UserError(
            f"token id {wrong} is not in the vocabulary",
            where=dataset.origin(index),
            expected=f"ids below {vocab_size}",
            mend="the dataset was made with another tokenizer: preprocess it with the one of data.tokenizer",
        )
    return sample


@dataclass(frozen=True)
class TextSize:
    """Size of a text."""

    bytes: int
    """In UTF-8."""
    characters: int
    """Unicode characters (code points)."""


class TextMeter:
    """Counts the text that token ids stand for: what bits per byte and per character divide by.

    A character is counted where its first byte is, so windows that cut one in two add up to the whole text. Special
    tokens are no text, nor are ids of padded vocabulary rows. (A SentencePiece model that puts a space before each
    document counts that space.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._sizes = tokenizer.token_sizes()

    def count(self, ids: NDArray) -> TextSize:
        """Size of the text of ``ids``, of any shape."""
        counts = np.bincount(np.asarray(ids).reshape(-1), minlength=len(self._sizes))[: len(self._sizes)]
        size = counts @ self._sizes
        return TextSize(bytes=int(size[0]), characters=int(size[1]))
