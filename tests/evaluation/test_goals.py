"""Goals of exits: a loss of accuracy that is kept, and a risk that is kept with confidence."""

import math

import pytest
import torch

from sidestep.errors import RecipeError
from sidestep.evaluation.goals import thresholds_for_drop, thresholds_for_risk
from sidestep.evaluation.thresholds import ExitTable
from sidestep.routing.exit_rule import first_exits

SPLITS, IMAGES = 200, 600


def task(generator: torch.Generator, count: int) -> ExitTable:
    """Return images of a task in which the first exit is right the more often the surer it is."""
    first = torch.rand(count, generator=generator, dtype=torch.float64)
    right = torch.rand(2, count, generator=generator, dtype=torch.float64)
    correct = torch.stack([right[0] < 0.6 + 0.4 * first, right[1] < 0.95])
    macs = torch.tensor([[1.0], [4.0]], dtype=torch.float64).expand(2, count).contiguous()
    return ExitTable(scores=torch.stack([first, torch.ones_like(first)]), correct=correct, macs=macs)


def risk_of(share: float) -> float:
    """Return how many of all images of the task leave wrong that the last exit would get right.

    From the score 1 - s on the first exit is wrong with 0.4 (1 - score), and the last right with 0.95.

    Args:
        share: s of the images leave.
    """
    return 0.95 * 0.2 * share**2


@pytest.mark.parametrize("risk", [0.02, 0.05])
def test_a_promised_risk_is_exceeded_in_at_most_as_many_splits_as_was_said(risk: float) -> None:
    generator = torch.Generator().manual_seed(7)
    exceeded, early = 0, 0.0
    for _ in range(SPLITS):
        thresholds = thresholds_for_risk(task(generator, IMAGES), risk, 0.95, "confidence")
        share = 1 - min(1.0, float(thresholds[0]))
        exceeded += risk_of(share) > risk
        early += share / SPLITS
    assert exceeded / SPLITS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / SPLITS)
    # A promise that lets nobody leave is easy to keep.
    assert early > 0.02


def test_a_promise_that_needs_more_images_says_how_many() -> None:
    table = task(torch.Generator().manual_seed(0), 100)
    with pytest.raises(RecipeError, match="needs at least 598 images to solve thresholds on, got 100"):
        thresholds_for_risk(table, 0.01, 0.95, "confidence")


def test_hardly_anybody_leaves_where_nothing_can_be_promised() -> None:
    table = task(torch.Generator().manual_seed(0), 600)
    always_wrong = torch.stack([~table.correct[1], table.correct[1]])
    worst = ExitTable(scores=table.scores, correct=always_wrong, macs=table.macs)
    thresholds = thresholds_for_risk(worst, 0.02, 0.95, "confidence")
    assert (first_exits(worst.scores, thresholds) == 0).double().mean() < 0.02


@pytest.mark.parametrize("drop", [0.0, 0.5, 2.0])
def test_a_drop_is_kept_at_the_least_cost_and_on_the_other_half_within_noise(drop: float) -> None:
    generator = torch.Generator().manual_seed(3)
    solving, other = task(generator, 20_000), task(generator, 20_000)
    thresholds = thresholds_for_drop(solving, drop, "confidence")
    point, last = solving.leaving(thresholds), solving.anytime()[-1]
    assert point.accuracy >= last.accuracy - drop / 100 - 1e-9 and point.macs < last.macs
    cheaper = thresholds - 0.02
    assert solving.leaving(cheaper).accuracy < last.accuracy - drop / 100 + 0.002
    found = other.leaving(thresholds).accuracy
    assert found >= other.anytime()[-1].accuracy - drop / 100 - 4 * math.sqrt(0.25 / 20_000)


def test_a_gain_that_no_thresholds_have_is_refused() -> None:
    table = task(torch.Generator().manual_seed(3), 2_000)
    with pytest.raises(RecipeError, match=r"max-drop must be at least .* points here"):
        thresholds_for_drop(table, -50.0, "confidence")
