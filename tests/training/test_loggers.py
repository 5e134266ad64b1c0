"""Loggers get the figures of every epoch, and those that take them histograms and pictures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning_fabric.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sidestep.cli.main import main
from sidestep.errors import InterruptedRunError, RecipeError, TrainingError
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.train import train
from sidestep.training import devices as devices_module
from sidestep.training.devices import Devices
from sidestep.training.pictures import Picture, pictures_figure


def tiny(**training: Any) -> Recipe:
    phases = [
        {"name": "warm-up", "epochs": 1, "train": "blocks", "paths": "uniform", "lr": 0.05},
        {"name": "joint", "epochs": 2, "lr": 0.05},
    ]
    return from_dict(
        {
            "name": "tiny",
            "method": {"name": "rdi_net", "router": {"dim": 8}},
            "model": {"name": "cifar_resnet8"},
            "data": {"source": "digits", "image_size": 16, "limit": 100, "crop_padding": 1},
            "training": {"phases": phases, "batch_size": 32, **training},
        }
    )


class Numbers(Logger):
    """Any logger of Fabric: takes numbers."""

    name, version = "numbers", 0

    def __init__(self) -> None:
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.status = ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step, metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the recipe is the user's to give")

    def finalize(self, status: str) -> None:
        self.status = status


class Everything(Numbers):
    """A logger that takes histograms and pictures too."""

    def __init__(self) -> None:
        super().__init__()
        self.histograms: list[tuple[str, list[float], int]] = []
        self.pictures: list[tuple[str, list[Picture], int]] = []

    def log_histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        self.histograms.append((tag, list(values), step))

    def log_pictures(self, tag: str, pictures: Sequence[Picture], step: int) -> None:
        self.pictures.append((tag, list(pictures), step))


def test_loggers_of_ones_own_get_what_they_take(tmp_path: Path) -> None:
    numbers, everything = Numbers(), Everything()
    train(tiny(), tmp_path / "run", loggers=[numbers, everything], devices=Devices(logger="none"))
    assert not list((tmp_path / "run").glob("events.*"))
    assert [step for step, _ in numbers.metrics] == [3, 6, 9]
    assert {"train/loss", "train/lr", "val/accuracy", "val/gflops"} <= numbers.metrics[-1][1].keys()
    assert all(isinstance(value, float | int) for _, row in numbers.metrics for value in row.values())
    assert everything.metrics == numbers.metrics and numbers.status == everything.status == "success"
    assert [(tag, len(rates), step) for tag, rates, step in everything.histograms] == [
        ("val/keep_rates", 3, step) for step in (3, 6, 9)
    ]
    # Pictures belong to the end of a phase.
    assert [(tag, step) for tag, _, step in everything.pictures] == [("val/pictures", 3), ("val/pictures", 9)]
    pictures = everything.pictures[-1][1]
    fractions = [picture.fraction for picture in pictures]
    assert len(pictures) == 16 and fractions == sorted(fractions)
    for picture in pictures:
        assert picture.pixels.shape == (16, 16, 3) and picture.pixels.max() == 255
        assert picture.label in "0123456789" and 0 < picture.probability <= 1 and 0 <= picture.executed <= 3


def test_a_run_that_ends_early_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Numbers()

    def interrupt(*arguments: Any) -> None:
        raise InterruptedRunError("stopped")

    monkeypatch.setattr("sidestep.training.loop._Trainer._maybe_save", interrupt)
    with pytest.raises(InterruptedRunError):
        train(tiny(), tmp_path / "run", loggers=[logger])
    assert logger.status == "failed"


def test_tensorboard_has_numbers_histograms_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "a $run% with {signs}"
    train(tiny(), folder)
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0}).Reload()
    tags = events.Tags()
    assert {"train/loss", "val/accuracy"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 9]
    assert [event.step for event in events.Histograms("val/keep_rates")] == [3, 6, 9]
    assert [event.step for event in events.Images("val/pictures")] == [3, 9]
    assert events.Images("val/pictures")[0].encoded_image_string[1:4] == b"PNG"


def test_a_static_network_has_pictures_and_no_keep_rates(tmp_path: Path) -> None:
    logger = Everything()
    recipe = tiny(phases=[{"name": "joint", "epochs": 1, "lr": 0.05}]).as_dict() | {
        "method": {"name": "static"}
    }
    train(from_dict(recipe), tmp_path / "run", loggers=[logger], devices=Devices(logger="none"))
    assert len(logger.pictures) == 1


def test_an_unknown_logger_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="logger must be one of tensorboard, wandb, none, got 'mlflow'"):
        Devices(logger="mlflow")
    assert main(["train", "recipes/quickstart.yaml", "--logger", "mlflow"]) == 2
    assert "logger must be one of" in capsys.readouterr().err


def test_a_missing_wandb_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices_module, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"logger wandb needs the package wandb.*`pip install sidestep\[wandb\]`"
    ):
        train(tiny(), tmp_path / "run", devices=Devices(logger="wandb"))
    assert not (tmp_path / "run").exists()


class FakeWandb(ModuleType):
    """What of W&B is used, as it is called."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.configs: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []

    def init(self, **settings: Any) -> Any:
        self.started.append(settings)
        config = SimpleNamespace(update=lambda values, **how: self.configs.append(values))
        return SimpleNamespace(
            project="p",
            id=settings["id"],
            config=config,
            log=lambda values, step: self.logged.append((step, values)),
            finish=lambda exit_code: self.exit_codes.append(exit_code),
        )

    def Histogram(self, values: Any) -> tuple[str, int]:  # noqa: N802
        return "histogram", len(values)

    def Image(self, pixels: Any) -> tuple[int, ...]:  # noqa: N802
        return tuple(pixels.shape)

    def Table(self, columns: list[str]) -> Any:  # noqa: N802
        rows: list[tuple[Any, ...]] = []
        return SimpleNamespace(columns=columns, rows=rows, add_data=lambda *row: rows.append(row))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_same_through_the_same_interface(fake: FakeWandb, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny(), folder, devices=Devices(logger="wandb"))
    (started,) = fake.started
    assert started["name"] == "run" and started["dir"] == str(folder)
    assert fake.configs[0]["method"]["name"] == "rdi_net" and fake.exit_codes == [0]
    logged = {tag: (step, value) for step, values in fake.logged for tag, value in values.items()}
    assert logged["val/keep_rates"] == (9, ("histogram", 3)) and logged["train/loss"][0] == 9
    table = logged["val/pictures"][1]
    assert table.columns[:3] == ["image", "label", "predicted"] and len(table.rows) == 16
    assert table.rows[0][0] == (16, 16, 3) and len(table.rows[0]) == len(table.columns)
    assert not list(folder.glob("events.*"))


def test_a_resumed_run_goes_on_at_wandb(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sidestep.training.loop import _Trainer

    save, stopped = _Trainer._maybe_save, []

    def stop(self: _Trainer, interrupted: bool) -> None:
        due = self.state.position.steps_done == 4 and not stopped
        stopped.extend([True] * due)
        save(self, due)

    monkeypatch.setattr(_Trainer, "_maybe_save", stop)
    with pytest.raises(InterruptedRunError):
        train(tiny(), tmp_path / "run", devices=Devices(logger="wandb"))
    train(tiny(), tmp_path / "run", resume=True, devices=Devices(logger="wandb"))
    first, second = fake.started
    assert first["id"] == second["id"] and second["resume"] == "allow" and fake.exit_codes == [1, 0]
    train(tiny(), tmp_path / "other", devices=Devices(logger="wandb"))
    assert fake.started[-1]["id"] != first["id"]


def test_a_wandb_that_cannot_start_is_one_sentence(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: Any) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(TrainingError, match=r"wandb could not start \(no API key\); .*WANDB_MODE=offline"):
        train(tiny(), tmp_path / "run", devices=Devices(logger="wandb"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tiny(), tmp_path / "run", devices=Devices(logger="wandb"))
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"val/keep_rates" in content and b"val/pictures" in content and b"train/loss" in content


def test_pictures_are_a_figure_in_which_mistakes_are_named() -> None:
    import numpy as np

    def picture(predicted: str, label: str) -> Picture:
        pixels = np.zeros((4, 4, 3), np.uint8)
        return Picture(
            pixels=pixels, label=label, predicted=predicted, probability=0.5, executed=1, fraction=0.25
        )

    figure = pictures_figure([picture("cat", "cat"), picture("$dog", "cat"), picture("a\udcff", "a\udcff")])
    titles = [text.get_text() for text in figure.axes[0].texts]
    assert titles[0] == "cat\n50%, 25% of the MACs" and titles[1].startswith(r"\$dog, not cat")
    figure.savefig("/dev/null", format="png")
