from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.types import Batch, CostModel, Decisions, RoutedOutput
from tests import strategies
from tests.reference import budget as reference

GATES = Decisions(weights=torch.tensor([[[0.0, 1.0], [0.75, 0.25]], [[1.0, 0.0], [0.5, 0.5]]]))
PRICES = CostModel(
    fixed=10.0,
    options=torch.tensor([[0.0, 100.0], [8.0, 200.0]]),
    routers=torch.tensor([1.0, 2.0]),
)


def test_execution_of_a_gate_is_its_second_weight() -> None:
    assert GATES.execution().tolist() == [[1.0, 0.25], [0.0, 0.5]]


def test_execution_with_more_options_is_all_but_the_cheapest() -> None:
    decisions = Decisions(weights=torch.tensor([[[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]]))
    assert decisions.execution().tolist() == [[0.5, 0.0]]


def test_keep_rates_are_means_over_images() -> None:
    assert GATES.keep_rates().tolist() == [0.5, 0.375]


def test_costs_are_not_rounded_by_autocast() -> None:
    prices = CostModel(
        fixed=445_000.0,
        options=torch.tensor([[0.0, 4_718_592.0]]).expand(8, 2),
        routers=torch.zeros(8),
    )
    decisions = Decisions(weights=torch.tensor([0.0, 1.0]).expand(2, 8, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prices.fraction(decisions).tolist() == [1.0, 1.0]


def test_paths_name_the_heaviest_option_and_a_tie_the_cheapest() -> None:
    assert GATES.paths().tolist() == [[1, 0], [0, 0]]


def test_relaxed_execution_is_the_soft_weight_behind_a_hard_one() -> None:
    hard = Decisions(weights=torch.tensor([[[0.0, 1.0]]]), relaxed=torch.tensor([[[0.25, 0.75]]]))
    assert hard.execution().item() == 1.0
    assert hard.relaxed_execution().item() == 0.75


def test_relaxed_execution_of_soft_decisions_is_their_execution() -> None:
    assert torch.equal(GATES.relaxed_execution(), GATES.execution())


def test_the_full_price_is_that_of_the_dearest_options_without_routers() -> None:
    assert PRICES.full == 310.0


def test_per_sample_macs_agree_with_hand_arithmetic() -> None:
    assert PRICES.per_sample(GATES).tolist() == [10 + 3 + 100 + 56, 10 + 3 + 0 + 104]
    assert PRICES.per_sample(GATES, routers=False).tolist() == [166.0, 114.0]


def test_routers_are_paid_as_far_as_they_were_asked() -> None:
    asked = replace(GATES, asked=torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    assert PRICES.per_sample(asked).tolist() == [10 + 2 + 100 + 56, 10 + 2 + 0 + 104]
    assert torch.equal(PRICES.per_sample(asked, routers=False), PRICES.per_sample(GATES, routers=False))
    everyone = replace(GATES, asked=torch.ones(2, 2))
    assert torch.equal(PRICES.per_sample(everyone), PRICES.per_sample(GATES))


def test_fraction_counts_routers_above_but_not_below_the_line() -> None:
    torch.testing.assert_close(PRICES.fraction(GATES), torch.tensor([169 / 310, 117 / 310]))


def test_per_sample_macs_pass_a_gradient_of_the_prices() -> None:
    weights = GATES.weights.clone().requires_grad_()
    PRICES.per_sample(Decisions(weights=weights)).sum().backward()
    assert torch.equal(weights.grad, PRICES.options.expand(2, 2, 2))


def test_half_precision_decisions_are_priced_in_full_precision() -> None:
    prices = CostModel(fixed=0.0, options=torch.tensor([[0.0, 4_718_592.0]] * 53), routers=torch.zeros(53))
    everything = Decisions(weights=torch.tensor([0.0, 1.0], dtype=torch.bfloat16).expand(1, 53, 2))
    assert prices.per_sample(everything).item() == 53 * 4_718_592


@given(strategies.priced_decisions())
def test_per_sample_macs_equal_the_literal_sum(priced: tuple[CostModel, Decisions]) -> None:
    prices, decisions = priced
    literal = [
        reference.macs_of_image(row, prices.fixed, prices.options, prices.routers)
        for row in decisions.weights
    ]
    torch.testing.assert_close(prices.per_sample(decisions), torch.tensor(literal))


@given(strategies.priced_decisions())
def test_cost_lies_between_the_floor_and_the_full_network_with_routers(
    priced: tuple[CostModel, Decisions],
) -> None:
    prices, decisions = priced
    floor = prices.fixed + float(prices.options[:, 0].sum())
    macs = prices.per_sample(decisions, routers=False)
    assert bool((macs >= floor * (1 - 1e-5)).all())
    assert bool((macs <= prices.full * (1 + 1e-5)).all())
    torch.testing.assert_close(prices.per_sample(decisions), macs + prices.routers.sum())


@given(strategies.priced_decisions(), st.data())
def test_cost_rises_when_weight_moves_to_a_dearer_option(
    priced: tuple[CostModel, Decisions], data: st.DataObject
) -> None:
    prices, decisions = priced
    batch, units, options = decisions.weights.shape
    image, unit = data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, units - 1))
    row = decisions.weights[image, unit]
    source = int(row[:-1].argmax())
    moved = decisions.weights.clone()
    moved[image, unit, source] -= row[source]
    moved[image, unit, data.draw(st.integers(source + 1, options - 1))] += row[source]
    before, after = prices.per_sample(decisions), prices.per_sample(Decisions(weights=moved))
    assert after[image] >= before[image]
    if row[source] > 0.01:
        assert after[image] > before[image]
    others = torch.arange(batch) != image
    assert torch.equal(after[others], before[others])


@given(strategies.priced_decisions(), strategies.seeds, st.floats(0, 1))
def test_per_sample_macs_are_linear_in_the_decisions(
    priced: tuple[CostModel, Decisions], seed: int, share: float
) -> None:
    prices, first = priced
    second = torch.rand(first.weights.shape, generator=strategies.generator(seed)).softmax(dim=2)
    mixed = Decisions(weights=share * first.weights + (1 - share) * second)
    expected = share * prices.per_sample(first) + (1 - share) * prices.per_sample(Decisions(weights=second))
    torch.testing.assert_close(prices.per_sample(mixed), expected, rtol=1e-4, atol=1e-2)


@given(strategies.priced_decisions(), strategies.seeds)
def test_permuting_a_batch_permutes_its_costs(priced: tuple[CostModel, Decisions], seed: int) -> None:
    prices, decisions = priced
    order = torch.randperm(decisions.weights.shape[0], generator=strategies.generator(seed))
    permuted = prices.per_sample(Decisions(weights=decisions.weights[order]))
    torch.testing.assert_close(permuted, prices.per_sample(decisions)[order])


@pytest.mark.parametrize(
    "noun",
    [
        GATES,
        PRICES,
        RoutedOutput(logits=torch.zeros(2, 3), decisions=GATES),
        Batch(images=torch.zeros(2, 3, 4, 4), labels=torch.zeros(2)),
    ],
    ids=lambda noun: type(noun).__name__,
)
def test_nouns_are_frozen(noun: object) -> None:
    field = next(iter(noun.__dataclass_fields__))
    with pytest.raises(FrozenInstanceError):
        setattr(noun, field, None)


@pytest.mark.parametrize("noun", [Decisions, RoutedOutput, CostModel, Batch])
def test_nouns_take_keywords_only(noun: type) -> None:
    with pytest.raises(TypeError, match="positional"):
        noun(torch.zeros(1))
