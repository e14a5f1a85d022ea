"""Evaluation: the loss of whole data sources, in nats per token and in bits per byte and per character of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from numpy.typing import NDArray

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.data.batch import Batch, DocumentEnds, make_batch
from megatron_lm_zh.data.loader import TextMeter, TextSize, checked_sample
from megatron_lm_zh.data.samples import SampleSource
from megatron_lm_zh.observe.rows import ValidRow
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.train.step import run_batches, sum_over_ranks


class Evaluator:
    """Evaluates the same first samples of every source each time it is asked; no source's loss is weighted.

    Ends of documents mean what they mean in training: a model that has not seen beyond them is not asked to.
    """

    def __init__(
        self,
        config: Config,
        model: list[DistributedDataParallel],
        meter: TextMeter,
        device: Device,
        ends: DocumentEnds | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.device = device
        self.ends = ends
        self._meter = meter
        self._text: dict[tuple[str, str], TextSize] = {}

    def rows(
        self, sources: Mapping[str, SampleSource], step: int, kind: Literal["valid", "test"] = "valid"
    ) -> Iterator[ValidRow]:
        """One row a source. All ranks iterate together and get the same rows."""
        for chunk in self.model:
            chunk.eval()
        for name, source in sources.items():
            yield self._row(name, source, step, kind)
        for chunk in self.model:
            chunk.train()

    def _row(self, name: str, source: SampleSource, step: int, kind: Literal["valid", "test"]) -> ValidRow:
        train = self.config.train
        samples = min(len(source), self.config.evaluate.batches * train.global_batch_size)
        replicas = parallel_state.get_data_parallel_world_size()
        vocab_size = self.config.model.vocab_size
        assert vocab_size is not None
        sample = partial(checked_sample, source, vocab_size=vocab_size)
        replica = parallel_state.get_data_parallel_rank()
        plan = padded_plan(samples, train.micro_batch_size, replica, replicas)
        batches = (padded_batch(sample, samples, indices, self.ends) for indices in plan)
        count = -(-samples // (train.micro_batch_size * replicas))
        with torch.no_grad():
            sums = run_batches(self.config, self.model, self.device, batches, count, forward_only=True)
        nats, tokens = sum_over_ranks(sums, self.device)
        text = self._text_of(name, kind, source, samples)
        return ValidRow.from_totals(
            step, name, nats=nats, tokens=int(tokens), text_bytes=text.bytes, text_chars=text.characters, kind=kind
        )

    def _text_of(self, name: str, kind: str, source: SampleSource, samples: int) -> TextSize:
        """Size of the text of the targets that count; counted once, since the samples never change."""
        if (kind, name) not in self._text:
            sizes = [self._meter.count(self._targets(source[index])) for index in range(samples)]
            self._text[kind, name] = TextSize(sum(s.bytes for s in sizes), sum(s.characters for s in sizes))
        return self._text[kind, name]

    def _targets(self, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """The labels of a sample that count in the loss."""
        batch = make_batch(torch.from_numpy(sample)[None], self.ends)
        return batch["labels"][batch["loss_mask"] > 0].numpy()


def padded_plan(samples: int, micro_batch_size: int, replica: int, replicas: int) -> Iterator[range]:
    """The samples of one replica's micro-batches; the last ones go beyond `samples` until all replicas have as many."""
    row = micro_batch_size * replicas
    for first in range(replica * micro_batch_size, -(-samples // row) * row, row):
        yield range(first, first + micro_batch_size)


def padded_batch(
    sample: Callable[[int], NDArray[np.int64]], samples: int, indices: range, ends: DocumentEnds | None
) -> Batch:
    """A micro-batch; what stands in it for the samples beyond `samples` has a loss mask of 0."""
    rows = np.stack([sample(min(index, samples - 1)) for index in indices])
    return make_batch(torch.from_numpy(rows), ends, torch.tensor([float(index < samples) for index in indices]))
