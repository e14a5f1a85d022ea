"""Pretraining from a config: joins the world of ranks, opens the run, trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.data.inputs import open_inputs
from megatron_lm_zh.observe.logs import rank_log
from megatron_lm_zh.run_directory import RunDirectory
from megatron_lm_zh.runtime.capabilities import check_device
from megatron_lm_zh.runtime.device import Device
from megatron_lm_zh.runtime.groups import process_groups
from megatron_lm_zh.runtime.ranks import Ranks
from megatron_lm_zh.runtime.signals import StopRequest
from megatron_lm_zh.train.loop import train
from megatron_lm_zh.train.setup import on_rank_0, open_run


def pretrain(
    config: Config, ranks: Ranks, device: Device, *, allowed: Sequence[str] = (), init_from: Path | None = None
) -> bool:
    """Trains, or resumes, the run of `config` as one of `ranks`; says whether the run is complete.

    Args:
        allowed: keys whose change since the last checkpoint is accepted although it alters the result.
        init_from: Hugging Face directory of the first weights; a run that resumes has its own.
    """
    logs = RunDirectory(Path(config.run.dir)).logs
    with StopRequest() as stop, process_groups(config, ranks, device, trace_dir=logs):
        on_rank_0(lambda: check_device(config, device))
        # Rank 0 looks first, so that what is wrong with the inputs is said once.
        inputs = on_rank_0(lambda: open_inputs(config)) or open_inputs(config)
        started = open_run(inputs, ranks, device, allowed=allowed, init_from=init_from)
        with rank_log(logs, ranks.rank), started as run:
            return train(run, stop)
