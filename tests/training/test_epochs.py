"""Images that are left to the gates: whose they are, who learns from them, and that runs go on with them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidestep.data import DataConfig, MemorySet, Shard
from sidestep.data.apart import parts
from sidestep.errors import InterruptedRunError, RecipeError
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.train import train
from sidestep.training.checkpoint import load_checkpoint
from sidestep.training.epochs import Epochs
from sidestep.training.training_config import Phase, TrainingConfig, UnlearntConfig
from tests.training.test_fit import assert_same_run, at_step

LABELS = np.repeat([0, 1, 2], [50, 30, 20])


@pytest.mark.parametrize("turn", [0, 1, 7])
def test_every_part_has_the_classes_shares(turn: int) -> None:
    learnt, left = parts(LABELS, share=0.2, seed=0, turn=turn)
    assert sorted([*learnt, *left]) == list(range(100)) and len(left) == 20
    assert np.abs(np.bincount(LABELS[left]) - [10, 6, 4]).max() <= 1


def test_turns_go_around_once_and_seeds_differ() -> None:
    left = [set(parts(LABELS, share=0.25, seed=1, turn=turn)[1].tolist()) for turn in range(5)]
    assert set.union(*left[:4]) == set(range(100)) and left[4] == left[0] != left[1]
    assert set(parts(LABELS, share=0.25, seed=2)[1].tolist()) != left[0]


def epochs_of(images: str, count: int = 40, *, turns: bool = False, **values: Any) -> Epochs:
    pixels = torch.zeros(count, 3, 4, 4, dtype=torch.uint8)
    config = DataConfig(crop_padding=0, flip=False)
    train = {"unlearnt": "routers", "learnt": "blocks"}.get(images, "all")
    phase = Phase(name="joint", epochs=1, images=images, train=train)  # type: ignore[arg-type]
    unlearnt = UnlearntConfig(share=0.25, turns=turns) if images != "all" else UnlearntConfig()
    training = TrainingConfig(phases=[phase], batch_size=4, unlearnt=unlearnt, **values)
    return Epochs(MemorySet(pixels, torch.arange(count) % 4, config), training, phase)


@pytest.mark.parametrize(("images", "steps"), [("all", 10), ("learnt", 7), ("unlearnt", 2), ("apart", 9)])
def test_an_epoch_has_the_steps_of_its_images(images: str, steps: int) -> None:
    epochs = epochs_of(images)
    assert epochs.num_steps == steps == len(list(epochs.batches(3)))
    assert epochs_of(images, max_steps=1).num_steps == 1


def test_blocks_and_routers_take_evenly_spread_turns() -> None:
    learners = [batch.learners for batch in epochs_of("apart").batches(0)]
    assert learners.count("routers") == 2
    assert [index for index, who in enumerate(learners) if who == "routers"] == [2, 6]


@pytest.mark.parametrize("start", [1, 3, 8])
def test_an_epoch_of_turns_goes_on_anywhere_and_is_shared_by_processes(start: int) -> None:
    epochs = epochs_of("apart", turns=True)
    whole = list(epochs.batches(2))[start:]
    shards = [list(epochs.batches(2, start_step=start, shard=Shard(rank, 2))) for rank in range(2)]
    for step, batch in enumerate(whole):
        halves = [shard[step] for shard in shards]
        assert torch.equal(torch.cat([half.labels for half in halves]), batch.labels)
        assert {half.learners for half in halves} == {batch.learners}


def recipe(images: str = "apart", train: str = "all", method: str = "rdi_net", **values: Any) -> Recipe:
    phase = {"name": "joint", "epochs": 2, "lr": 0.05, "images": images, "train": train}
    return from_dict(
        {
            "name": "tiny",
            "method": {"name": method} | ({"router": {"dim": 8}} if method == "rdi_net" else {}),
            "model": {"name": "cifar_resnet8"},
            "data": {"source": "digits", "image_size": 16, "limit": 160, "crop_padding": 1},
            "training": {"phases": [phase], "batch_size": 16, "unlearnt": {"share": 0.2, "turns": True}}
            | values,
        }
    )


def test_turns_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(4, lambda: signal.raise_signal(signal.SIGINT), patch)
        with pytest.raises(InterruptedRunError):
            train(recipe(), tmp_path / "run")
    train(recipe(), tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(("stop", "learns"), [(1, {"backbone"}), (3, {"backbone", "router"})])
def test_routers_learn_in_their_turn_alone(
    stop: int, learns: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight steps on learnt images and two on others: the third is the first of the latter.
    at_step(stop, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)
    with pytest.raises(InterruptedRunError):
        train(recipe(), tmp_path / "run")
    found = load_checkpoint(tmp_path / "run" / "last.safetensors").section("model")
    fresh = untrained(recipe(), num_classes=10)
    names = {name for name, _ in fresh.named_parameters()}
    moved = {name.split(".")[0] for name in names if not torch.equal(found[name], fresh.state_dict()[name])}
    assert moved == learns


def test_a_static_origin_is_trained_on_the_rest(tmp_path: Path) -> None:
    folder = train(recipe("learnt", method="static"), tmp_path / "run")
    # Of 160 images 128 are learnt, in eight steps an epoch.
    assert load_checkpoint(folder / "last.safetensors").values["position"]["steps_done"] == 16


def test_images_are_left_to_nobody_where_nothing_learns_from_them(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="under static, which has no routers that learn"):
        train(recipe(method="static"), tmp_path / "run")
    with pytest.raises(RecipeError, match="under rdi_net, which has no exits that learn"):
        train(recipe("unlearnt", "exits"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("images", "trained", "values", "message"),
    [
        ("apart", "blocks", {}, "train must be 'all' where blocks and routers"),
        ("unlearnt", "all", {}, "train must be 'routers' or 'exits' on images"),
        ("apart", "all", {"unlearnt": {}}, "unlearnt.share must be above 0 for phase 'joint'"),
        ("all", "all", {}, "unlearnt.share has no effect where all phases train on all images"),
        ("all", "all", {"unlearnt": {"turns": True}}, "turns and seed have no effect with share 0"),
        ("apart", "all", {"unlearnt": {"share": 1.0}}, "share must be in"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    images: str, trained: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(images, trained, **values)
