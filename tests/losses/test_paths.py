from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.losses.paths import rank_correlation, rank_loss
from tests import strategies
from tests.reference import paths as reference

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
REDUCTIONS = st.sampled_from(["sum", "anchor", "mean"])


def test_four_images_on_a_line_agree_with_hand_arithmetic() -> None:
    paths = torch.tensor([[0.0], [1.0], [0.5], [0.0]])
    # Ranks: 0 -> 1 2 3, 1 -> 0 2 3, 2 -> 1 0 3, 3 -> 2 1 0; terms d_p - d_q + 0.5 by hand.
    by_anchor = [(1 - 0.5 + 0.5) + (0.5 - 0 + 0.5), (1 - 0.5 + 0.5) + (0.5 - 1 + 0.5)]
    by_anchor += [(0.5 - 0.5 + 0.5) + (0.5 - 0.5 + 0.5), (0.5 - 1 + 0.5) + (1 - 0 + 0.5)]
    loss = rank_loss(paths, LINE, min_gap=0.0, reduction="sum")
    assert loss.item() == pytest.approx(sum(by_anchor), abs=1e-4)
    assert rank_loss(paths, LINE, min_gap=0.0, reduction="anchor").item() == pytest.approx(loss.item() / 4)
    assert rank_loss(paths, LINE, min_gap=0.0).item() == pytest.approx(loss.item() / 8)


@given(
    st.data(),
    st.integers(4, 7),
    st.sampled_from([0.0, 0.1, 0.25]),
    st.integers(1, 3),
    st.sampled_from([0.1, 0.5, 1.0]),
    REDUCTIONS,
)
def test_the_loss_equals_the_triple_loop(
    data: st.DataObject, batch: int, min_gap: float, stride: int, margin: float, reduction: Any
) -> None:
    paths = data.draw(strategies.paths(batch, 3))
    statistics = data.draw(strategies.statistics(batch))
    settings = {"margin": margin, "min_gap": min_gap, "stride": stride, "reduction": reduction}
    literal = reference.rank_loss(paths, statistics, **settings)
    assert rank_loss(paths, statistics, **settings).item() == pytest.approx(
        literal.item(), rel=1e-4, abs=1e-4
    )


@given(strategies.seeds, st.integers(1, 2), REDUCTIONS)
def test_the_gradient_equals_that_of_the_triple_loop(seed: int, stride: int, reduction: Any) -> None:
    generator = strategies.generator(seed)
    statistics = torch.rand(6, 4, generator=generator)
    fast = torch.rand(6, 3, generator=generator, requires_grad=True)
    slow = fast.detach().double().requires_grad_()
    rank_loss(fast, statistics, stride=stride, reduction=reduction).backward()
    reference.rank_loss(slow, statistics, stride=stride, reduction=reduction).backward()
    torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=1e-3, atol=1e-5)


def test_the_gradient_passes_gradcheck() -> None:
    paths = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    statistics = torch.rand(5, 2)
    # The loss works in float32, so the step is wider than gradcheck's default.
    assert torch.autograd.gradcheck(
        lambda p: rank_loss(p, statistics, margin=5.0), paths, eps=1e-3, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("margin", [0.2, 0.5])
@pytest.mark.parametrize(("batch", "units"), [(5, 4), (256, 54)])
def test_identical_paths_give_exactly_the_margin_and_no_gradient(
    batch: int, units: int, margin: float
) -> None:
    paths = torch.rand(units).repeat(batch, 1).requires_grad_()
    loss = rank_loss(paths, torch.rand(batch, 6), margin=margin)
    loss.backward()
    assert loss.item() == pytest.approx(margin, abs=1e-6)
    assert paths.grad.abs().max() < 1e-6


def test_nearly_equal_paths_have_the_gradient_of_the_triple_loop() -> None:
    fast = (torch.rand(16) + 1e-3 * torch.rand(24, 16)).requires_grad_()
    slow = fast.detach().double().requires_grad_()
    statistics = torch.rand(24, 6)
    rank_loss(fast, statistics).backward()
    reference.rank_loss(slow, statistics).backward()
    torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=0.01, atol=1e-5)


@given(st.data())
def test_the_gradient_is_finite_for_equal_paths_among_others(data: st.DataObject) -> None:
    paths = data.draw(strategies.paths(5, 2, levels=1)).requires_grad_()
    rank_loss(paths, data.draw(strategies.statistics(5))).backward()
    assert bool(paths.grad.isfinite().all())


def test_paths_in_the_order_of_the_images_with_room_for_the_margin_cost_nothing() -> None:
    statistics = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0]])
    assert rank_loss(statistics.clone(), statistics, margin=0.5, min_gap=0.0).item() == 0


def test_a_step_along_the_gradient_raises_the_rank_correlation() -> None:
    statistics, paths = torch.rand(24, 3), torch.rand(24, 6)
    before = rank_correlation(paths, statistics)
    for _ in range(60):
        paths.requires_grad_()
        (grad,) = torch.autograd.grad(rank_loss(paths, statistics, stride=4, reduction="anchor"), paths)
        paths = (paths - 0.1 * grad).clamp(0, 1).detach()
    assert rank_correlation(paths, statistics) > before + 0.2


def test_near_ties_are_dropped() -> None:
    statistics = torch.tensor([[0.0], [1.0], [1.05], [7.0]])
    paths = torch.rand(4, 3)
    kept_all, dropped = (rank_loss(paths, statistics, min_gap=gap, reduction="sum") for gap in (0.0, 0.1))
    distances = torch.cdist(paths, paths)
    near_ties = [(0, 1, 2), (3, 2, 1)]
    terms = sum((distances[i, p] - distances[i, q] + 0.5).clamp_min(0) for i, p, q in near_ties)
    torch.testing.assert_close(kept_all - dropped, terms, atol=1e-5, rtol=1e-5)


def test_exact_duplicates_of_images_are_dropped_even_without_a_gap() -> None:
    statistics = torch.tensor([[0.0], [2.0], [2.0], [2.0]])
    paths = torch.tensor([[0.0], [1.0], [0.3], [0.6]])
    # Anchor 0 sees three equal distances; anchors 1 to 3 see two zeros and then image 0.
    distances = [(0.4, 1.0), (0.3, 0.3), (0.3, 0.6)]
    expected = sum(max(0.0, d_p - d_q + 0.5) for d_p, d_q in distances)
    loss = rank_loss(paths, statistics, min_gap=0.0, reduction="sum").item()
    assert loss == pytest.approx(expected, abs=1e-5)


def test_a_batch_of_one_image_repeated_has_nothing_to_rank() -> None:
    paths = torch.rand(4, 3, requires_grad=True)
    loss = rank_loss(paths, torch.ones(4, 2))
    loss.backward()
    assert loss.item() == 0
    assert not paths.grad.any()


@pytest.mark.parametrize("batch", [1, 2])
def test_batches_too_small_for_a_triplet_cost_nothing(batch: int) -> None:
    assert rank_loss(torch.rand(batch, 3), torch.rand(batch, 2)).item() == 0


def test_a_stride_beyond_the_batch_costs_nothing() -> None:
    assert rank_loss(torch.rand(4, 3), LINE, stride=3).item() == 0
    assert rank_loss(torch.rand(4, 3), LINE, stride=9).item() == 0


@given(strategies.seeds)
def test_the_loss_does_not_see_the_order_of_a_batch_without_ties(seed: int) -> None:
    generator = strategies.generator(seed)
    paths, statistics = torch.rand(6, 3, generator=generator), torch.rand(6, 2, generator=generator)
    order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(rank_loss(paths[order], statistics[order]), rank_loss(paths, statistics))


def test_no_gradient_flows_into_the_statistics() -> None:
    statistics = torch.rand(5, 2, requires_grad=True)
    rank_loss(torch.rand(5, 3, requires_grad=True), statistics).backward()
    assert statistics.grad is None


@given(strategies.seeds, st.integers(3, 10))
def test_rank_correlation_is_that_of_scipy_averaged_over_anchors(seed: int, batch: int) -> None:
    generator = strategies.generator(seed)
    paths, statistics = torch.rand(batch, 4, generator=generator), torch.rand(batch, 5, generator=generator)
    expected = reference.rank_correlation(paths, statistics)
    assert rank_correlation(paths, statistics).item() == pytest.approx(expected, abs=1e-5)


@given(st.data(), strategies.seeds, st.integers(3, 8))
def test_rank_correlation_averages_the_ranks_of_tied_paths(
    data: st.DataObject, seed: int, batch: int
) -> None:
    paths = data.draw(strategies.paths(batch, 3, levels=1))
    statistics = torch.rand(batch, 5, generator=strategies.generator(seed))
    expected = reference.rank_correlation(paths, statistics)
    assert rank_correlation(paths, statistics).item() == pytest.approx(expected, abs=1e-5)


@given(st.data(), st.integers(3, 8))
def test_rank_correlation_averages_the_ranks_of_tied_images(data: st.DataObject, batch: int) -> None:
    paths, statistics = data.draw(strategies.paths(batch, 3)), data.draw(strategies.statistics(batch))
    expected = reference.rank_correlation(paths, statistics)
    assert rank_correlation(paths, statistics).item() == pytest.approx(expected, abs=1e-5)


def test_rank_correlation_of_equal_paths_in_a_full_batch_is_zero() -> None:
    paths = torch.rand(54).repeat(256, 1)
    assert rank_correlation(paths, torch.rand(256, 6)).item() == 0


def test_rank_correlation_is_one_for_paths_that_copy_the_images_and_minus_one_for_the_opposite() -> None:
    statistics = torch.rand(6, 3)
    assert rank_correlation(statistics, statistics).item() == pytest.approx(1.0)
    right_angle_at_first = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    right_angle_at_last = torch.tensor([[4.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    assert rank_correlation(right_angle_at_last, right_angle_at_first).item() == pytest.approx(-1.0)
