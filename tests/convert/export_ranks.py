"""What ranks do for the tests of exports: save a model of any layout, train one; imports no transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch


def save_initial(ranks: Any, device: Any, config_file: str, layouts: Mapping[int, list[str]]) -> None:
    """Runs in the pool: saves the model that the config begins with, and its optimizer, in one layout after another.

    Norms and biases get numbers of their own. They begin alike, so that two that changed places would not be seen.

    Args:
        layouts: the step that the checkpoint is called by, to overrides of the config.
    """
    from legacy_ranks import draw_vectors
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.optim.build import build_optimizer
    from megatron_lm_zh.runtime.groups import build_layout, process_groups

    configs = {step: load_config(config_file, overrides, world=ranks.world) for step, overrides in layouts.items()}
    with process_groups(next(iter(configs.values())), ranks, device):
        for step, config in configs.items():
            parallel_state.destroy_model_parallel()
            build_layout(config)
            model = build_model(config, device)
            for chunk in unwrap_model(model):
                draw_vectors(chunk)
            _save(config, ranks, model, build_optimizer(config, model), step=step)


def trained_logits(
    ranks: Any, device: Any, config_file: str, overrides: list[str], hf: str | None, ids: torch.Tensor
) -> torch.Tensor | None:
    """Runs in the pool: trains, saves with the optimizer, and computes logits with the model as it is in its layout.

    Args:
        hf: a Hugging Face directory whose weights training begins with; None: those that the config begins with.
        ids: [b, s]; nothing is read back from the checkpoint for their logits.

    Returns:
        [b, s, vocab] logits in fp32 on the first tensor-parallel rank of the last pipeline stage, None on the others.
    """
    from megatron_lm_zh.config.load import load_config
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.optim.build import build_optimizer, build_scheduler
    from megatron_lm_zh.runtime.groups import process_groups
    from megatron_lm_zh.train.start import take_hf_weights
    from megatron_lm_zh.train.step import Stepper

    config = load_config(config_file, overrides, world=ranks.world)
    with process_groups(config, ranks, device):
        model = build_model(config, device)
        optimizer = build_optimizer(config, model)
        if hf is not None:
            take_hf_weights(Path(hf), config, model, optimizer)
        scheduler = build_scheduler(config, optimizer)
        stepper = Stepper(config=config, model=model, optimizer=optimizer, scheduler=scheduler, device=device)
        batches = _batches(config)
        for number in range(1, config.train.steps + 1):
            stepper.step(batches, number, config.train.global_batch_size)
        _save(config, ranks, model, optimizer, step=config.train.steps)
        return _logits(config, model, ids)


def _save(config: Any, ranks: Any, model: list[Any], optimizer: Any, *, step: int) -> None:
    from megatron_lm_zh.checkpoint.manifest import Layout
    from megatron_lm_zh.checkpoint.save import Saver
    from megatron_lm_zh.checkpoint.state import sharding_of, training_state
    from megatron_lm_zh.config.load import to_yaml
    from megatron_lm_zh.run_directory import RunDirectory

    sharding = sharding_of(config)
    state = training_state(model, optimizer, is_loading=False, with_rng=True, sharding=sharding)
    layout, run = Layout.of(config, ranks.world), RunDirectory(Path(config.run.dir))
    saver = Saver(run, layout, keep_last=100, asynchronous=False, sharding=sharding)
    saver.save(state, step=step, consumed_samples=0, config_yaml=to_yaml(config))


def _batches(config: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Random ids, other ones on each data-parallel rank, with labels that can be learnt."""
    from megatron.core import parallel_state

    generator = torch.Generator().manual_seed(3 + parallel_state.get_data_parallel_rank())
    shape = (config.train.micro_batch_size, config.model.seq_length)
    while True:
        tokens = torch.randint(config.model.vocab_size, shape, generator=generator)
        positions = torch.arange(shape[1]).expand(shape)
        labels = (tokens * 7 + 3) % config.model.vocab_size
        yield {"tokens": tokens, "position_ids": positions, "labels": labels, "loss_mask": torch.ones(shape)}


def _logits(config: Any, model: list[Any], ids: torch.Tensor) -> torch.Tensor | None:
    """[b, s, vocab] logits of ids [b, s] through all stages, where they are put together; elsewhere None."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def forward(_batches: object, stage: Any) -> tuple[torch.Tensor, Any]:
        output = stage(ids, torch.arange(ids.shape[1]).expand(ids.shape), None)
        return output, partial(lambda logits, value, **options: logits, output)

    for chunk in model:
        chunk.eval()
    with torch.no_grad():
        collected = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(()) if len(model) == 1 else [iter(())] * len(model),
            model=model,
            num_microbatches=1,
            seq_length=ids.shape[1],
            micro_batch_size=ids.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
        if not parallel_state.is_pipeline_last_stage(ignore_virtual=True):
            return None
        whole = tensor_parallel.gather_from_tensor_model_parallel_region(collected[0])
    if parallel_state.get_tensor_model_parallel_rank() > 0:
        return None
    return whole[..., : config.model.vocab_size].float().clone()
