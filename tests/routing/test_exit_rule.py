"""Exit criteria and rules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.errors import RecipeError
from sidestep.routing.exit_rule import CRITERIA, ExitRule, first_exits, scores
from tests.reference.exits import literal_exits, literal_score


@pytest.mark.parametrize("criterion", ["confidence", "margin", "entropy"])
def test_scores_are_the_literal_ones(criterion: str) -> None:
    logits = 3 * torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    found = scores(logits, criterion)
    expected = [[literal_score(row, criterion) for row in exit_logits] for exit_logits in logits]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert found.min() >= 0 and found.max() <= 1


def test_patience_counts_exits_that_agree() -> None:
    classes = torch.tensor([[0, 1, 2], [0, 2, 2], [0, 2, 1], [1, 2, 1]])
    logits = torch.nn.functional.one_hot(classes, 3).float()
    assert scores(logits, "patience").tolist() == [[1, 1, 1], [2, 1, 2], [3, 2, 1], [1, 3, 2]]


def test_temperatures_divide_logits() -> None:
    logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    warm = scores(logits, "confidence", temperatures=[2.0, 0.5])
    torch.testing.assert_close(warm[0], scores(logits / 2, "confidence")[0])
    torch.testing.assert_close(warm[1], scores(logits * 2, "confidence")[1])


@given(seed=st.integers(0, 1000), raised=st.integers(0, 2), by=st.floats(0, 1))
def test_images_leave_at_the_first_exit_that_is_certain_and_never_earlier_under_a_higher_threshold(
    seed: int, raised: int, by: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    exit_scores, thresholds = torch.rand(4, 9, generator=generator), torch.rand(3, generator=generator)
    exits = first_exits(exit_scores, thresholds)
    assert exits.tolist() == literal_exits(exit_scores, thresholds.tolist())
    thresholds[raised] += by
    assert (first_exits(exit_scores, thresholds) >= exits).all()


def test_a_rule_goes_from_exit_to_exit_as_the_table_does() -> None:
    logits = 2 * torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    for criterion in CRITERIA:
        levels = [2.0, 2.0] if criterion == "patience" else [0.7, 0.6]
        rule = ExitRule(thresholds=levels, criterion=criterion)
        seen, exits = None, torch.full((50,), -1)
        for index, exit_logits in enumerate(logits):
            seen = rule.certainty(index, exit_logits, seen)
            exits = torch.where((exits < 0) & rule.leaves(index, seen), index, exits)
        assert exits.equal(first_exits(scores(logits, criterion), torch.tensor(levels)))
        assert len(exits.unique()) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "luck"}, "confidence, margin, entropy, patience, agreement, got 'luck'"),
        ({"temperatures": [1.0]}, "temperatures must be one for each of 3 exits, got 1"),
        ({"temperatures": [1.0, 0.0, 1.0]}, "temperatures must be above 0"),
    ],
)
def test_wrong_rules_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ExitRule(thresholds=[0.5, 0.5], **settings)


def test_agreement_needs_two_exits_that_name_the_same_class_in_a_row_or_not() -> None:
    classes = torch.tensor([[0, 0, 1], [1, 0, 2], [0, 1, 2]])  # by exit and image
    logits = torch.nn.functional.one_hot(classes, 3).float()
    assert scores(logits, "agreement").tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    rule = ExitRule(thresholds=[1.0, 1.0], criterion="agreement")
    seen = None
    for index, said in enumerate(logits):
        seen = rule.certainty(index, said, seen)
        seen = seen.take(torch.tensor([0, 1, 2]))
    assert seen is not None and seen.named.T.tolist() == classes.tolist()
