from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from sidestep.errors import RecipeError
from sidestep.networks.network import DynamicNetwork
from sidestep.training.checkpoint import load_checkpoint, save_checkpoint
from sidestep.training.optimizer import build_optimizer, build_schedule, can_be_recorded, check_options
from sidestep.training.state import TrainingState, restore_optimizer
from sidestep.training.training_config import Algorithm, OptimizerConfig, Phase
from tests.doubles import halting_network, lively_network

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


def config_of(algorithm: str, **values: Any) -> OptimizerConfig:
    return OptimizerConfig(algorithm=algorithm, weight_decay=0.01, **values)


def trained(
    network: DynamicNetwork, optimizer: torch.optim.Optimizer, steps: range
) -> dict[str, torch.Tensor]:
    for step in steps:
        for number, parameter in enumerate(network.parameters()):
            generator = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_every_algorithm_learns_and_goes_on_exactly_after_a_checkpoint(
    algorithm: str, tmp_path: Path
) -> None:
    network, config = lively_network(), config_of(algorithm)
    state, optimizer = TrainingState(network, ema_decay=0.0), build_optimizer(network, PHASE, config)
    before = trained(network, optimizer, range(0))
    half = trained(network, optimizer, range(3))
    learnt = {name for name, _ in network.named_parameters()}
    assert not any(torch.equal(before[name], half[name]) for name in learnt)
    save_checkpoint(tmp_path / "last.safetensors", state.checkpoint(optimizer, {}))
    expected = trained(network, optimizer, range(3, 5))

    checkpoint, other = load_checkpoint(tmp_path / "last.safetensors"), lively_network()
    TrainingState(other, ema_decay=0.0).restore(checkpoint)
    again = build_optimizer(other, PHASE, config)
    restore_optimizer(again, checkpoint)
    found = trained(other, again, range(3, 5))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_options_reach_the_algorithm() -> None:
    config = OptimizerConfig(algorithm="muon", momentum=0.8, nesterov=True, options={"ns_steps": 2})
    (group, _) = build_optimizer(lively_network(), PHASE, config).param_groups
    assert (group["momentum"], group["nesterov"], group["ns_steps"]) == (0.8, True, 2)
    check_options(config)


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        ("lion", {"beta": 0.9}, "options.beta must be an option of lion, which are betas"),
        ("sgd", {"fused": False}, "options.fused must be an option of sgd, which are dampening"),
        ("adamw", {"betas": [0.9, 1.5]}, "options must suit adamw"),
        ("muon", {"conv_mode": "wrong"}, "options must suit muon"),
    ],
)
def test_options_that_an_algorithm_does_not_take_are_refused(
    algorithm: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_options(config_of(algorithm, options=options))


@pytest.mark.parametrize("algorithm", ["adam", "lion"])
def test_momentum_has_no_effect_on_algorithms_without(algorithm: str) -> None:
    with pytest.raises(RecipeError, match=f"momentum and nesterov have no effect on {algorithm}"):
        config_of(algorithm, momentum=0.8)


def test_only_algorithms_whose_steps_are_tensors_are_recorded() -> None:
    found = {name for name in get_args(Algorithm) if can_be_recorded(config_of(name))}
    assert found == {"sgd", "adam", "adamw"}


def test_a_triangular_schedule_rises_and_falls_in_straight_lines() -> None:
    network = lively_network()
    phase = Phase(name="joint", epochs=4, lr=0.8, schedule="triangular", warmup_epochs=1)
    optimizer = build_optimizer(network, phase, OptimizerConfig(router_lr_factor=0.5))
    schedule, rates = build_schedule(optimizer, phase, steps_per_epoch=4), []
    for step in range(16):
        schedule.step_update(step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    expected = [0.8 * step / 4 for step in range(4)] + [0.8 * (1 - step / 12) for step in range(12)]
    assert [rate for rate, _ in rates] == pytest.approx(expected)
    assert [router for _, router in rates] == pytest.approx([rate / 2 for rate in expected])


def test_a_triangular_schedule_needs_epochs_to_fall_in() -> None:
    with pytest.raises(RecipeError, match="warmup_epochs must be below epochs"):
        Phase(name="joint", epochs=2, schedule="triangular", warmup_epochs=2)
