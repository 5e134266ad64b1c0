"""Shares of what bytes change, and how sure they are."""

from __future__ import annotations

import numpy as np
import pytest

from sidestep.quantisation.changes import Change, change_between
from sidestep.targets.torch_plan import PlanOutput


def answers(options: np.ndarray, classes: np.ndarray, exits: np.ndarray | None = None) -> PlanOutput:
    count = len(options)
    return PlanOutput(
        logits=np.eye(3, dtype=np.float32)[classes],
        options=options,
        exits=np.zeros(count, dtype=np.int64) if exits is None else exits,
        temperatures=np.ones(count),
    )


def changed(count: int, predictions: int) -> Change:
    options, classes = np.ones((count, 4), dtype=np.int64), np.zeros(count, dtype=np.int64)
    other = classes.copy()
    other[:predictions] = 1
    found = change_between([answers(options, classes)], [answers(options, other)])
    assert found.predictions == predictions / count and found.decisions == 0
    # One class for another is 2 nats of a few images; shares are what is asked for here.
    return Change(
        decisions=found.decisions,
        predictions=found.predictions,
        divergence=0.0,
        decisions_error=found.decisions_error,
        predictions_error=found.predictions_error,
    )


def test_few_images_say_little() -> None:
    assert changed(192, 2).is_small and changed(192, 5).is_small and not changed(192, 6).is_small
    assert changed(10_000, 110).is_small and not changed(10_000, 120).is_small
    share = changed(192, 6)
    assert share.predictions_error == pytest.approx(
        (share.predictions * (1 - share.predictions) / 192) ** 0.5
    )


def test_decisions_about_one_image_count_as_one_draw() -> None:
    """24 decisions differ, of one image in one case and of 24 in the other."""
    before, classes = np.ones((100, 24), dtype=np.int64), np.zeros(100, dtype=np.int64)
    one, spread = before.copy(), before.copy()
    one[0] = 0
    spread[np.arange(24), np.arange(24)] = 0
    changes = [
        change_between([answers(before, classes)], [answers(after, classes)]) for after in (one, spread)
    ]
    assert [each.decisions for each in changes] == [0.01, 0.01]
    # By hand: the residual is 24 - 0.24 for one image, and 0.24 for the others.
    assert changes[0].decisions_error == pytest.approx((23.76**2 + 99 * 0.24**2) ** 0.5 / 2400)
    assert changes[1].decisions_error == pytest.approx((24 * 0.76**2 + 76 * 0.24**2) ** 0.5 / 2400)


def test_exits_are_decisions_of_networks_that_have_some() -> None:
    options, classes = np.array([[1, -1], [1, 1]]), np.zeros(2, dtype=np.int64)
    left, stayed = (answers(options, classes, np.array(exits)) for exits in ([0, 1], [1, 1]))
    assert change_between([left], [stayed], num_exits=1).decisions == 1 / 5
    assert change_between([stayed], [stayed]).decisions == 0
    nothing = answers(np.empty((2, 0), dtype=np.int64), classes)
    assert change_between([nothing], [nothing]).decisions == 0
