"""Sample order of one dataset and of a blend against megatron-core's GPTDataset and BlendedDataset, bit for bit."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
from making import write_dataset

from megatron_lm_zh.data.blend import BlendedDataset
from megatron_lm_zh.data.indexed import IndexedDataset
from megatron_lm_zh.data.samples import GPTDataset
from megatron_lm_zh.data.splits import parse_split, split_documents

SEQ, SEED = 16, 7
LENGTHS = np.random.RandomState(3).randint(0, 60, 80).tolist()


def megatron_datasets(prefixes: list[Path], weights: list[float] | None, split: str, sizes: list[int | None]) -> list:
    """Train, valid and test datasets that megatron-core builds."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset as MegatronGPTDataset
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

    tokenizer = types.SimpleNamespace(vocab_size=300, eod=2, pad=-1, unique_identifiers={"class": "none"})
    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=SEQ,
        blend=([str(prefix) for prefix in prefixes], weights),
        split=split,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(MegatronGPTDataset, sizes, lambda: True, config).build()


def assert_same_samples(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for i in range(len(ours)):
        np.testing.assert_array_equal(ours[i][:-1], theirs[i]["tokens"].numpy())
        np.testing.assert_array_equal(ours[i][1:], theirs[i]["labels"].numpy())


@pytest.mark.parametrize("num_samples", [1, 100, 140, 160, 260, 290, 450, None])
@pytest.mark.parametrize("split", ["90,10,0", "1,0,0", "7.5,1.5,1"])
def test_gpt_dataset_is_megatron_cores(tmp_path: Path, num_samples: int | None, split: str) -> None:
    prefix = write_dataset(tmp_path / "d", LENGTHS)
    dataset = IndexedDataset(prefix)
    ranges = split_documents(parse_split(split), len(dataset))
    theirs = megatron_datasets([prefix], None, split, [num_samples, None, None])
    for documents, their, samples in zip(ranges, theirs, [num_samples, None, None], strict=True):
        if documents is None:
            assert their is None
            continue
        ours = GPTDataset(dataset, documents, seq_length=SEQ, num_samples=samples, seed=SEED)
        np.testing.assert_array_equal(ours.document_index, their.document_index)
        np.testing.assert_array_equal(ours.sample_index, their.sample_index)
        np.testing.assert_array_equal(ours.shuffle_index, their.shuffle_index)
        assert ours[0].shape == (SEQ + 1,)
        assert ours[0].dtype == np.int64
        assert_same_samples(ours, their)


@pytest.mark.parametrize("weights", [[0.7, 0.3], [5.0, 1.0, 1.0], [1.0, 2.0, 0.001]])
@pytest.mark.parametrize("num_samples", [10, 333])
def test_blend_is_megatron_cores(tmp_path: Path, weights: list[float], num_samples: int) -> None:
    prefixes = [write_dataset(tmp_path / f"d{i}", LENGTHS[20 * i :], seed=i) for i in range(len(weights))]
    datasets = [IndexedDataset(prefix) for prefix in prefixes]

    def build(index: int, samples: int) -> GPTDataset:
        documents = split_documents(parse_split("9,1,0"), len(datasets[index])).train
        assert documents is not None
        return GPTDataset(datasets[index], documents, seq_length=SEQ, num_samples=samples, seed=SEED, name=f"d{index}")

    ours = BlendedDataset(build, weights, num_samples)
    theirs = megatron_datasets(prefixes, weights, "9,1,0", [num_samples, 1, 1])[0]
    np.testing.assert_array_equal(ours.source_index, theirs.dataset_index)
    np.testing.assert_array_equal(ours.sample_index, theirs.dataset_sample_index)
    assert_same_samples(ours, theirs)
    assert len(ours) >= num_samples
    assert ours.origin(0).startswith("d")


def test_split_ranges_cover_every_document_once() -> None:
    for count in range(1, 60):
        train, valid, test = split_documents(parse_split("0.7,0.2,0.1"), count)
        assert [*(train or []), *(valid or []), *(test or [])] == list(range(count))
    assert split_documents(parse_split("99,1,0"), 1000) == (range(990), range(990, 1000), None)
