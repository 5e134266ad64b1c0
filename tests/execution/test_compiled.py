"""Compiled units: the masked execution to rounding, and a sentence for networks that have no use for them."""

import pytest
import torch

from sidestep.assembly import untrained
from sidestep.errors import RecipeError
from sidestep.execution.compiled import compile_units
from sidestep.recipe import from_dict


def build(method: dict[str, object]) -> torch.nn.Module:
    recipe = from_dict(
        {
            "name": "tiny",
            "method": method,
            "model": {"name": "cifar_resnet8"},
            "data": {"source": "digits"},
            "training": {"phases": [{"name": "joint", "epochs": 1}]},
        }
    )
    return untrained(recipe, num_classes=10)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled_units_train_as_masked_ones_do() -> None:
    network = build({"name": "rdi_net", "router": {"dim": 8}})
    images = torch.randn(4, 3, 16, 16)
    results = []
    for execute in (None, compile_units(network)):
        network.zero_grad()
        options = {} if execute is None else {"execute": execute}
        out = network.train()(images, **options)
        out.logits.square().sum().backward()
        results.append(
            [out.logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["static", "act"])
def test_networks_without_routed_units_refuse_to_be_compiled(method: str) -> None:
    with pytest.raises(RecipeError, match="compile needs a network whose routers decide"):
        compile_units(build({"name": method}))
