"""The rows of metrics.jsonl: what is known after a training step and after a validation (fields: docs/metrics.md)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainRow:
    """One log interval of training, as seen after ``step``."""

    step: int
    """Optimizer steps done; the first is 1."""
    lm_loss: float
    """Mean negative log-likelihood a target token of this step's global batch, nats."""
    grad_norm: float | None
    """Global L2 norm of the gradient before clipping; None where it overflowed (fp16) and the update was skipped."""
    lr: float
    """Learning rate that this step used."""
    tokens: int
    """Tokens seen since step 0, all attempts together."""
    tokens_per_s: float
    """Tokens a second of the whole job over the interval."""
    step_time_s: float
    """Mean seconds of a step over the interval."""
    attempt: int
    """How many times the run has been started, this start included."""
    memory_gb: float
    """Peak memory of the reporting rank's device so far (on a CPU: of its process), in 1e9 bytes."""
    mfu: float | None = None
    """Model FLOPs utilisation, 0 to 1; None where the device's peak is not known."""
    loss_scale: float | None = None
    """fp16: what this step's loss was multiplied with; None in other formats."""
    skipped_steps: int | None = None
    """fp16: steps of the run, so far, whose gradient overflowed and whose update was skipped; None in other formats."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further figures by name, written beside the named ones, e.g. ``moe_load_max``."""

    def to_json(self) -> dict[str, Any]:
        """The row as metrics.jsonl has it, ``kind`` first; what may be unknown and is None is left out."""
        row = {"kind": "train", **asdict(self)}
        extra = row.pop("extra")
        assert not extra.keys() & row.keys(), f"extra figures hide named ones: {sorted(extra.keys() & row.keys())}"
        for name in ("mfu", "loss_scale", "skipped_steps"):
            if row[name] is None:
                del row[name]
        return row | extra


@dataclass(frozen=True, kw_only=True)
class ExpertsRow:
    """The experts' load over a log interval, as seen after ``step``; goes to experts.jsonl."""

    step: int
    """Optimizer steps done."""
    load: dict[int, list[float]]
    """By mixture-of-experts layer, counted from 0: tokens of each expert as a multiple of an equal share."""

    def to_json(self) -> dict[str, Any]:
        """The row as experts.jsonl has it, loads to four decimals."""
        load = {str(layer): [round(share, 4) for share in shares] for layer, shares in self.load.items()}
        return {"kind": "experts", "step": self.step, "load": load}


@dataclass(frozen=True, kw_only=True)
class ValidRow:
    """One data source evaluated after ``step``."""

    step: int
    """Optimizer steps done."""
    source: str
    """Name of the data source."""
    lm_loss: float
    """Mean negative log-likelihood a target token, nats."""
    ppl: float
    """Perplexity: exp(lm_loss)."""
    bits_per_byte: float | None
    """Bits a UTF-8 byte of the target text; None where the text has no bytes."""
    bits_per_char: float | None
    """Bits a character (Unicode code point) of the target text; None where the text has none."""
    tokens: int
    """Target tokens evaluated."""
    kind: Literal["valid", "test"] = "valid"
    """``valid`` during training, ``test`` once at its end."""

    @classmethod
    def from_totals(
        cls,
        step: int,
        source: str,
        *,
        nats: float,
        tokens: int,
        text_bytes: int,
        text_chars: int,
        kind: Literal["valid", "test"] = "valid",
    ) -> ValidRow:
        """The row of a source from what an evaluation adds up.

        Args:
            nats: total negative log-likelihood of the target tokens.
            tokens: number of target tokens, at least 1.
            text_bytes: UTF-8 bytes of the decoded target tokens.
            text_chars: Unicode code points of the decoded target tokens.
        """
        assert tokens > 0, f"source {source!r} has no target tokens"
        lm_loss = nats / tokens
        bits = nats / math.log(2)
        return cls(
            step=step,
            source=source,
            lm_loss=lm_loss,
            ppl=perplexity(lm_loss),
            bits_per_byte=bits / text_bytes if text_bytes else None,
            bits_per_char=bits / text_chars if text_chars else None,
            tokens=tokens,
            kind=kind,
        )

    def to_json(self) -> dict[str, Any]:
        """The row as metrics.jsonl has it, ``kind`` first."""
        row = asdict(self)
        return {"kind": row.pop("kind"), **row}


def perplexity(lm_loss: float) -> float:
    """exp(lm_loss); infinity where that is beyond a float (a diverged model), instead of an OverflowError."""
    try:
        return math.exp(lm_loss)
    except OverflowError:
        return math.inf
