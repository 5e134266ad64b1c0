"""Rounding to bytes in training, against the plan's bytes and gradients by hand."""

from __future__ import annotations

import torch

from sidestep.layers.fake_bytes import FakeBytes, rounded_weight
from sidestep.plan.byte_maps import Grid
from sidestep.quantisation.byte_plan import quantised_weight


def test_maps_are_rounded_as_plans_round_them() -> None:
    grid = Grid(0.0371, 77)
    x = 6 * torch.randn(4, 3, 8, 8)
    fake = FakeBytes(grid.scale, grid.zero)
    torch.testing.assert_close(fake(x), grid.to_numbers(grid.to_bytes(x)))
    assert torch.equal(fake(fake(x)), fake(x))
    # Halves go to the even byte, and what lies outside to the last.
    assert FakeBytes(1.0, 0)(torch.tensor([[0.5, 1.5, 2.5, -3.0, 300.0]])).tolist() == [[0, 2, 2, 0, 255]]


def test_weights_are_rounded_as_plans_round_them() -> None:
    weight = torch.randn(5, 4, 3, 3)
    weight[3] = 0
    steps, scale = quantised_weight(weight)
    torch.testing.assert_close(rounded_weight(weight), steps * scale.view(-1, 1, 1, 1))
    # A BatchNorm that is folded changes nothing about it.
    factor = torch.tensor([3.7, -0.2, 1.0, 2.0, -11.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(rounded_weight(weight * factor), rounded_weight(weight) * factor)


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(5, 4, 3, 3, requires_grad=True)
    wanted = torch.randn_like(weight)
    (rounded_weight(weight) * wanted).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weight.grad, wanted)
    x = torch.tensor([[-5.0, -0.3, 0.2, 3.0, 70.0]], requires_grad=True)
    FakeBytes(0.25, 3)(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[0, 1, 1, 1, 0]]


def test_scales_learn_by_the_step_size_formula() -> None:
    """Literally: Esser et al., eq. 3, with a zero point."""
    x = torch.tensor([[-5.0, -0.3, 0.2, 3.1, 70.0], [0.6, 0.7, 0.8, 0.9, 1.0]])
    fake = FakeBytes(0.25, 3)
    fake(x).sum().backward()
    wanted = 0.0
    for v in (x / 0.25).flatten().tolist():
        if v <= -3:
            wanted += -3
        elif v >= 252:
            wanted += 252
        else:
            wanted += round(v) - v
    torch.testing.assert_close(fake.scale.grad, torch.tensor(wanted * (5 * 255) ** -0.5))
