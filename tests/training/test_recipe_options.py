"""Everything that a recipe can ask for at once: it trains, and goes on bit for bit where it was stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from sidestep.errors import InterruptedRunError, RecipeError
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.train import train
from tests.training.test_fit import assert_same_run, at_step

AUGMENT = {"rand_augment": 1, "erase": 0.3, "mixup": 0.2, "cutmix": 1.0, "mix_rate": 0.8}


def recipe(algorithm: str = "muon", method: str = "rdi_net", **changes: Any) -> Recipe:
    phase = {"name": "joint", "epochs": 2, "lr": 0.01, "schedule": "triangular", "warmup_epochs": 0.5}
    router = {"router": {"dim": 8}} if method == "rdi_net" else {}
    return from_dict(
        {
            "name": "tiny",
            "method": {"name": method, **router},
            "model": {"name": "cifar_resnet8"},
            "data": {"source": "digits", "image_size": 16, "limit": 100, "crop_padding": 1}
            | {"flip": "alternating", "crop_fill": "mirror", "augment": AUGMENT},
            "training": {"phases": [phase], "batch_size": 32, "ema_decay": 0.9, "label_smoothing": 0.1}
            | {"optimizer": {"algorithm": algorithm, "decayed": "weights"}}
            | changes,
        }
    )


@pytest.mark.parametrize("method", ["rdi_net", "skipnet"])
def test_an_interrupted_run_with_every_option_resumes_bit_for_bit(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(recipe(method=method), tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(4, lambda: signal.raise_signal(signal.SIGINT), patch)
        with pytest.raises(InterruptedRunError):
            train(recipe(method=method), tmp_path / "run")
    train(recipe(method=method), tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_what_cannot_work_is_refused_before_a_file_is_written(tmp_path: Path) -> None:
    for changes, message in (
        ({"batch_size": 31}, "batch_size must be a multiple of two"),
        ({"optimizer": {"algorithm": "lion", "options": {"alpha": 1}}}, "must be an option of lion"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(recipe(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_shares_are_learnt_while_all_units_run(tmp_path: Path) -> None:
    method = {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "share", "share": {"learn": True}}
    values = recipe().as_dict() | {"method": method}
    with pytest.raises(RecipeError, match="closing must begin below 1/8 where shares are learnt"):
        train(from_dict(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_for_right_answers_refuses_mixed_images() -> None:
    with pytest.raises(RecipeError, match="mixup and cutmix must be 0 under blockdrop"):
        recipe(method="blockdrop")
