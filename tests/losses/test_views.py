"""Consistency and diversity: hand arithmetic, and parity with loops in value and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.losses.views import consistency_loss, diversity_loss
from tests import strategies
from tests.reference import views as reference


def test_views_are_pulled_to_their_centre() -> None:
    paths = torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    assert consistency_loss(paths, 2, margin=0.2).item() == pytest.approx(2 * 0.3**2 / 4)


def test_images_are_pushed_apart_up_to_the_margin() -> None:
    paths = torch.tensor([[0.0], [0.0], [0.1], [0.1], [2.0], [2.0]])
    assert diversity_loss(paths, 2, margin=0.5).item() == pytest.approx(0.4**2 / 3)


def test_a_single_image_has_nothing_to_differ_from() -> None:
    assert diversity_loss(torch.rand(3, 4), 3).item() == 0


@pytest.mark.parametrize("loss", [consistency_loss, diversity_loss])
def test_equal_paths_have_a_finite_gradient(loss: object) -> None:
    paths = torch.ones(4, 3, requires_grad=True)
    loss(paths, 2, margin=0.1).backward()  # type: ignore[operator]
    assert paths.grad is not None
    assert bool(paths.grad.isfinite().all())


@given(st.integers(1, 4), st.integers(1, 4), st.floats(0, 1), st.floats(0, 2), strategies.seeds)
def test_values_and_gradients_are_those_of_the_loops(
    images: int, views: int, near: float, far: float, seed: int
) -> None:
    drawn = torch.rand(images * views, 6, generator=strategies.generator(seed))
    for loss, literal, margin in (
        (consistency_loss, reference.consistency, near),
        (diversity_loss, reference.diversity, far),
    ):
        ours, theirs = (drawn.clone().requires_grad_() for _ in range(2))
        actual, expected = loss(ours, views, margin=margin), literal(theirs, views, margin)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)
        (actual + 0 * ours.sum()).backward()
        (expected + 0 * theirs.sum()).backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
