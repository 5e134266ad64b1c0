"""Surveys of units: every figure is that of the network run on that path."""

import math

import pytest
import torch
from torch.nn import functional as F

from sidestep.backbones.backbone import Backbone
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.evaluation.unit_survey import Tried, UnitSurvey, price, survey_units
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import ConstantRouter
from sidestep.types import Batch

UNITS = 6


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(3)
    return build_backbone(ModelConfig(name="cifar_resnet14"), num_classes=5).eval()


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    sizes = (17, 9)
    return [
        Batch(
            images=torch.randn(size, 3, 16, 16, generator=generator),
            labels=torch.randint(5, (size,), generator=generator),
        )
        for size in sizes
    ]


def survey(backbone: Backbone, batches: list[Batch], **options: object) -> UnitSurvey:
    cost = measure_cost(RoutedNetwork(backbone), (16, 16))
    names = [str(unit) for unit in range(UNITS)]
    return survey_units(backbone, batches, cost, names=names, **options)  # type: ignore[arg-type]


def literal(backbone: Backbone, batches: list[Batch], tried: Tried) -> tuple[torch.Tensor, float, float]:
    """Return what images are right, the loss, and the cost of a path, by the network itself."""
    rates = [float(runs) for runs in tried.path]
    network = RoutedNetwork(backbone, ConstantRouter.keep(rates)).eval()
    with torch.inference_mode():
        outputs = [network(batch.images) for batch in batches]
    logits = torch.cat([output.logits for output in outputs])
    labels = torch.cat([batch.labels for batch in batches])
    cost = measure_cost(network, (16, 16)).per_sample(outputs[0].decisions, routers=False)[0]
    return logits.argmax(dim=1) == labels, float(F.cross_entropy(logits, labels)), float(cost)


def test_every_path_is_what_the_network_does_on_it(backbone: Backbone, batches: list[Batch]) -> None:
    found = survey(backbone, batches, random_paths=5)
    whole, _, _ = literal(backbone, batches, found.whole)
    assert found.num_images == 26 and found.whole.fraction == 1
    assert [tried.path.index(False) for tried in found.without] == list(range(UNITS))
    assert len(found.pairs) == UNITS * (UNITS - 1) // 2
    assert [tried.path.count(True) for tried in found.greedy] == [5, 4, 3, 2, 1, 0]
    for tried in (found.whole, *found.without, *found.pairs, *found.greedy):
        right, loss, cost = literal(backbone, batches, tried)
        assert tried.accuracy == pytest.approx(float(right.double().mean()))
        assert tried.loss == pytest.approx(loss, rel=1e-4)
        assert tried.cost == pytest.approx(cost, rel=1e-6)
        change = right.double() - whole.double()
        assert tried.error == pytest.approx(float(change.std(correction=0)) / math.sqrt(26))


def test_greedy_drops_what_raises_the_loss_least_for_what_it_saves(
    backbone: Backbone, batches: list[Batch]
) -> None:
    found = survey(backbone, batches, pairs=False)
    cost = measure_cost(RoutedNetwork(backbone), (16, 16))
    rises = [tried.loss - found.whole.loss for tried in found.without]
    saves = [cost.full - price(cost, tried.path) for tried in found.without]
    for_nothing = [unit for unit in range(UNITS) if rises[unit] <= 0]
    if for_nothing:
        expected = max(for_nothing, key=lambda unit: -rises[unit] * saves[unit])
    else:
        expected = min(range(UNITS), key=lambda unit: rises[unit] / saves[unit])
    assert found.greedy[0].path.index(False) == expected
    for shorter, longer in zip(found.greedy[1:], found.greedy, strict=False):
        assert all(before or not now for now, before in zip(shorter.path, longer.path, strict=True))
    assert found.pairs == []


def test_the_oracle_takes_the_cheapest_path_that_is_right(backbone: Backbone, batches: list[Batch]) -> None:
    found = survey(backbone, batches)
    tried = {each.path: each for each in (found.whole, *found.without, *found.pairs, *found.greedy)}
    # The greedy search has looked at more paths than it took, which may be cheaper.
    assert found.oracle.num_paths >= len(tried)
    rights = {path: literal(backbone, batches, each)[0] for path, each in tried.items()}
    some = torch.stack(list(rights.values())).any(dim=0).double().mean()
    assert found.oracle.accuracy >= float(some) - 1e-9
    fewer = survey(backbone, batches, pairs=False)
    assert fewer.oracle.accuracy <= found.oracle.accuracy + 1e-9


def test_worth_is_above_zero_and_budgets_find_paths(backbone: Backbone, batches: list[Batch]) -> None:
    found = survey(backbone, batches, pairs=False)
    assert (found.worth() > 0).all()
    half = found.cheapest(0.5)
    assert half is not None and half.fraction <= 0.5
    assert set(half.text) <= {"0", "1"} and len(half.text) == UNITS
    assert found.cheapest(0.0) is None


def test_a_network_without_units_is_refused(batches: list[Batch]) -> None:
    class Whole(Backbone):
        @property
        def units(self) -> list[object]:  # type: ignore[override]
            return []

    with pytest.raises(RecipeError, match="needs a network with units that can be left out, got one without"):
        survey_units(
            Whole(),
            batches,
            measure_cost(RoutedNetwork(build_backbone(ModelConfig(name="cifar_resnet8"), 5)), (16, 16)),
            names=[],
        )
