"""The loop: phases, resuming, stopping, choosing the best epoch."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sidestep.errors import InterruptedRunError, RecipeError, TrainingError
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.train import train
from sidestep.training import loop
from sidestep.training.checkpoint import load_checkpoint
from sidestep.training.step import TrainingStep
from tests.marks import slow_where

STEPS_PER_EPOCH = 3


def tiny(**training: Any) -> Recipe:
    phases = [
        {"name": "warm-up", "epochs": 2, "train": "blocks", "paths": "uniform", "lr": 0.05},
        {
            "name": "joint",
            "epochs": 2,
            "lr": 0.05,
            "schedule": "cosine",
            "ramps": {"target": {"start": 0.9, "end": 0.5, "until": 0.5}},
        },
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


def rows(folder: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in read:
        row["train"].pop("images_per_s")
        row.pop("seconds")
    return read


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    for name in ("last.safetensors", "best.safetensors"):
        a, b = load_checkpoint(one / name), load_checkpoint(other / name)
        for checkpoint in (a, b):
            checkpoint.values["position"].pop("seconds")
        assert a.values == b.values
        assert a.tensors.keys() == b.tensors.keys()
        assert all(torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors)


def at_step(step: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `action` once, when training begins its `step`-th step."""
    calls = {"n": 0}
    begin = TrainingStep.begin

    def counted(self: TrainingStep, *arguments: Any, **options: Any) -> None:
        calls["n"] += 1
        if calls["n"] == step:
            action()
        begin(self, *arguments, **options)

    monkeypatch.setattr(TrainingStep, "begin", counted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, with a moving average."""
    return train(tiny(ema_decay=0.9), tmp_path_factory.mktemp("whole") / "run")


def test_a_run_folder_holds_what_the_readme_says(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {
        "recipe.yaml", "metrics.jsonl", "last.safetensors", "best.safetensors", "report.json",
        "environment.json", "keep_rates.png",
    } <= names  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert [(row["phase"], row["epoch"]) for row in rows(whole)] == [
        ("warm-up", 0), ("warm-up", 1), ("joint", 0), ("joint", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "step",
    slow_where(
        lambda step: step not in (2, 2 * STEPS_PER_EPOCH),
        [1, 2, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 2, 11],
    ),
)
def test_an_interrupted_run_resumes_bit_for_bit(
    step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(step, lambda: signal.raise_signal(signal.SIGINT), patch)
        with pytest.raises(InterruptedRunError, match=f"after step {step}; .*--resume"):
            train(tiny(ema_decay=0.9), tmp_path / "run")
    train(tiny(ema_decay=0.9), tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("step", slow_where(lambda step: step != 3, [3, 2 * STEPS_PER_EPOCH + 1, 8]))
def test_a_run_that_died_resumes_bit_for_bit_from_its_last_checkpoint(
    step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        at_step(step, die, patch)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(ema_decay=0.9), tmp_path / "run")
    train(tiny(ema_decay=0.9), tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_a_finished_run_resumes_to_itself(whole: Path, tmp_path: Path) -> None:
    before = (whole / "last.safetensors").read_bytes()
    train(tiny(ema_decay=0.9), whole, resume=True)
    assert (whole / "last.safetensors").read_bytes() == before


def test_resuming_with_other_settings_is_refused(whole: Path) -> None:
    with pytest.raises(RecipeError, match="was started with other settings"):
        train(tiny(ema_decay=0.8), whole, resume=True)


def test_a_folder_in_use_is_refused(whole: Path) -> None:
    with pytest.raises(RecipeError, match="must be empty or new"):
        train(tiny(), whole)


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TrainingStep.forward
    calls = {"n": 0}

    def poisoned(self: TrainingStep, *arguments: Any) -> Any:
        calls["n"] += 1
        losses, figures = forward(self, *arguments)
        if calls["n"] == STEPS_PER_EPOCH + 2:
            losses["task"] = losses["task"] * float("nan")
        return losses, figures

    monkeypatch.setattr(TrainingStep, "forward", poisoned)
    with pytest.raises(TrainingError, match=f"got nan at step {STEPS_PER_EPOCH + 2} "):
        train(tiny(), tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert checkpoint.values["position"]["steps_done"] == STEPS_PER_EPOCH
    assert all(torch.isfinite(tensor.float()).all() for tensor in checkpoint.tensors.values())


def test_the_warm_up_leaves_the_routers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(2 * STEPS_PER_EPOCH, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)
    with pytest.raises(InterruptedRunError):
        train(tiny(), tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors").section("model")
    from sidestep.runs.assemble import untrained

    fresh = untrained(tiny(), num_classes=10).state_dict()
    assert all(torch.equal(trained[key], fresh[key]) for key in fresh if key.startswith("router."))
    assert not torch.equal(trained["backbone.conv1.weight"], fresh["backbone.conv1.weight"])
    assert "rank" not in rows(tmp_path / "run")[0]["train"]


def test_the_joint_phase_logs_every_term_of_the_loss(whole: Path) -> None:
    train_row = rows(whole)[-1]["train"]
    assert {
        "loss",
        "task",
        "cost",
        "rank",
        "accuracy",
        "fraction",
        "rank_correlation",
        "lr",
    } <= train_row.keys()
    assert train_row["loss"] == pytest.approx(
        train_row["task"] + train_row["cost"] + train_row["rank"], rel=1e-5
    )


def test_frozen_blocks_do_not_move_nor_do_their_statistics(tmp_path: Path) -> None:
    phases = [{"name": "gates", "epochs": 1, "train": "routers"}]
    folder = train(tiny(phases=phases), tmp_path / "run")
    trained = load_checkpoint(folder / "last.safetensors").section("model")
    from sidestep.runs.assemble import untrained

    fresh = untrained(tiny(phases=phases), num_classes=10).state_dict()
    assert all(torch.equal(trained[key], fresh[key]) for key in fresh if key.startswith("backbone."))
    assert not torch.equal(trained["router.gcn.0.weight"], fresh["router.gcn.0.weight"])


def test_a_phase_that_is_switched_off_may_keep_its_warm_up() -> None:
    phases = [{"name": "off", "epochs": 0, "warmup_epochs": 0.5}, {"name": "joint", "epochs": 1}]
    assert tiny(phases=phases).training.phases[0].warmup_epochs == 0.5


def test_a_phase_without_epochs_is_left_out(tmp_path: Path) -> None:
    recipe = tiny()
    phases = [replace(recipe.training.phases[0], epochs=0), recipe.training.phases[1]]
    folder = train(replace(recipe, training=replace(recipe.training, phases=phases)), tmp_path / "run")
    assert [(row["phase"], row["epoch"]) for row in rows(folder)] == [("joint", 0), ("joint", 1)]


def test_without_phases_a_run_holds_the_weights_it_starts_from(tmp_path: Path) -> None:
    folder = train(tiny(phases=[]), tmp_path / "run")
    best, last = (load_checkpoint(folder / f"{name}.safetensors") for name in ("best", "last"))
    torch.manual_seed(0)
    fresh = untrained(tiny(phases=[]), num_classes=10).state_dict()
    for checkpoint in (best, last):
        held = checkpoint.section("model")
        assert held.keys() == fresh.keys()
        assert all(torch.equal(held[key], fresh[key]) for key in fresh)
    assert rows(folder) == []
    assert train(tiny(phases=[]), folder, resume=True) == folder


def test_the_best_epoch_keeps_to_the_allowed_cost(tmp_path: Path) -> None:
    phases = [{"name": "joint", "epochs": 3, "lr": 0.01}]
    folder = train(tiny(phases=phases, max_fraction=0.01), tmp_path / "run")
    fractions = [row["val"]["fraction_of_full"] for row in rows(folder)]
    best = load_checkpoint(folder / "best.safetensors").values["position"]["best"]
    assert best["excess"] == pytest.approx(min(fractions) - 0.01)


def test_distillation_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"set model\.init"):
        train(tiny(distillation={"weight": 1.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
