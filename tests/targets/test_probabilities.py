"""Probabilities are those by which images left: with the temperature of the exit that was taken."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sidestep.execution.execution import cascade
from sidestep.networks.attached_exits import attach_exits
from sidestep.networks.network import DynamicNetwork
from sidestep.plan.format import save_plan
from sidestep.routing.exit_rule import ExitRule, scores
from sidestep.targets.native_engine import engine_of, routed
from sidestep.targets.run_plan import run_plan
from sidestep.types import Decisions, RoutedOutput
from tests import strategies
from tests.plan.networks import card_of, lively, network_of, plan_of

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("sidestep_engine") is None,
    reason="SIDESTEP-ENGINE MISSING: pip install ./engine",
)
TEMPERATURES = [0.25, 4.0, 2.5]
SIZE = 16


def an_exit_network(images: Tensor) -> tuple[DynamicNetwork, ExitRule]:
    """Return a network with three exits, and a rule that divides the images among them."""
    network = attach_exits(
        network_of({"name": "static"}, {"name": "cifar_resnet8"}),
        ["layer1", "layer2"],
        num_classes=5,
        width=4,
    )
    network = lively(network, images)
    with torch.no_grad():
        first, second, _ = scores(network(images).exit_logits, "confidence", TEMPERATURES)
    rest = second[first < first.quantile(0.5)]
    thresholds = [first.quantile(0.5).item(), rest.quantile(0.5).item()]
    return network, ExitRule(thresholds=thresholds, temperatures=TEMPERATURES)


def by_hand(output: RoutedOutput) -> Tensor:
    exits = output.decisions.exits.argmax(dim=1).tolist()
    rows = [(z / TEMPERATURES[exit]).softmax(0) for z, exit in zip(output.logits, exits, strict=True)]
    return torch.stack(rows)


def test_masked_and_cascade_say_the_same_probabilities() -> None:
    images = strategies.images(24, 0, size=SIZE)
    network, rule = an_exit_network(images)
    with torch.no_grad():
        masked, leaving = network(images, rule=rule), network(images, rule=rule, execution=cascade)
    assert set(masked.decisions.exits.argmax(dim=1).tolist()) == {0, 1, 2}
    torch.testing.assert_close(masked.probabilities, by_hand(masked))
    torch.testing.assert_close(leaving.probabilities, masked.probabilities, atol=1e-5, rtol=0)
    # An image has left an exit with the probability that the exit compared with its threshold.
    confidence, left = leaving.probabilities.amax(dim=1), leaving.decisions.exits.argmax(dim=1)
    for exit, threshold in enumerate(rule.thresholds):
        assert (confidence[left == exit] >= threshold - 1e-5).all()


def test_without_temperatures_probabilities_are_those_of_the_logits() -> None:
    logits = torch.randn(4, 3)
    output = RoutedOutput(logits=logits, decisions=Decisions(weights=torch.zeros(4, 0, 2)))
    torch.testing.assert_close(output.probabilities, logits.softmax(1))
    images = strategies.images(8, 0, size=SIZE)
    network, _ = an_exit_network(images)
    for rule in (None, ExitRule(thresholds=[0.3, 0.3])):
        with torch.no_grad():
            output = network(images, rule=rule)
        torch.testing.assert_close(output.probabilities, output.logits.softmax(1))


def test_a_plan_says_the_temperature_of_the_last_exit() -> None:
    network, rule = an_exit_network(strategies.images(24, 0, size=SIZE))
    assert plan_of(network, rule=rule).document["temperature"] == 2.5
    assert "temperature" not in plan_of(network, rule=ExitRule(thresholds=[0.3, 0.3])).document
    assert "temperature" not in plan_of(network).document


@needs_engine
def test_the_engine_says_the_same_probabilities() -> None:
    images = strategies.images(24, 0, size=SIZE)
    network, rule = an_exit_network(images)
    engine = engine_of(plan_of(network, rule=rule).as_bytes(), "float32")
    output = engine(images.numpy())
    with torch.no_grad():
        wanted = network(images, rule=rule)
    np.testing.assert_allclose(output.probabilities, wanted.probabilities, atol=1e-4)
    said = routed(output, card_of(network, (SIZE, SIZE)).cost, network.num_exits - 1)
    torch.testing.assert_close(said.probabilities, wanted.probabilities, atol=1e-4, rtol=0)
    torch.testing.assert_close(said.temperatures, wanted.temperatures)


@needs_engine
def test_a_plan_on_pictures_shows_the_same_probabilities(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)
    normal = (torch.from_numpy(pixels) / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.25])
    images = normal.permute(0, 3, 1, 2).contiguous()
    network, rule = an_exit_network(images)
    save_plan(tmp_path / "a.plan", plan_of(network, (SIZE, SIZE), rule))
    paths = [tmp_path / f"{index}.png" for index in range(24)]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture).save(path)
    found = run_plan(tmp_path / "a.plan", paths, precision="float32")
    with torch.no_grad():
        wanted = network(images, rule=rule)
    assert set(wanted.decisions.exits.argmax(dim=1).tolist()) == {0, 1, 2}
    best = wanted.probabilities.max(dim=1)
    assert [one.probability for one in found] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert [one.label for one in found] == ["abcde"[index] for index in best.indices.tolist()]
