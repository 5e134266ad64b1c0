"""Prices in milliseconds: fitted to times of paths."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.evaluation import bench
from sidestep.evaluation.given_paths import PathRunner, Paths
from sidestep.evaluation.price_fit import fit_prices
from sidestep.types import CostModel, Decisions

COST = CostModel(
    fixed=1.0,
    options=torch.tensor([[0.0, 5.0], [1.0, 7.0], [0.0, 3.0]]),
    routers=torch.ones(3),
    exits=torch.tensor([1.0, 2.0, 4.0]),
    exit_units=torch.tensor([1, 1, 3]),
)
# What the parts take, in milliseconds.
TAKES = CostModel(
    fixed=2.0,
    options=torch.tensor([[0.0, 3.0], [0.0, 1.5], [0.0, 0.5]]),
    routers=torch.zeros(3),
    exits=torch.tensor([0.0, 1.0, 3.0]),
    exit_units=COST.exit_units,
    unit="ms",
)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bench, "_TURN_SECONDS", 0.001)


class Clock:
    """A clock that stands still but for what paths take."""

    def __init__(self, takes: CostModel, noise: float = 0.0) -> None:
        self.now, self.takes, self.noise = 0.0, takes, noise
        self.generator = torch.Generator().manual_seed(0)

    def run(self, images: Tensor, paths: Paths) -> None:
        weights = torch.nn.functional.one_hot(paths.options, 2).float()
        exits = None
        if self.takes.exits is not None and self.takes.exit_units is not None:
            before = self.takes.exit_units[paths.exits].unsqueeze(1)
            weights = weights * (torch.arange(weights.shape[1]) < before).unsqueeze(2)
            exits = torch.nn.functional.one_hot(paths.exits, len(self.takes.exits)).float()
        ms = self.takes.per_sample(Decisions(weights=weights, exits=exits)).sum().item()
        self.now += ms / 1e3 * (1 + self.noise * torch.randn((), generator=self.generator).item())

    def runner(self) -> PathRunner:
        return PathRunner(convert=lambda images: images, run=self.run)


def fit(clock: Clock, monkeypatch: pytest.MonkeyPatch, cost: CostModel = COST, **settings: Any) -> Any:
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock.now)
    values = {"chooses": True, "batch_size": 4, "seconds": 0.0} | settings
    return fit_prices(clock.runner(), torch.zeros(64, 3, 2, 2), cost, **values)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_prices_are_what_parts_take(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fit(Clock(TAKES), monkeypatch, batch_size=batch_size)
    assert found.error < 1e-6 and found.prices.unit == "ms"
    assert found.prices.fixed == pytest.approx(2.0)
    assert torch.allclose(found.prices.options, TAKES.options, atol=1e-5)
    assert torch.allclose(found.prices.exits, TAKES.exits, atol=1e-5)
    assert torch.equal(found.prices.exit_units, TAKES.exit_units)


def test_noise_is_told_and_averaged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fit(Clock(TAKES, noise=0.05), monkeypatch)
    assert 0.005 < found.error < 0.06
    assert found.prices.full == pytest.approx(TAKES.full, rel=0.05)


def test_no_part_has_a_price_below_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = CostModel(fixed=5.0, options=torch.tensor([[0.0, -1.0]] * 3), routers=torch.zeros(3))
    plain = CostModel(fixed=1.0, options=torch.ones(3, 2), routers=torch.ones(3))
    found = fit(Clock(cheap), monkeypatch, cost=plain)
    assert (found.prices.options == 0).all() and found.prices.exits is None and found.prices.fixed > 0


def test_units_that_nobody_chooses_about_are_in_the_way_to_an_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = fit(Clock(TAKES), monkeypatch, chooses=False)
    assert (found.prices.options == 0).all()
    assert found.prices.fixed == pytest.approx(5.0)
    assert found.prices.exits.tolist() == pytest.approx([0.0, 1.0, 5.0])


def test_the_last_member_of_a_cascade_has_a_price_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fit(Clock(TAKES), monkeypatch, cost=replace(COST, static=9.0))
    assert found.prices.static == pytest.approx(2.0 + 1.5 + 0.5, rel=1e-5)
    assert found.prices.full == found.prices.static


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_a_time_limit_has_to_be_one(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="seconds must be at least 0 and finite"):
        fit(Clock(TAKES), monkeypatch, seconds=seconds)


def test_the_time_limit_ends_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, began = [], time.monotonic()
    runner = PathRunner(convert=lambda images: images, run=lambda images, paths: calls.append(1))
    fit_prices(runner, torch.zeros(4, 3, 2, 2), COST, chooses=True, batch_size=1, seconds=0.2)
    assert time.monotonic() - began >= 0.2 and len(calls) > 3 * 32 * 32
