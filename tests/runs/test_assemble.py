"""Networks of recipes: initial weights follow from the seed, and a caller's generator stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sidestep.methods import METHODS
from sidestep.networks.models import build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import Recipe, from_dict


def recipe(**changes: Any) -> Recipe:
    values = {
        "method": {"name": "rdi_net", "router": {"dim": 8}},
        "model": {"name": "cifar_resnet8"},
        "training": {"phases": [{"name": "joint", "epochs": 1}], "seed": 3},
    }
    return from_dict(values | changes)


RANET = {"name": "ranet", "scale_list": [1, 2], "gr_factor": [2, 1], "bn_factor": [2, 1]}
EXITS = {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 4}}


@pytest.mark.parametrize(
    "changes",
    [{}, {"model": EXITS}, {"method": {"name": "ranet"}, "model": RANET}],
    ids=["routed", "attached", "ranet"],
)
def test_weights_follow_from_the_seed_and_leave_the_generator_alone(changes: dict[str, Any]) -> None:
    chosen = recipe(**changes)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        states.append(untrained(chosen, num_classes=10, input_size=(32, 32)).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_are_those_of_a_generator_that_was_seeded() -> None:
    chosen = recipe()
    torch.manual_seed(3)
    backbone = build_backbone(chosen.model, 10)
    expected = RoutedNetwork(backbone, METHODS["rdi_net"].router(backbone, chosen.settings)).state_dict()
    found = untrained(chosen, num_classes=10).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
