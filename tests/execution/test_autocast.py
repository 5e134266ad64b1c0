"""Under autocast, what an image gets depends neither on the execution nor on the rest of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sidestep
from sidestep.execution.execution import Execution, cascade, gathered, masked
from sidestep.layers.unit import Unit
from sidestep.routing.samplers import Sample
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import from_dict

RDI: dict[str, Any] = {"name": "rdi_net", "router": {"dim": 8}}
EXITS = {"exits": {"at": ["layer1", "layer2"], "width": 8}}
SMALL = {"channels": 4, "growth": 4, "step": 1, "gr_factor": [1, 2], "bn_factor": [1, 2]}
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cifar": (RDI, {"name": "cifar_resnet14", "se_ratio": 4}),
    "cifar, three options": (RDI, {"name": "cifar_resnet14", "options": 3}),
    "cifar, exits": (RDI, {"name": "cifar_resnet14", **EXITS}),
    "preact": (RDI, {"name": "cifar_preact_resnet14"}),
    "imagenet": (RDI, {"name": "resnet18"}),
    "timm resnet": (RDI, {"name": "timm/resnet10t"}),
    "timm convnext": (RDI, {"name": "timm/convnext_atto"}),
    "timm vit": (RDI, {"name": "timm/test_vit"}),
    "timm vit, sublayers": (RDI, {"name": "timm/test_vit", "units": "sublayers"}),
    "skipnet": ({"name": "skipnet"}, {"name": "cifar_resnet14"}),
    "act": ({"name": "act"}, {"name": "cifar_preact_resnet14"}),
    "sact": ({"name": "sact"}, {"name": "cifar_resnet14"}),
    "msdnet": ({"name": "msdnet"}, {"name": "msdnet", "num_scales": 2, "blocks": 3, "base": 1, **SMALL}),
    "ranet": (
        {"name": "ranet"},
        {"name": "ranet", "scale_list": [1, 2], "blocks": 2, "block_step": 1, **SMALL, "step": 2}
        | {"gr_factor": [2, 1], "bn_factor": [2, 1]},
    ),
}


def network_of(name: str) -> Any:
    method, model = NETWORKS[name]
    phases = {"phases": [{"name": "joint", "epochs": 1}]}
    recipe = from_dict({"name": "x", "method": method, "model": model, "training": phases})
    return untrained(recipe, num_classes=5, input_size=(64, 64)).eval()


def noting(execution: Execution) -> tuple[Execution, list[torch.dtype]]:
    """Return an execution that notes the dtype of every unit's output."""
    dtypes: list[torch.dtype] = []

    def run(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
        out = execution.run(unit, x, weights)
        dtypes.append(out.dtype)
        return out

    return replace(execution, run=run), dtypes


def mixed() -> Callable[[Tensor], Sample]:
    """Return a sampler by which all images skip a unit, or all execute one, or they differ."""
    asked = iter(range(1000))

    def sample(logits: Tensor) -> Sample:
        batch, options = logits.shape
        step = next(asked)
        chosen = torch.arange(batch) % options
        chosen = (torch.zeros_like(chosen), chosen, torch.full_like(chosen, options - 1))[step % 3]
        weights = torch.nn.functional.one_hot(chosen, options).float()
        return Sample(weights=weights, relaxed=weights)

    return sample


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 6])
def test_every_execution_gives_what_masked_gives(name: str, batch: int) -> None:
    network = network_of(name)
    images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    rule = None
    if network.has_early_exits:
        rule = sidestep.ExitRule(thresholds=[0.21] * (network.num_exits - 1))
    outputs, dtypes = {}, {}
    ways = (masked, gathered, cascade) if rule else (masked, gathered)
    for way in ways:
        execution, dtypes[way.name] = noting(way)
        sampler: Any = mixed()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs[way.name] = network(images, execution=execution, rule=rule, sampler=sampler)
    for way in ways[1:]:
        found, expected = outputs[way.name], outputs["masked"]
        assert found.logits.dtype == expected.logits.dtype
        torch.testing.assert_close(found.logits, expected.logits, rtol=0.1, atol=0.05)
        if network.chooses_options and way is gathered:
            assert dtypes[way.name] == dtypes["masked"] and dtypes["masked"]
            assert torch.equal(found.decisions.weights, expected.decisions.weights)


def test_an_image_that_skips_everything_has_the_dtype_of_its_batch() -> None:
    network = network_of("timm convnext")
    for unit in network.units:
        x = torch.randn(4, unit.in_channels, 16, 16)
        weights = torch.tensor([[1.0, 0.0]] * 4)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            whole = [way.run(unit, x, weights) for way in (masked, gathered)]
        assert [out.dtype for out in whole] == [torch.float32] * 2
        assert torch.equal(*whole)
