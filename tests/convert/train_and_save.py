"""One rank of a small TP2 x PP2 run: trains a few steps, saves, and writes the logits that the model gives."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from megatron_lm_zh.config.load import load_config, to_yaml
from megatron_lm_zh.run_directory import RunDirectory
from megatron_lm_zh.runtime import ranks as rank_discovery
from megatron_lm_zh.runtime.engine import prepare


def main(run_dir: Path, ids_file: Path) -> None:
    """Trains 5 steps on random ids, saves with the optimizer, and writes logits [b, s, padded_vocab] beside the run."""
    ranks = rank_discovery.discover(os.environ)
    device = prepare()

    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_lm_zh.checkpoint.manifest import Layout
    from megatron_lm_zh.checkpoint.save import Saver
    from megatron_lm_zh.checkpoint.state import training_state
    from megatron_lm_zh.models.build import build_model
    from megatron_lm_zh.optim.build import build_optimizer, build_scheduler
    from megatron_lm_zh.runtime.groups import process_groups
    from megatron_lm_zh.train.step import Stepper

    config = load_config(run_dir / "config.yaml")
    with process_groups(config, ranks, device):
        model = build_model(config, device)
        optimizer = build_optimizer(config, model)
        stepper = Stepper(
            config=config,
            model=model,
            optimizer=optimizer,
            scheduler=build_scheduler(config, optimizer),
            device=device,
        )
        generator = torch.Generator().manual_seed(3)
        shape = (config.train.micro_batch_size, config.model.seq_length)

        def batches():
            while True:
                tokens = torch.randint(config.model.vocab_size, shape, generator=generator)
                positions = torch.arange(shape[1]).expand(shape)
                labels = (tokens * 7 + 3) % config.model.vocab_size
                mask = torch.ones(shape)
                yield {"tokens": tokens, "position_ids": positions, "labels": labels, "loss_mask": mask}

        source = batches()
        for number in range(1, config.train.steps + 1):
            stepper.step(source, number, config.train.global_batch_size)

        layout = Layout.of(config, ranks.world)
        saver = Saver(RunDirectory(run_dir), layout, keep_last=1, asynchronous=False)
        state = training_state(model, optimizer, is_loading=False, with_rng=True)
        saver.save(state, step=config.train.steps, consumed_samples=0, config_yaml=to_yaml(config))

        ids = torch.load(ids_file)

        def forward(_batches, stage):
            positions = torch.arange(ids.shape[1]).expand(ids.shape)
            output = stage(ids, positions, None)
            return output, partial(lambda logits, value, **options: logits, output)

        for chunk in model:
            chunk.eval()
        with torch.no_grad():
            collected = get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=source,
                model=model,
                num_microbatches=1,
                seq_length=ids.shape[1],
                micro_batch_size=ids.shape[0],
                forward_only=True,
                collect_non_loss_data=True,
            )
        if parallel_state.is_pipeline_last_stage():
            whole = tensor_parallel.gather_from_tensor_model_parallel_region(collected[0])
            if parallel_state.get_tensor_model_parallel_rank() == 0:
                torch.save(whole.clone(), run_dir / "logits.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
