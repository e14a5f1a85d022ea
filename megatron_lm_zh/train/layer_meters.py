"""What the layers tell of themselves while they train: the experts' load, their balancing losses, the MTP losses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper, MultiTokenPredictionBlock
from torch import Tensor, nn

from megatron_lm_zh import compat
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.models.flops import has_experts
from megatron_lm_zh.runtime.device import Device

BALANCING = {
    "aux_loss": "load_balancing_loss",
    "seq_aux_loss": "seq_load_balancing_loss",
    "global_aux_loss": "global_load_balancing_loss",
}
_PREDICTION = re.compile(r"\bmtp\.layers\.(\d+)\.")


@dataclass(frozen=True)
class LayerFigures:
    """What all ranks' layers told of an interval."""

    figures: dict[str, float] = field(default_factory=dict)
    """Figures of the metrics row by name (docs/metrics.md)."""
    load: dict[int, list[float]] = field(default_factory=dict)
    """Tokens of each expert by layer, as multiples of an equal share."""


class LayerMeters:
    """Counts as the layers run, and adds up over all ranks when it is drained: every rank must drain at the same steps.

    megatron-core sums the losses; its own reduction of them is not used, for it leaves the ranks of a stage without
    experts with half of the sum, and rank 0, which reports, may be one of them.
    """

    def __init__(self, config: Config, model: Sequence[nn.Module], device: Device) -> None:
        self._config = config
        shape, experts = config.model, config.model.num_moe_experts or 0
        layers = range(shape.num_layers + (shape.mtp_num_layers or 0))
        self._moe_layers = [layer for layer in layers if has_experts(shape, layer)]
        options: dict[str, Any] = {"dtype": torch.float64, "device": device.torch_device}
        self._tokens = torch.zeros(len(layers), experts, **options)
        self._calls = torch.zeros(2, **options)  # of routers, and of MTP blocks, by micro-batch and rank
        self._forget()  # a model that this process trained before
        for name, module in (pair for chunk in model for pair in chunk.named_modules()):
            if isinstance(module, TopKRouter):
                module.register_forward_hook(self._router_hook(self._layer(name, module)))
            elif isinstance(module, MultiTokenPredictionBlock):
                module.register_forward_hook(self._prediction_hook())

    def drain(self) -> LayerFigures:
        """The figures since the last drain, the same on every rank; begins the next interval."""
        predictions = self._config.model.mtp_num_layers or 0
        if not self._moe_layers and not predictions:
            return LayerFigures()
        losses = torch.stack([*self._expert_losses(), *self._prediction_losses(predictions)])
        sums = torch.cat([losses.to(self._tokens), self._calls, self._tokens.flatten()])
        dist.all_reduce(sums)
        self._forget()
        return self._figures(sums.cpu(), predictions)

    def _figures(self, sums: Tensor, predictions: int) -> LayerFigures:
        aux, z, *mtp = sums[: 2 + predictions].tolist()
        routed, predicted = sums[2 + predictions : 4 + predictions].tolist()
        figures: dict[str, float] = {f"mtp_{depth}_loss": loss / predicted for depth, loss in enumerate(mtp, 1)}
        if not self._moe_layers:
            return LayerFigures(figures)
        model = self._config.model
        if self._balancing_loss() is not None:
            figures["moe_aux_loss"] = aux * self._parts_of_loss() / routed
        if model.moe_z_loss_coeff is not None:
            figures["moe_z_loss"] = z / routed
        tokens = sums[4 + predictions :].view_as(self._tokens)[self._moe_layers]
        load = tokens / tokens.mean(dim=1, keepdim=True)  # [MoE layers, experts]
        figures |= {
            "moe_load_max": float(load.max()),
            "moe_load_min": float(load.min()),
            "moe_load_max_mean": float(load.amax(dim=1).mean()),
        }
        return LayerFigures(figures, dict(zip(self._moe_layers, load.tolist(), strict=True)))

    def _expert_losses(self) -> Iterator[Tensor]:
        """This rank's sums of the balancing loss and of the z-loss, over layers and micro-batches."""
        tracked = compat.layer_losses(moe_utils)
        for name in (self._balancing_loss(), "z_loss"):
            yield tracked[name].sum() if name in tracked else self._nothing()

    def _prediction_losses(self, predictions: int) -> Iterator[Tensor]:
        """This rank's sum of the loss of each depth of multi-token prediction."""
        tracked = compat.prediction_losses(MTPLossLoggingHelper.tracker)
        yield from (self._nothing() for _ in range(predictions)) if tracked is None else tracked

    def _balancing_loss(self) -> str | None:
        """megatron-core's name of the balancing loss that this run has; None where it has none."""
        model = self._config.model
        return BALANCING.get(model.moe_router_load_balancing_type) if model.moe_aux_loss_coeff > 0 else None

    def _parts_of_loss(self) -> int:
        """Over how many ranks the parts of one balancing loss are spread, which only together are the loss."""
        layout = self._config.parallel
        if self._config.model.moe_router_load_balancing_type == "global_aux_loss":
            return dist.get_world_size() // layout.pipeline
        return layout.tensor * layout.context

    def _nothing(self) -> Tensor:
        return torch.zeros((), device=self._tokens.device)

    def _forget(self) -> None:
        self._tokens.zero_()
        self._calls.zero_()
        compat.forget_layer_losses(moe_utils)
        MTPLossLoggingHelper.tracker.clear()

    def _layer(self, name: str, router: TopKRouter) -> int:
        """Number of a router's layer, counted from 0; the layers of multi-token prediction follow the decoder's."""
        if prediction := _PREDICTION.search(name):
            return self._config.model.num_layers + int(prediction[1])
        assert router.layer_number is not None
        return int(router.layer_number) - 1

    def _router_hook(self, layer: int) -> Any:
        def count(router: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            if _counts(router):
                self._tokens[layer] += output[1].sum(dim=0)  # map of tokens to experts [tokens, experts]
                self._calls[0] += 1

        return count

    def _prediction_hook(self) -> Any:
        def count(block: nn.Module, inputs: Any, output: Any) -> None:
            if _counts(block):
                self._calls[1] += 1

        return count


def _counts(module: nn.Module) -> bool:
    """Whether a forward pass is one of training; of a layer that is computed again, the second one has gradients."""
    return module.training and torch.is_grad_enabled()
