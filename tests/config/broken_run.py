"""Configs that break the rules of batches, of the length of a run and of data, and legal ones beside them."""

from __future__ import annotations

# Rule, overrides of the small config, world, words of the message.
BROKEN: list[tuple[str, tuple[str, ...], int | None, str]] = [
    ("micro_batches_fill_global_batch", (), 3, "8 is no multiple of micro_batch_size=2 x data=3 = 6; nearest: 6 or 12"),
    (
        "ramp_rises_to_global_batch",
        ("train.rampup_batch_size=[2, 4, 80]",),
        None,
        "[2, 4, 80] does not rise to global_batch_size=8; expected numbers above 0, a start below 8 and an increment "
        "that divides the difference; e.g. an increment of 3",
    ),
    ("ramp_rises_to_global_batch", ("train.rampup_batch_size=[8, 2, 80]",), None, "a start below 8"),
    (
        "ramp_is_of_whole_micro_batches",
        ("train.rampup_batch_size=[2, 2, 80]",),
        2,
        "makes a batch of 2; expected multiples of micro_batch_size=2 x data=2 = 4; nearest start: 4",
    ),
    (
        "ramp_ends_in_the_run",
        ("train.rampup_batch_size=[2, 2, 80]", "train.steps=10", "schedule.warmup_steps=0"),
        None,
        "a ramp over 80 samples in a run of ",
    ),
    ("one_run_length", ("train.tokens=100000",), None, "both are set; expected exactly one"),
    ("one_run_length", ("train.steps=null",), None, "neither is set"),
    ("profile_steps_are_ordered", ("profile.steps=[8, 5]",), None, "found [8, 5]; expected [first, last]"),
    ("profile_steps_are_in_the_run", ("profile.steps=[99, 101]",), None, "step 101 lies beyond the run's 100 steps"),
    ("split_leaves_training_data", ("data.split=0,1,1",), None, "'0,1,1' leaves nothing to train on"),
    (
        "loss_weights_are_of_training",
        ("data.valid=[{path: a}, {path: b, loss_weight: 2.0}]",),
        None,
        "data.valid.1.loss_weight: 2 would be ignored; take it out; it belongs to sources of data.train",
    ),
    (
        "positions_can_be_reset",
        ("data.reset_position_ids=true",),
        None,
        "reset_position_ids: true needs data.reset_attention_mask: true",
    ),
]

LEGAL: list[tuple[tuple[str, ...], int | None]] = [
    (("profile.steps=[1, 100]",), None),
    (("train.rampup_batch_size=[4, 4, 80]", "data.train.0.loss_weight=0.5"), 2),
    (("data.reset_position_ids=true", "data.reset_attention_mask=true", "data.eod_mask_loss=true"), 1),
    (("data.valid=[{path: a}]", "data.test=[{path: b}]"), 1),
    (
        (
            "train.steps=null",
            "train.tokens=100000",
            "schedule={kind: wsd, warmup_steps: 10, decay_steps: 20}",
            "profile.steps=[1, 100]",
            "train.rampup_batch_size=[4, 4, 80]",
        ),
        2,
    ),
]
