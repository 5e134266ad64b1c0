from __future__ import annotations

import torch

from sidestep.training.optimizer import build_optimizer
from sidestep.training.training_config import OptimizerConfig, Phase
from tests.doubles import halting_network

PHASE = Phase(name="joint", epochs=1, lr=0.1)


def test_weight_decay_spares_biases_and_batch_norm_where_it_is_told_to() -> None:
    network = halting_network(14)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = build_optimizer(network, PHASE, OptimizerConfig(weight_decay=0.5, decayed="weights"))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        kept = name.endswith(".bias") or "bn" in name or "norm" in name
        expected = before[name] if kept else (1 - 0.1 * 0.5) * before[name]
        torch.testing.assert_close(parameter.detach(), expected)


def test_by_default_every_parameter_decays() -> None:
    network = halting_network(14)
    groups = build_optimizer(network, PHASE, OptimizerConfig(router_lr_factor=0.5)).param_groups
    assert [group["lr"] for group in groups] == [0.1, 0.05]
    assert {group["weight_decay"] for group in groups} == {1e-4}
