"""What all exits say about a set of images, and rules and curves that are solved on it."""

import json
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.evaluation.exit_curve import (
    ExitCurve,
    ExitSurvey,
    SurveyPair,
    calibrate,
    exit_curve,
    survey_exits,
)
from sidestep.evaluation.goals import ExitGoal
from sidestep.routing.exit_rule import CRITERIA
from sidestep.types import Batch
from tests import strategies
from tests.doubles import shared_exit_network

COSTS = (10.0, 20.0, 40.0)


def survey(right: Sequence[Sequence[float]], costs: Sequence[float] = COSTS) -> ExitSurvey:
    """Return a survey by the probability of the right class, of two, at every exit (rows) for every image."""
    probabilities = torch.tensor(right, dtype=torch.float64)
    logits = torch.stack([probabilities, 1 - probabilities], dim=2).log().float()
    images = probabilities.shape[1]
    macs = torch.tensor(costs, dtype=torch.float64)[: len(right)].unsqueeze(1).expand(-1, images)
    return ExitSurvey(exit_logits=logits, labels=torch.zeros(images, dtype=torch.long), macs=macs)


def drawn(seed: int = 0, images: int = 300) -> ExitSurvey:
    """Return a survey of three exits, of which the later are more often right and more certain."""
    generator = strategies.generator(seed)
    easy = torch.randn(images, generator=generator)
    noise = torch.randn(3, images, generator=generator)
    return survey(torch.sigmoid(easy + torch.tensor([[0.3], [0.8], [1.5]]) + 0.5 * noise).tolist())


EASY_AND_HARD = survey([[0.9, 0.8, 0.6, 0.4], [0.95, 0.9, 0.7, 0.3], [0.99, 0.9, 0.8, 0.9]])


def test_a_survey_is_what_the_network_says_of_all_images_however_they_are_cut() -> None:
    network = shared_exit_network("msdnet").train()
    cost = measure_cost(network, (16, 16))
    images, labels = strategies.images(7, 0, size=16), torch.arange(7) % 5
    surveys = [
        survey_exits(
            network,
            [Batch(images=x, labels=y) for x, y in zip(images.split(size), labels.split(size), strict=True)],
            cost,
        )
        for size in (7, 3)
    ]
    assert network.training
    with torch.no_grad():
        output = network.eval()(images)
    for found in surveys:
        torch.testing.assert_close(found.exit_logits, output.exit_logits)
        assert found.labels.tolist() == labels.tolist()
        torch.testing.assert_close(found.macs, cost.at_exits(output.decisions).double().T)
    # Later exits have computed what earlier ones have, and more.
    assert (surveys[0].macs.diff(dim=0) > 0).all()
    assert not surveys[0].exit_logits.is_inference()


def test_a_table_has_certainty_and_right_answers_of_every_exit() -> None:
    table = EASY_AND_HARD.table("confidence", None)
    torch.testing.assert_close(table.scores[0].float(), torch.tensor([0.9, 0.8, 0.6, 0.6]))
    assert table.correct.tolist() == [[True, True, True, False], [True, True, True, False], [True] * 4]
    margins = EASY_AND_HARD.table("margin", None).scores[0]
    torch.testing.assert_close(margins.float(), torch.tensor([0.8, 0.6, 0.2, 0.2]))
    flat = EASY_AND_HARD.table("confidence", [1e9, 1e9, 1e9]).scores
    torch.testing.assert_close(flat, torch.full_like(flat, 0.5))


def test_a_rule_for_a_budget_by_hand() -> None:
    # At 20 MACs a network of two exits can send one image of three on.
    found = calibrate(
        survey([[0.9, 0.8, 0.4], [0.9, 0.9, 0.7]], (10.0, 40.0)), ExitGoal(macs=20.0), scale=False
    )
    assert found.temperatures == [1.0, 1.0]
    # Between the scores of the second and the third image, as float32 has them.
    assert 0.61 < found.thresholds[0] < 0.801
    assert found.macs == pytest.approx((10 + 10 + 40) / 3)
    assert (found.accuracy, found.exit_rates) == (1.0, pytest.approx([2 / 3, 1 / 3]))
    assert found.rule.thresholds == found.thresholds and found.rule.criterion == "confidence"
    assert found.calibration_errors == found.raw_calibration_errors


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(max_examples=8)
@given(share=st.floats(0, 1))
def test_a_rule_never_exceeds_its_budget(criterion: str, share: float) -> None:
    budget = COSTS[0] + share * (COSTS[-1] - COSTS[0])
    found = calibrate(drawn(images=80), ExitGoal(macs=budget), criterion=criterion)
    assert COSTS[0] <= found.macs <= budget + 1e-9
    assert sum(found.exit_rates) == pytest.approx(1.0)
    spent = sum(rate * cost for rate, cost in zip(found.exit_rates, COSTS, strict=True))
    assert spent == pytest.approx(found.macs, rel=1e-5)


def test_fitted_temperatures_lower_the_calibration_error() -> None:
    sharp = drawn()
    sharp = ExitSurvey(exit_logits=4 * sharp.exit_logits, labels=sharp.labels, macs=sharp.macs)
    found = calibrate(sharp, ExitGoal(macs=20.0))
    assert all(temperature > 1.5 for temperature in found.temperatures)
    for scaled, raw in zip(found.calibration_errors, found.raw_calibration_errors, strict=True):
        assert scaled < raw


def curve(
    *, criterion: str = "confidence", scale: bool = False, num_budgets: int = 4, seed: int = 1
) -> ExitCurve:
    return exit_curve(
        [SurveyPair(solved_on=drawn(0), reported_on=drawn(seed))],
        full_macs=50.0,
        criterion=criterion,
        scale=scale,
        num_budgets=num_budgets,
    )


def test_anytime_points_are_the_exits_of_the_images_that_are_reported_on() -> None:
    found = exit_curve(
        [SurveyPair(solved_on=drawn(), reported_on=EASY_AND_HARD)],
        full_macs=50.0,
        criterion="confidence",
        scale=False,
        num_budgets=2,
    )
    anytime = [row for row in found.points if row.kind == "anytime"]
    assert [row.point.accuracy for row in anytime] == [0.75, 0.75, 1.0]
    assert [row.point.macs for row in anytime] == list(COSTS)
    assert [row.point.exit_rates for row in anytime] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert all(row.budget_macs is None and row.thresholds is None for row in anytime)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_budgets_are_even_between_the_first_and_the_last_exit(criterion: str) -> None:
    found = curve(criterion=criterion)
    budgeted = [row for row in found.points if row.kind == "budgeted"]
    assert [row.budget_macs for row in budgeted] == pytest.approx([10, 20, 30, 40])
    assert all(row.thresholds is not None and len(row.thresholds) == 2 for row in budgeted)
    costs = [row.point.macs for row in budgeted]
    assert costs == sorted(costs)
    assert found.full_macs == 50.0 and found.criterion == criterion


@pytest.mark.parametrize("scale", [False, True])
def test_thresholds_are_solved_without_the_images_that_are_reported_on(scale: bool) -> None:
    one, other = curve(scale=scale, seed=1), curve(scale=scale, seed=2)
    assert one.temperatures == other.temperatures
    assert [row.thresholds for row in one.points] == [row.thresholds for row in other.points]
    assert [row.point for row in one.points] != [row.point for row in other.points]
    assert (one.temperatures == [1.0] * 3) is not scale


def test_on_the_images_they_were_solved_on_budgets_are_met() -> None:
    for row in curve(seed=0).points:
        if row.budget_macs is not None:
            assert row.point.macs <= row.budget_macs + 1e-9
            assert row.point.macs == pytest.approx(row.budget_macs, rel=0.02)


def test_a_curve_is_plain_values() -> None:
    values = curve().as_dict()
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize("count", [1, 0, -3])
def test_a_curve_has_two_budgets_at_least(count: int) -> None:
    with pytest.raises(RecipeError, match=f"num_budgets must be at least 2, got {count}; 20 draw"):
        curve(num_budgets=count)
