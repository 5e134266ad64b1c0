"""Budgets in plans: a curve's points that are worth their cost, with thresholds as engines compare them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

import sidestep
from sidestep.errors import CheckpointError, ExecutionError
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.plan.levels import Level, levels_in, rising
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.export import served
from sidestep.runs.run_folder import open_run
from tests.doubles import attached_network
from tests.reference.plan import read_plan


def level(macs: float, accuracy: float, threshold: float = 0.5, num_exits: int = 2) -> Level:
    rates = [0.5, 0.5] + [0.0] * (num_exits - 2)
    return Level(macs=macs, accuracy=accuracy, exit_rates=rates, thresholds=[threshold] * (num_exits - 1))


def test_levels_rise_in_cost_and_accuracy() -> None:
    levels = [level(3, 0.8), level(1, 0.7), level(2, 0.7), level(4, 0.79), level(1, 0.6), level(5, 0.9)]
    assert [one.macs for one in rising(levels)] == [1, 3, 5]


@pytest.fixture(scope="module")
def content() -> bytes:
    """A plan whose own thresholds are those of its second level."""
    network = attached_network().eval()
    levels = [level(1, 0.5, -1, 3), level(2, 0.6, 0.3, 3), level(3, 0.7, 9, 3)]
    card = PlanCard(
        input_size=(8, 8),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        class_names=tuple("abcdefghij"),
        cost=sidestep.measure_cost(network, (8, 8)),
        levels=levels,
    )
    rule = ExitRule(thresholds=levels[1].thresholds, criterion="entropy")
    return export_plan(network, card, rule).as_bytes()


def test_levels_have_thresholds_as_the_steps_have_them(content: bytes, tmp_path: Path) -> None:
    found = levels_in(content)
    assert [(one.macs, one.accuracy) for one in found] == [(1, 0.5), (2, 0.6), (3, 0.7)]
    assert all(one.exit_rates == [0.5, 0.5, 0] for one in found)
    (tmp_path / "x.plan").write_bytes(content)
    steps = read_plan(tmp_path / "x.plan")[0]["steps"]
    written = [step["exit"]["threshold"] for step in steps if "exit" in step]
    assert written == found[1].thresholds
    assert found[0].thresholds == [2 * math.log(10)] * 2  # in nats, which fall with certainty


def broken(content: bytes, **changes: Any) -> bytes:
    """Return a plan file with other entries in the first of its budgets."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    document = json.loads(header["__metadata__"]["sidestep_plan"])
    document["budgets"][0] |= changes
    header["__metadata__"]["sidestep_plan"] = json.dumps(document)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@pytest.mark.parametrize(
    "changes",
    [
        {"thresholds": [0.5] * 9},
        {"exit_rates": [1.0]},
        {"accuracy": "high"},
        {"colour": 1},
        {"macs": math.inf},
        {"thresholds": None},
    ],
)
def test_budgets_that_do_not_fit_are_refused(content: bytes, changes: dict[str, Any]) -> None:
    with pytest.raises(ExecutionError, match="export the run again"):
        levels_in(broken(content, **changes))


DIGITS = {"source": "digits", "image_size": 16, "limit": 200, "crop_padding": 1, "flip": False, "workers": 0}
RECIPE: dict[str, Any] = {
    "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"},
    "model": {"name": "cifar_resnet8", "exits": {"at": ["layer1", "layer2"], "width": 8}},
    "data": DIGITS,
    "training": {"phases": [{"name": "joint", "epochs": 1, "lr": 0.1}], "batch_size": 50},
}


def test_a_run_with_a_curve_has_its_budgets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    run = sidestep.train(tmp_path / "tiny.yaml", tmp_path / "run")
    assert served(open_run(run, "best")).levels == []  # neither rule nor curve
    drawn = sidestep.curve(run, num_budgets=4)
    free = served(open_run(run, "best"))
    assert free.rule is not None and list(free.rule.thresholds) == free.levels[-1].thresholds
    assert not served(open_run(run, "last")).levels
    middle = drawn.points[-2].budget_macs
    assert middle is not None
    budget = sidestep.ExitBudget(gflops=2e-9 * middle)
    sidestep.calibrate(run, budget)
    content = Path(sidestep.export_run(run).path).read_bytes()
    assert levels_in(content) == free.levels
    steps = read_plan(run / "best.plan")[0]["steps"]
    kept = open_run(run, "best").exit_rule
    assert kept is not None
    written = [step["exit"]["threshold"] for step in steps if "exit" in step]
    assert written == pytest.approx(list(kept.thresholds))
    sidestep.calibrate(run, sidestep.ExitBudget(fraction=0.8, criterion="margin"))
    with caplog.at_level("INFO", "sidestep"):
        assert served(open_run(run, "best")).levels == []
    assert "sidestep curve" in caplog.text and "--criterion margin" in caplog.text
    record = json.loads((run / "exits.json").read_text())
    (run / "exits.json").write_text(json.dumps(record | {"full_macs": 1.0}))
    with pytest.raises(CheckpointError, match="of the run's network"):
        served(open_run(run, "best"))
    (run / "exits.json").write_text(json.dumps({"checkpoint": "best"}))
    with pytest.raises(CheckpointError, match="draw it again"):
        served(open_run(run, "best"))
