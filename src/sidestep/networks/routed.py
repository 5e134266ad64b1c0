"""A backbone with a router: the dynamic network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.layers.unit import Execute
from sidestep.networks.network import DynamicNetwork, masked
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sampler, argmax
from sidestep.types import Decisions, RoutedOutput


class RoutedNetwork(DynamicNetwork):
    """Asks a router in front of every unit, samples its logits, and runs the unit accordingly.

    Args:
        backbone: the static network.
        router: who decides; None executes every unit and makes the network static.
    """

    def __init__(self, backbone: Backbone, router: Router | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.router = router

    @property
    def shape_of_choices(self) -> tuple[int, int]:
        return len(self.backbone.units), self.backbone.num_options

    @property
    def static(self) -> nn.Module:
        return self.backbone

    def parts(self) -> dict[str, nn.Module]:
        return {"blocks": self.backbone} | ({} if self.router is None else {"routers": self.router})

    def forward(
        self,
        images: Tensor,
        *,
        sampler: Sampler = argmax,
        router: Router | None = None,
        execute: Execute = masked,
    ) -> RoutedOutput:
        router = router if router is not None else self.router
        if router is None:
            return RoutedOutput(logits=self.backbone(images), decisions=self._all_executed(images))
        x = self.backbone.stem(images)
        state = router.begin(images)
        logits, weights, relaxed = [], [], []
        for index, unit in enumerate(self.backbone.units):
            scores, state = router(index, x, state)
            sample = sampler(scores)
            x = execute(unit, x, sample.weights)
            logits.append(scores)
            weights.append(sample.weights)
            relaxed.append(sample.relaxed)
        decisions = Decisions(
            weights=torch.stack(weights, dim=1),
            logits=torch.stack(logits, dim=1),
            relaxed=torch.stack(relaxed, dim=1),
        )
        return RoutedOutput(logits=self.backbone.head(x), decisions=decisions)

    def _all_executed(self, images: Tensor) -> Decisions:
        backbone = self.backbone
        one_path = torch.zeros(len(backbone.units), backbone.num_options, device=images.device)
        one_path[:, -1] = 1
        return Decisions(weights=one_path.expand(images.shape[0], -1, -1))
