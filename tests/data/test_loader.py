"""From config to batches: names, checks, the order of micro-batches, the thread that prepares them."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import Numbers, random_texts, write_dataset, write_jsonl

from megatron_lm_zh.config import schema
from megatron_lm_zh.config.batch_ramp import BatchSizes
from megatron_lm_zh.config.sections import data as sections
from megatron_lm_zh.config.sections.data import Data, Source
from megatron_lm_zh.data.batch import DocumentEnds
from megatron_lm_zh.data.datasets import build_datasets
from megatron_lm_zh.data.indexed import IndexedDatasetWriter
from megatron_lm_zh.data.inputs import open_inputs
from megatron_lm_zh.data.loader import MicroBatches, read_samples, training_portions
from megatron_lm_zh.data.text.preprocess import Job, preprocess
from megatron_lm_zh.data.text_size import TextMeter
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.runtime.replica import Replica
from megatron_lm_zh.tokenizer.base import Tokenizer

SEQ = 8


def make_config(train: list[tuple[Path | str, float]], **data) -> schema.Config:
    sources = tuple(Source(path=str(path), weight=weight) for path, weight in train)
    tokenizer = sections.Tokenizer(type="SentencePiece", path="unused")
    return schema.Config(
        run=schema.Run(dir="unused"),
        model=schema.Model(num_layers=1, hidden_size=8, num_attention_heads=1, seq_length=SEQ),
        data=Data(tokenizer=tokenizer, train=sources, **data),
        train=schema.Train(steps=1, global_batch_size=4),
        optim=schema.Optim(lr=1e-3),
    )


def loader(
    dataset,
    *,
    sizes: BatchSizes | None = None,
    rank: int = 0,
    size: int = 2,
    consumed: int = 0,
    vocab: int = 300,
    ends=None,
) -> MicroBatches:
    portions = training_portions(
        sizes or BatchSizes(8),
        micro_batch_size=2,
        replica=rank,
        replicas=size,
        consumed_samples=consumed,
        available=len(dataset),
    )
    return MicroBatches(
        portions, lambda samples: read_samples(dataset, samples, vocab), replica=Replica(), seq_length=SEQ, ends=ends
    )


def test_builds_every_use_by_name(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "x").mkdir()
    zh = write_dataset(tmp_path / "zh_text_document", [20] * 100)
    other = write_dataset(tmp_path / "x" / "zh_document", [20] * 100)
    built = build_datasets(make_config([(zh, 2.0), (other, 1.0)], split="90,10,0"), tokenizer, train_samples=30)
    assert len(built.train) >= 30
    assert list(built.valid) == ["zh", "zh-2"]
    assert dict(built.test) == {}
    assert len(built.valid["zh"]) == (10 * 20 - 1) // SEQ
    assert built.train[0].shape == (SEQ + 1,)

    own = make_config([(zh, 1.0)], valid=(Source(path=str(other)),), split="90,10,0")
    built = build_datasets(own, tokenizer, train_samples=1)
    assert list(built.valid) == ["zh"]
    assert len(built.valid["zh"]) == (100 * 20 - 1) // SEQ
    assert built.plan is not None
    assert built.plan.totals[0].epochs == SEQ / 2000  # nothing need be held out


def test_bad_datasets_are_one_line_with_the_key(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = write_dataset(tmp_path / "good", [20] * 100)
    small = write_dataset(tmp_path / "small", [3, 2])

    def error(config: schema.Config) -> str:
        with pytest.raises(UserError) as raised:
            build_datasets(config, tokenizer, train_samples=4)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert error(make_config([(good, 1.0), (tmp_path / "none", 1.0)])).startswith("data.train[1].path: no dataset at")
    assert "data.train[0].path: the train part" in error(make_config([(small, 1.0)], split="1,0,0"))
    assert "has 0 documents with 0 tokens" in error(make_config([(small, 1.0)], split="0.1,99,0"))
    assert "make its share 0" in error(make_config([(write_dataset(tmp_path / "few", [30] * 10), 1.0)]))
    assert "leaves nothing to train on" in error(make_config([(good, 1.0)], split="0,1,0"))


def test_inputs_know_the_vocabulary(tmp_path: Path, tokenizer: Tokenizer, tokenizer_directory: Path) -> None:
    source = write_dataset(tmp_path / "d", [20] * 100)
    config = make_config([(source, 1.0)])
    named = sections.Tokenizer(type="SentencePiece", path=str(tokenizer_directory))
    config = replace(config, data=replace(config.data, tokenizer=named))
    inputs = open_inputs(config, train_steps=3)
    assert inputs.config.model.vocab_size == inputs.tokenizer.vocab_size == 320
    assert len(inputs.datasets.train) >= 12
    with pytest.raises(UserError, match="100 rows for a tokenizer of 320 ids"):
        open_inputs(replace(config, model=replace(config.model, vocab_size=100)))
    missing = sections.Tokenizer(type="SentencePiece", path=str(tmp_path / "none.model"))
    with pytest.raises(UserError, match="no such tokenizer file"):
        open_inputs(replace(config, data=replace(config.data, tokenizer=missing)))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_are_megatrons_sequential_order(size: int) -> None:
    seen = []
    loaders = [loader(Numbers(43, SEQ + 1), rank=rank, size=size) for rank in range(size)]
    for batches in zip(*loaders, strict=True):
        seen += [index for batch in batches for index in batch["tokens"][:, 0].tolist()]
    assert seen == list(range(40))  # 43 samples hold 5 full global batches of 8


def test_position_is_consumed_samples_alone() -> None:
    whole = [batch["tokens"][:, 0].tolist() for batch in loader(Numbers(40, SEQ + 1), size=1)]
    resumed = [batch["tokens"][:, 0].tolist() for batch in loader(Numbers(40, SEQ + 1), size=1, consumed=16)]
    assert resumed == whole[8:]
    with loader(Numbers(40, SEQ + 1), size=2, rank=1, consumed=16) as other_layout:
        assert [batch["tokens"][:, 0].tolist() for batch in other_layout][:2] == [[18, 19], [22, 23]]


@pytest.mark.parametrize("size", [1, 2])
def test_a_growing_batch_goes_on_from_any_position(size: int) -> None:
    sizes = BatchSizes(12, (4, 4, 30))  # 4, 4, 4, 4, 8, 8, 12, 12, ...
    ends = [sizes.consumed_by(step) for step in range(10)]
    assert ends == [0, 4, 8, 12, 16, 24, 32, 44, 56, 68]

    def indices(rank: int, consumed: int) -> list[list[int]]:
        with loader(Numbers(59, SEQ + 1), sizes=sizes, rank=rank, size=size, consumed=consumed) as batches:
            return [batch["tokens"][:, 0].tolist() for batch in batches]

    for consumed in ends[:9]:
        ranks = [indices(rank, consumed) for rank in range(size)]
        assert sum(sum(zip(*ranks, strict=True), ()), []) == list(range(consumed, 56))  # the last batch is whole
    assert indices(0, 68) == []


def test_batches_say_what_the_sources_weigh(tmp_path: Path, tokenizer: Tokenizer) -> None:
    zh = write_dataset(tmp_path / "zh", [20] * 100)
    en = write_dataset(tmp_path / "en", [20] * 100)
    config = make_config([(zh, 3.0), (en, 1.0)], split="1,0,0")
    first, second = config.data.train
    config = replace(config, data=replace(config.data, train=(replace(first, loss_weight=2.0), second)))
    dataset = build_datasets(config, tokenizer, train_samples=40).train
    weights = {"zh": 2 / 1.75, "en": 1 / 1.75}  # the mean over the blend is 1
    seen = []
    for number, batch in enumerate(loader(dataset, size=1)):
        for row, index in zip(batch["loss_mask"], (2 * number, 2 * number + 1), strict=True):
            name = Path(dataset.spans(index)[0].prefix).name
            assert row.tolist() == pytest.approx([weights[name]] * SEQ, rel=1e-6)
            seen.append(name)
    assert len(seen) == 40
    assert seen.count("zh") == 30


def test_documents_need_their_ends(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", random_texts(60))
    for append_eod in (True, False):
        job = Job((path,), str(tmp_path / str(append_eod)), tokenizer_type="SentencePiece", append_eod=append_eod)
        preprocess(job, tokenizer)
    with_ends, without = (f"{tmp_path / name}_text_document" for name in ("True", "False"))

    built = build_datasets(
        make_config([(with_ends, 1.0)], split="1,0,0", reset_attention_mask=True), tokenizer, train_samples=8
    )
    assert built.ends == DocumentEnds(tokenizer.eod, reset_attention_mask=True)
    with loader(built.train, ends=built.ends, vocab=320) as batches:
        batch = next(batches)
    ends = (batch["tokens"].flatten() == tokenizer.eod).nonzero().flatten() + 1
    assert batch["cu_seqlens"].tolist() == sorted({0, SEQ, 2 * SEQ, *ends.tolist()})

    assert build_datasets(make_config([(without, 1.0)], split="1,0,0"), tokenizer, train_samples=8).ends is None
    with pytest.raises(UserError, match=r"data.train\[0\].path: .* --append-eod"):
        build_datasets(make_config([(without, 1.0)], split="1,0,0", eod_mask_loss=True), tokenizer, train_samples=8)


def test_batch_is_shifted_and_unmasked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    dataset = build_datasets(
        make_config([(write_dataset(tmp_path / "d", [30] * 20), 1.0)], split="1,0,0"), tokenizer, train_samples=8
    ).train
    with loader(dataset) as batches:
        batch = next(batches)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in batch.items()} == {
        "tokens": ((2, SEQ), torch.int64),
        "labels": ((2, SEQ), torch.int64),
        "loss_mask": ((2, SEQ), torch.float32),
        "position_ids": ((2, SEQ), torch.int64),
    }
    assert torch.equal(batch["tokens"][:, 1:], batch["labels"][:, :-1])
    assert batch["loss_mask"].min() == 1
    assert batch["position_ids"].tolist() == [list(range(SEQ))] * 2
    np.testing.assert_array_equal(batch["labels"][1].numpy(), dataset[1][1:])


def test_id_outside_the_vocabulary_names_its_place(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with IndexedDatasetWriter(tmp_path / "bad", np.dtype(np.uint16)) as writer:
        for _ in range(10):
            writer.add_document([5] * 20 + [999])
    dataset = build_datasets(make_config([(tmp_path / "bad", 1.0)], split="1,0,0"), tokenizer, train_samples=8).train
    with pytest.raises(UserError, match=r"bad.* sample \d+, document \d+: token id 999 is not in .* ids below 300"):
        list(loader(dataset))


def data_threads() -> int:
    return sum(thread.name == "data" for thread in threading.enumerate())


def test_thread_ends_with_its_consumer() -> None:
    batches = loader(Numbers(10_000, SEQ + 1))
    next(batches)
    assert data_threads() == 1
    batches.close()
    batches.close()
    assert data_threads() == 0
    assert list(batches) == []
    abandoned = loader(Numbers(10_000, SEQ + 1))
    thread = abandoned._reader._thread
    del abandoned
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_errors_of_the_thread_reach_the_consumer() -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> np.ndarray:
            if index == 13:
                raise OSError("the disk went away")
            return super().__getitem__(index)

    batches = loader(Broken(40, SEQ + 1), size=1)
    assert [next(batches)["tokens"][0, 0] for _ in range(4)] == [0, 2, 4, 6]
    with pytest.raises(OSError, match="went away"):
        next(batches)
    assert data_threads() == 0


def test_text_is_counted_exactly_whatever_the_windows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [*random_texts(30), "罕见字𠮷😀é"]  # the last is spelled in bytes
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    (manifest,) = preprocess(
        Job((path,), str(tmp_path / "o"), tokenizer_type="SentencePiece", append_eod=True), tokenizer
    ).values()
    ids = np.array([id_ for text in texts for id_ in [*tokenizer.encode(text), tokenizer.eod]])
    windows = [ids[at : at + 7] for at in range(0, len(ids), 7)]
    meter = TextMeter(tokenizer)
    sizes = [meter.count(window[None]) for window in windows]
    assert sum(size.bytes for size in sizes) == manifest.bytes
    assert sum(size.characters for size in sizes) == manifest.characters
    assert meter.count(np.array([[tokenizer.eod, 10**6]])).bytes == 0
