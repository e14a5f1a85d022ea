"""What ends of documents do to a micro-batch: megatron-core's masks and positions, and borders for packed attention."""

from __future__ import annotations

import pytest
import torch

from megatron_lm_zh.data.batch import DocumentEnds, make_batch

EOD = 0
# Documents that end inside a row, at its end, right after one another and at its start; a row without an end.
ROWS = torch.tensor(
    [
        [5, 6, EOD, 7, 8, EOD, 9, 4, 3],
        [5, EOD, EOD, 7, 8, 9, 9, EOD, 3],
        [EOD, 6, 7, 8, 5, 6, 7, 8, EOD],
    ]
)


def test_without_switches_an_end_of_document_is_a_token_like_any_other() -> None:
    batch = make_batch(ROWS)
    assert torch.equal(batch["tokens"], ROWS[:, :-1])
    assert torch.equal(batch["labels"], ROWS[:, 1:])
    assert batch["loss_mask"].min() == 1
    assert batch["position_ids"].tolist() == [list(range(8))] * 3
    assert sorted(batch) == ["labels", "loss_mask", "position_ids", "tokens"]


def test_documents_have_borders_positions_and_no_label_beyond_them() -> None:
    batch = make_batch(ROWS, DocumentEnds(EOD, True, True, True))
    assert batch["cu_seqlens"].tolist() == [0, 3, 6, 8, 10, 11, 16, 17, 24]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 0, 1, 2, 0, 1],
        [0, 1, 0, 0, 1, 2, 3, 4],
        [0, 0, 1, 2, 3, 4, 5, 6],
    ]
    assert batch["loss_mask"].tolist() == [
        [1, 1, 0, 1, 1, 0, 1, 1],
        [1, 0, 0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    "switches", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_masks_and_positions_are_megatron_cores(switches: tuple[bool, bool, bool]) -> None:
    from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

    attention, positions, loss = switches
    batch = make_batch(ROWS, DocumentEnds(EOD, attention, positions, loss))
    seen = torch.zeros(ROWS.shape[0], 8, 8, dtype=torch.bool)
    bounds = batch["cu_seqlens"].tolist() if attention else [0, 8, 16, 24]
    for first, end in zip(bounds, bounds[1:], strict=False):
        row, start, stop = first // 8, first % 8, first % 8 + end - first
        seen[row, start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
    for number, row in enumerate(ROWS):
        mask, loss_mask, position_ids = _get_ltor_masks_and_position_ids(
            row[:-1], EOD, positions, attention, loss, create_attention_mask=True
        )
        assert torch.equal(batch["loss_mask"][number], loss_mask)
        assert torch.equal(batch["position_ids"][number], position_ids)
        assert torch.equal(~seen[number], mask[0])


def test_samples_are_weighted() -> None:
    batch = make_batch(ROWS, DocumentEnds(EOD, eod_mask_loss=True), torch.tensor([2.0, 0.5, 1.0]))
    assert batch["loss_mask"][0].tolist() == [2, 2, 0, 2, 2, 0, 2, 2]
    assert batch["loss_mask"][1].tolist() == [0.5, 0, 0, 0.5, 0.5, 0.5, 0.5, 0]
