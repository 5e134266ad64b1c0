"""Plans whose sums have lost their factors, read literally, against the networks themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sidestep.plan.format import Plan, lists_of_ops
from sidestep.targets.plain_sums import with_plain_sums
from tests import strategies
from tests.plan.networks import network_of, plan_of
from tests.plan.test_network import SMALL, assert_parity, rdi_net

DEEP = {"name": "cifar_resnet20"}


def factors(plan: Plan) -> set[float]:
    """Return what the second summands of all sums are multiplied by."""
    return {op["alpha"] for ops in lists_of_ops(plan.steps) for op in ops if op["op"] == "vadd"}


@pytest.mark.parametrize(("router", "model", "left"), [
    ({}, SMALL, {1.0}),
    ({"gamma": 0.3, "reach": 5}, DEEP, {1.0}),
    # Divided by the sum of all factors, which nothing can scale: one of two factors is left.
    ({"normalize_adj": True}, SMALL, None),
    # Weights of several routers have one scale.
    ({"share_gcn": "all"}, SMALL, None),
    # Scales over eight routers reach further than float32.
    ({"gamma": 1e-4}, DEEP, {1e-4, 1e-8}),
])  # fmt: skip
def test_factors_move_into_the_weights(
    router: dict[str, Any], model: dict[str, Any], left: set[float] | None
) -> None:
    network, images = network_of(rdi_net(**router), model), strategies.images(12, 1, size=16)
    plan = plan_of(network)
    before = {name: tensor.clone() for name, tensor in plan.tensors.items()}
    plain = with_plain_sums(plan)
    assert factors(plan) != {1.0}
    assert len(factors(plain)) <= len(factors(plan))
    if left is not None:
        assert factors(plain) == left
    assert_parity(plain, network, images)
    assert all(torch.equal(plan.tensors[name], tensor) for name, tensor in before.items())


def test_plans_without_factors_stay_as_they_are() -> None:
    plan = plan_of(network_of({"name": "skipnet"}, SMALL))
    assert with_plain_sums(plan) is plan
