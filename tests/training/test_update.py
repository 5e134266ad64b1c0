"""Recorded updates: the curve of eager ones, one recording per kind of step, and what happens without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sidestep.errors import RecipeError, TrainingError
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.train import train
from sidestep.training import loop
from sidestep.training.meter import Meter
from sidestep.training.optimizer import TensorRates
from sidestep.training.training_config import Ramp
from sidestep.training.update import WARM_UP_STEPS, Figures, GraphedUpdate
from tests.marks import slow_where
from tests.training.test_fit import rows

STEPS = 12


def recipe(**changes: Any) -> Recipe:
    phases = [
        {"name": "warm-up", "epochs": 1, "train": "blocks", "paths": "uniform", "lr": 1 / 64},
        {"name": "joint", "epochs": 1, "lr": 1 / 64, "schedule": "cosine"},
    ]
    values: dict[str, Any] = {
        "name": "tiny",
        "method": {"name": "rdi_net", "router": {"dim": 8}},
        "model": {"name": "cifar_resnet8"},
        "data": {"source": "digits", "image_size": 16, "limit": STEPS * 32, "crop_padding": 1},
        "training": {"phases": phases, "batch_size": 32},
    }
    return from_dict(values | changes)


def recording(counts: dict[str, int]) -> Callable[..., Callable[[], Figures]]:
    """Return a recording that needs no GPU: it runs the function anew on the tensors of the recording."""

    def record(function: Callable[[], Figures], generator: torch.Generator) -> Callable[[], Figures]:
        counts["recorded"] += 1

        def repeat() -> Figures:
            counts["repeated"] += 1
            return function()

        return repeat

    return record


def graphed(monkeypatch: pytest.MonkeyPatch, record: Any) -> None:
    """Make every training take the way of a GPU, with another recording than a CUDA graph."""
    init = loop._Trainer.__init__

    def as_on_gpu(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        self.graph = True

    monkeypatch.setattr(loop._Trainer, "__init__", as_on_gpu)
    monkeypatch.setattr(loop, "GraphedUpdate", lambda eager, say: GraphedUpdate(eager, say, record))


METHODS: dict[str, dict[str, Any]] = {
    "rdi_net": {},
    "convnet_aig": {"method": {"name": "convnet_aig"}, "model": {"name": "cifar_resnet8", "mix": "branch"}},
    "codinet": {
        "method": {"name": "codinet", "num_units": 1.5},
        "data": {"source": "digits", "image_size": 16, "limit": STEPS * 8, "crop_padding": 1, "views": 4},
    },
    "budgets": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "share", "budgets": {"low": 0.4}}
    },
    "alive": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard", "network_target": 0.6}
        | {"alive": {"shaping": 0.5, "marginal": 0.1, "conditional": 0.1, "explore": 0.1, "draws": 4}}
    },
    "exits": {"model": {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 8}}},
}


@pytest.mark.parametrize("method", slow_where(lambda name: name != "rdi_net", METHODS))
def test_recorded_steps_have_the_curve_of_eager_ones(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 4)
    eager = rows(train(recipe(**METHODS[method]), tmp_path / "eager"))
    counts = {"recorded": 0, "repeated": 0}
    with monkeypatch.context() as patch:
        graphed(patch, recording(counts))
        recorded = rows(train(recipe(**METHODS[method]), tmp_path / "recorded"))
    # Two phases of one epoch, each with steps that note figures and steps that do not.
    assert counts == {"recorded": 4, "repeated": 2 * (STEPS - 2 * WARM_UP_STEPS)}
    for one, other in zip(eager, recorded, strict=True):
        assert one["train"].keys() == other["train"].keys()
        for name, value in one["train"].items():
            assert other["train"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
        assert other["val"]["accuracy"] == pytest.approx(one["val"]["accuracy"], abs=0.03)


def test_what_cannot_be_recorded_runs_eagerly_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(function: Callable[[], Figures], generator: torch.Generator) -> Callable[[], Figures]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    eager = rows(train(recipe(), tmp_path / "eager"))
    graphed(monkeypatch, refuse)
    capsys.readouterr()
    refused = rows(train(recipe(), tmp_path / "refused"))
    assert [row["train"]["loss"] for row in refused] == pytest.approx([r["train"]["loss"] for r in eager])
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("steps run without a graph, which could not be recorded: operation not permitted") == 2


def test_a_phase_with_moving_settings_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"recorded": 0, "repeated": 0}
    graphed(monkeypatch, recording(counts))
    ramp = {"target": {"start": 0.9, "end": 0.5}}
    phases = [{"name": "joint", "epochs": 1, "lr": 0.05, "ramps": ramp}]
    train(recipe(training={"phases": phases, "batch_size": 32}), tmp_path / "run")
    assert counts["recorded"] == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "phase joint runs without a graph: the settings target move with every update" in said


def test_settings_that_move_in_steps_are_recorded_with_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = {"target": {"start": 0.9, "end": 0.5, "until": 0.5, "steps": 2}}
    phases = [{"name": "joint", "epochs": 2, "lr": 0.05, "ramps": ramp}]
    changed = recipe(training={"phases": phases, "batch_size": 32})
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    eager = rows(train(changed, tmp_path / "eager"))
    counts = {"recorded": 0, "repeated": 0}
    graphed(monkeypatch, recording(counts))
    recorded = rows(train(changed, tmp_path / "recorded"))
    # At 0.9, 0.7 and 0.5 in turn.
    assert counts == {"recorded": 3, "repeated": 2 * STEPS - 3 * WARM_UP_STEPS}
    for one, other in zip(eager, recorded, strict=True):
        assert other["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=1e-3)


def test_a_ramp_in_steps_ends_where_it_says() -> None:
    ramp = Ramp(start=1, end=0, until=0.5, steps=4)
    assert [ramp.at(progress / 10) for progress in range(7)] == [1, 1, 0.75, 0.5, 0.25, 0, 0]
    with pytest.raises(RecipeError, match="steps must be at least 1, got 0; drop it"):
        Ramp(start=1, end=0, steps=0)


def test_a_loss_that_is_read_late_is_still_found_before_anything_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(function: Callable[[], Figures], generator: torch.Generator) -> Callable[[], Figures]:
        return lambda: {**function(), "loss": torch.tensor(float("nan"))}

    graphed(monkeypatch, poisoned)
    init = loop._Trainer.__init__

    def reads_seldom(self: object, *arguments: object, **options: object) -> None:
        init(self, *arguments, **options)  # type: ignore[arg-type]
        self.on_gpu = True  # type: ignore[attr-defined]

    monkeypatch.setattr(loop._Trainer, "__init__", reads_seldom)
    # The third step is the first repeated one, and the eleventh the next that is read.
    with pytest.raises(TrainingError, match="got nan at step 11 "):
        train(recipe(), tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_tensor_rates_follow_the_schedule_without_changing_their_tensors() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.5}], lr=0.1)
    rates = TensorRates(optimizer, torch.device("cpu"))
    rates.write()
    kept = optimizer.param_groups[0]["lr"]
    for value in (0.25, 0.125):
        optimizer.param_groups[0]["lr"] = value
        rates.write()
        assert optimizer.param_groups[0]["lr"] is kept and float(kept) == value
    rates.write()
    assert float(kept) == 0.125


def test_a_meter_sums_steps_that_report_different_figures() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "rank": torch.tensor(3.0)})
    meter.add({"loss": torch.tensor(2.0)})
    meter.add({"loss": torch.tensor(4.0), "rank": torch.tensor(5.0)})
    assert meter.take() == {"loss": (7.0, 3), "rank": (8.0, 2)}
    assert meter.take() == {}
