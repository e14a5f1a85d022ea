"""Things broken on purpose in every rank of a layout: what the comparison with one rank must notice."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

from dist.parity_rows import CP2, EP2, PACKED, PP2, PREDICTION_APART, SP2, TP2, VPP2, Row


@dataclass(frozen=True)
class Breakage:
    """One fault, and the layout that it is put into."""

    row: Row
    broken: Callable[[], AbstractContextManager[Any]]
    """Makes the fault in the process that enters it."""


def record_broken(ranks: Any, device: Any, config: Any, steps: int, name: str) -> list[Any]:
    """Runs on every rank of the pool."""
    from megatron_lm_zh.parity.record import record

    with BREAKAGES[name].broken():
        return record(config, ranks, device, steps=steps)


def _patched(module: str, name: str, make: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Replaces `name` (dotted inside a class) of a module by what `make` makes of it."""

    def patch() -> AbstractContextManager[Any]:
        owner: Any = importlib.import_module(module)  # not what `import` binds: a function may shadow its module
        *path, last = name.split(".")
        for step in path:
            owner = getattr(owner, step)
        return mock.patch.object(owner, last, make(getattr(owner, last)))

    return patch


def _nothing(original: Any) -> Callable[..., None]:
    return lambda *args, **kwargs: None


def _unchanged(original: Any) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: x


def _first_and_last(embedding_ranks: Any) -> Callable[..., list[int]]:
    return lambda config, pipeline: [pipeline[0], pipeline[-1]]


def _two_chunks_swapped(gather: Any) -> Callable[..., Any]:
    import torch

    def swapped(x: Any, group: Any) -> Any:
        first, second, *rest = gather(x, group).chunk(2 * group.size())
        return torch.cat([second, first, *rest])

    return swapped


def _positions_from_0(cut: Any) -> Callable[..., Any]:
    return lambda angles, axis, group: angles.narrow(axis, 0, angles.shape[axis] // group.size())


def _not_by_tokens(attach: Any) -> Callable[..., Any]:
    def unscaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(self, "calculate_per_token_loss", False):
            return attach(self, *args, **kwargs)

    return unscaled


def _first_one_twice(step: Any) -> Callable[..., Any]:
    def stepped(self: Any, batches: Any, number: int, samples: int) -> Any:
        def repeated() -> Iterator[Any]:
            first = next(batches)
            next(batches)
            yield first
            yield first
            yield from batches

        return step(self, repeated(), number, samples)

    return stepped


def _batched_sends(arguments_of: Any) -> Callable[..., Any]:
    batched = {"overlap_p2p_comm": False, "batch_p2p_comm": True}
    return lambda parallel, **options: arguments_of(parallel, **options) | batched


def _second_replica_gives_none(start: Any) -> Callable[..., Any]:
    def started(self: Any, *args: Any, **kwargs: Any) -> Any:
        from megatron.core import parallel_state

        if parallel_state.get_data_parallel_rank() == 1:
            for bucket in self.buckets:
                bucket.grad_data.zero_()
        return start(self, *args, **kwargs)

    return started


def _experts_as_dense(chunk: Any) -> Callable[..., Any]:
    def built(*args: Any, **kwargs: Any) -> Any:
        model = chunk(*args, **kwargs)
        for parameter in model.parameters():
            parameter.allreduce = True  # what tells megatron-core's DDP that all replicas hold it
        return model

    return built


def _seed_of_rank(initialise: Any) -> Callable[..., Any]:
    def initialised(model: Any, *, seed: int, **options: Any) -> None:
        import torch.distributed as dist

        initialise(model, seed=seed + dist.get_rank(), **options)

    return initialised


def _own_share_only(log_share: Any) -> Callable[..., Any]:
    return lambda log_sum, group: (log_sum.new_zeros(log_sum.shape), log_sum)


def _no_reduction_back(mappings: Any) -> Any:
    gather = partial(mappings.gather_from_sequence_parallel_region, tensor_parallel_output_grad=False)
    return mock.Mock(wraps=mappings, gather_from_sequence_parallel_region=gather)


def _one_document(packed: Any) -> Callable[..., Any]:
    return lambda bounds, **options: packed(bounds[[0, -1]], **options)


def _shards_as_copies(chunk: Any) -> Callable[..., Any]:
    def built(*args: Any, **kwargs: Any) -> Any:
        model = chunk(*args, **kwargs)
        for parameter in model.parameters():
            parameter.tensor_model_parallel = False  # what tells the gradient norm to count it on one rank only
        return model

    return built


def _own_tokens_only(update: Any) -> Callable[..., Any]:
    def updated(*args: Any, **kwargs: Any) -> Any:
        import torch

        with mock.patch.object(torch.distributed, "all_reduce", lambda *args, **kwargs: None):
            return update(*args, **kwargs)

    return updated


FINALIZE = "megatron.core.distributed.finalize_model_grads"
BUCKETS = "megatron.core.distributed.param_and_grad_buffer"

BREAKAGES: dict[str, Breakage] = {
    "the output of row-parallel layers is not summed": Breakage(
        Row("tp2", "dense", 2, TP2),
        _patched("megatron.core.tensor_parallel.layers", "reduce_from_tensor_model_parallel_region", _unchanged),
    ),
    "norms under sequence parallelism keep their part of the gradient": Breakage(
        Row("sp2", "dense", 2, SP2), _patched(FINALIZE, "_allreduce_non_tensor_model_parallel_grads", _nothing)
    ),
    "the vocabulary's parts are normalised apart": Breakage(
        Row("tp2", "dense", 2, TP2), _patched("megatron_lm_zh.models.loss", "_log_share", _own_share_only)
    ),
    "shards count as copies in the gradient norm": Breakage(
        Row("tp2", "dense", 2, TP2), _patched("megatron_lm_zh.models.build", "_chunk", _shards_as_copies)
    ),
    "initial weights depend on the rank": Breakage(
        Row("pp2", "dense", 2, PP2), _patched("megatron_lm_zh.models.build", "initialise", _seed_of_rank)
    ),
    "sends of the interleaved schedule are batched": Breakage(
        Row("vpp2", "dense", 2, VPP2),
        _patched("megatron_lm_zh.models.transformer_config", "_layout", _batched_sends),
    ),
    "the tied embedding's two gradients stay apart": Breakage(
        Row("tied", "dense", 2, (*PP2, "model.tie_embeddings=true")),
        _patched(FINALIZE, "_allreduce_word_embedding_grads", _nothing),
    ),
    "the embedding of a prediction stage is taken for the output layer": Breakage(
        Row("mtp", "deepseek", 3, PREDICTION_APART),
        _patched("megatron_lm_zh.runtime.groups", "embedding_ranks", _first_and_last),
    ),
    "two chunks of keys and values are swapped": Breakage(
        Row("cp2", "dense", 2, CP2), _patched("megatron_lm_zh.models.attention", "whole_sequence", _two_chunks_swapped)
    ),
    "the gradient of gathered keys and values is not summed": Breakage(
        Row("cp2", "dense", 2, CP2), _patched("megatron_lm_zh.models.spans", "tensor_parallel", _no_reduction_back)
    ),
    "rotary positions begin at 0 on every context-parallel rank": Breakage(
        Row("cp2", "dense", 2, CP2),
        _patched(
            "megatron.core.models.common.embeddings.rotary_pos_embedding",
            "get_pos_emb_on_this_cp_rank",
            _positions_from_0,
        ),
    ),
    "a replica's gradient is dropped": Breakage(
        Row("dp2", "dense", 2, ()),
        _patched(BUCKETS, "_ParamAndGradBucketGroup.start_grad_sync", _second_replica_gives_none),
    ),
    "a micro-batch counts twice, another not at all": Breakage(
        Row("dp2", "dense", 2, ()), _patched("megatron_lm_zh.train.step", "Stepper.step", _first_one_twice)
    ),
    "updated parameters are not gathered": Breakage(
        Row("zero", "dense", 2, ("optim.use_distributed_optimizer=true",)),
        _patched(BUCKETS, "_ParamAndGradBucketGroup.start_param_sync", _nothing),
    ),
    "packed documents see each other": Breakage(
        Row("packed", "dense", 2, (*TP2, *PACKED)),
        _patched("megatron_lm_zh.train.step", "packed_documents", _one_document),
    ),
    "the experts' balancing loss is not scaled by tokens": Breakage(
        Row("ep2", "moe", 2, EP2),
        _patched(
            "megatron.core.transformer.moe.router",
            "TopKRouter.attach_and_log_load_balancing_loss",
            _not_by_tokens,
        ),
    ),
    "different experts' gradients are added up": Breakage(
        Row("ep2", "moe", 2, EP2), _patched("megatron_lm_zh.models.build", "_chunk", _experts_as_dense)
    ),
    "the experts' bias follows one rank's tokens": Breakage(
        Row(
            "bias",
            "moe",
            2,
            (
                *EP2,
                "model.moe_aux_loss_coeff=0",
                "model.moe_router_load_balancing_type=none",
                "model.moe_router_score_function=sigmoid",
                "model.moe_router_enable_expert_bias=true",
                "model.moe_router_bias_update_rate=1e-2",
            ),
        ),
        _patched(FINALIZE, "get_updated_expert_bias", _own_tokens_only),
    ),
}
"""What is broken: how."""
