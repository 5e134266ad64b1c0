"""Steps of a network for all budgets: which terms their loss has, and what each budget learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from sidestep.cost.macs import measure_cost
from sidestep.losses.exit_loss import exit_weights
from sidestep.methods import METHODS
from sidestep.networks.attached_exits import attach_exits
from sidestep.networks.models import build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.budget_router import AtBudgets, BudgetedRouter, budgets_of_step
from sidestep.runs.assemble import job_of
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.training.sandwich import copies_of
from sidestep.training.step import TrainingStep
from sidestep.types import Batch
from tests.doubles import noise

METHOD = {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard", "cost_scope": "network"}


def recipe(method: dict[str, Any], **training: Any) -> Recipe:
    phases = [{"name": "joint", "epochs": 1, "lr": 0.01}]
    return from_dict(
        {
            "method": method | {"budgets": {"low": 0.5} | method.get("budgets", {})},
            "model": {"name": "cifar_resnet14"},
            "data": {"source": "digits", "image_size": 16, "limit": 96},
            "training": {"phases": phases} | training,
        }
    )


def step_of(asked: Recipe, at: list[str] | None = None) -> TrainingStep:
    torch.manual_seed(0)
    method = METHODS[asked.method]
    backbone = build_backbone(asked.model, 10)
    network = RoutedNetwork(backbone, method.router(backbone, asked.settings))
    if at is not None:
        network = attach_exits(network, at, num_classes=10, width=8)
    step = TrainingStep(
        network.eval(),
        method=method,
        settings=asked.settings,
        cost=measure_cost(network, (16, 16)),
        config=asked.training,
    )
    step.begin(asked.training.phases[0], 0.0, noise())
    return step


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    return images, torch.arange(8), torch.rand(8, 6, generator=generator)


def outputs(step: TrainingStep, images: Tensor) -> tuple[Tensor, list[Any]]:
    """Return the budgets that the step draws, and the network's outputs for each by itself."""
    router, source = step.network.router, noise()
    assert isinstance(router, BudgetedRouter)
    budgets = budgets_of_step(0.5, source, images.device)
    sampler: Any = step.method.sampler(step.settings, source)
    output = step.network(torch.cat([images] * 4), sampler=sampler, router=AtBudgets(router, budgets))
    return budgets, [output, *[slice(8 * group, 8 * group + 8) for group in range(4)]]


@pytest.mark.parametrize("distillation", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_the_loss_is_the_mean_over_budgets_of_labels_costs_and_what_the_full_one_says(
    distillation: float,
) -> None:
    asked = recipe(METHOD | {"budgets": {"low": 0.5, "distillation": distillation}}, label_smoothing=0.1)
    step, (images, labels, statistics) = step_of(asked), batch()
    budgets, (output, *places) = outputs(step, images)
    losses, figures = step(images, labels, statistics)
    logits, cost = output.logits.double(), step.cost.fraction(output.decisions)
    soft = logits[places[0]].detach().softmax(dim=1)
    task = full = paid = 0.0
    for group, place in enumerate(places):
        learnt = float(F.cross_entropy(logits[place], labels, label_smoothing=0.1))
        task += learnt * (1 - distillation if group else 1) / 4
        if group:
            said = logits[place].log_softmax(dim=1)
            full += distillation * float((soft * (soft.log() - said)).sum(dim=1).mean()) / 4
        paid += float((cost[place].mean() - budgets[group]).square()) / 4
    assert float(losses["task"]) == pytest.approx(task, rel=1e-4)
    assert float(losses.get("full_budget", 0)) == pytest.approx(full, rel=1e-3)
    assert float(losses["cost"]) == pytest.approx(paid, rel=1e-3)
    assert "rank" in losses and float(figures["fraction"]) == pytest.approx(float(cost.mean()), rel=1e-4)


def test_the_full_budget_is_not_taught() -> None:
    method = METHOD | {"cost_weight": 0, "srm": {"alpha": 0}}
    step, (images, labels, _) = step_of(recipe(method)), batch()
    losses, _ = step(images, labels)
    (both,) = torch.autograd.grad(losses["full_budget"], step.network.backbone.fc.weight)
    _, (output, *places) = outputs(step, images)
    said = torch.cat([output.logits[place] for place in places[1:]])
    wanted = torch.cat([output.logits[places[0]].detach()] * 3)
    alone = F.kl_div(said.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
    (expected,) = torch.autograd.grad(0.75 * alone, step.network.backbone.fc.weight)
    torch.testing.assert_close(both, expected)


@torch.no_grad()
def test_every_exit_learns_from_the_same_exit_of_the_full_budget() -> None:
    asked = recipe(METHOD, exits={"weighting": "linear"})
    step, (images, labels, statistics) = step_of(asked, ["layer1", "layer2"]), batch()
    losses, _ = step(images, labels, statistics)
    _, (output, *places) = outputs(step, images)
    expected = torch.zeros(())
    for weight, logits in zip(exit_weights(3, "linear"), output.exit_logits, strict=True):
        wanted = logits[places[0]].detach().log_softmax(1)
        for place in places[1:]:
            said = logits[place].log_softmax(1)
            expected += weight * F.kl_div(said, wanted, log_target=True, reduction="batchmean") / 4
    assert float(losses["full_budget"]) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "convnet_aig", "cost_weight": 1.0},
        {"name": "codinet", "num_units": 4, "path_weight": 0, "cost_weight": 1.0},
    ],
)
@torch.no_grad()
def test_the_budget_is_the_target_of_the_cost_loss(method: dict[str, Any]) -> None:
    step, (images, labels, _) = step_of(recipe(method)), batch()
    budgets, (output, *places) = outputs(step, images)
    losses, _ = step(images, labels)
    rates = [output.decisions.execution()[place].mean(dim=0) for place in places]
    pairs = list(zip(rates, budgets, strict=True))
    if method["name"] == "convnet_aig":
        expected = torch.stack([(rate - budget).square().mean() for rate, budget in pairs]).mean()
    else:
        expected = torch.stack([(rate.sum() - 6 * budget).abs() for rate, budget in pairs]).mean()
    assert float(losses["cost"]) == pytest.approx(float(expected), rel=1e-3)


def test_copies_keep_their_order_and_memory_format() -> None:
    images, labels, statistics = batch()
    images = images.to(memory_format=torch.channels_last)
    copied = copies_of(Batch(images=images, labels=labels, statistics=statistics), 3)
    assert torch.equal(copied.images[8:16], images) and copied.labels.tolist() == [*range(8)] * 3
    assert copied.images.is_contiguous(memory_format=torch.channels_last)
    assert copied.statistics is not None and len(copied.statistics) == 24


@torch.no_grad()
def test_a_phase_that_asks_no_router_has_no_budgets() -> None:
    asked = recipe(METHOD, phases=[{"name": "full", "epochs": 1, "train": "blocks", "paths": "full"}])
    asked.training.phases.append(asked.training.phases[0])
    step, (images, labels, _) = step_of(asked), batch()
    losses, figures = step(images, labels)
    assert list(losses) == ["task"]
    assert float(figures["fraction"]) > 1


def test_a_training_for_all_budgets_runs_every_image_four_times() -> None:
    macs = []
    for low in (None, 0.5):
        asked = recipe(METHOD | {"budgets": {"low": low}}, batch_size=32)
        macs.append(job_of(asked, Fabric(accelerator="cpu", devices=1)).forward_macs)
    assert macs[1] == 4 * macs[0] > 0
