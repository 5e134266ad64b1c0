"""Batch-shaping: SciPy's Beta distribution, the literal algorithm, and what it does to a gate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from sidestep.losses.batch_shaping import batch_shaping_loss, beta_cdf
from tests import strategies
from tests.reference import batch_shaping as reference

PAPER = (0.6, 0.4)


@pytest.mark.parametrize("prior", [PAPER, (0.1, 0.1), (1.0, 1.0), (2.0, 5.0), (0.05, 20.0), (200.0, 1.0)])
def test_the_distribution_function_and_its_slope_are_those_of_scipy(prior: tuple[float, float]) -> None:
    m = torch.linspace(-12, 12, 301, requires_grad=True)
    cdf = beta_cdf(m, prior)
    cdf.sum().backward()
    x = torch.sigmoid(m.detach().double())
    torch.testing.assert_close(
        cdf.detach().double(), torch.from_numpy(beta.cdf(x, *prior)), atol=5e-6, rtol=0
    )
    slope = torch.from_numpy(beta.pdf(x, *prior)) * x * (1 - x)
    assert m.grad is not None
    torch.testing.assert_close(m.grad.double(), slope, atol=1e-5 * float(slope.max()), rtol=1e-4)


@given(strategies.seeds, st.integers(2, 12), st.sampled_from([PAPER, (2.0, 3.0)]))
def test_value_and_gradient_are_those_of_the_literal_algorithm(
    seed: int, batch: int, prior: tuple[float, float]
) -> None:
    m = (3 * torch.randn(batch, 2, generator=strategies.generator(seed))).requires_grad_()
    losses = batch_shaping_loss(m, prior)
    losses.sum().backward()
    x = torch.sigmoid(m.detach().double())
    assert m.grad is not None
    for gate in range(2):
        value, slopes = reference.batch_shaping(x[:, gate], *prior)
        assert losses[gate].item() == pytest.approx(value, abs=1e-5)
        expected = torch.tensor(slopes).double() * x[:, gate] * (1 - x[:, gate])
        torch.testing.assert_close(m.grad[:, gate].double(), expected, atol=1e-5, rtol=1e-3)


def test_certain_gates_have_a_finite_gradient() -> None:
    m = torch.tensor([[-200.0], [0.0], [200.0]], requires_grad=True)
    batch_shaping_loss(m, PAPER).sum().backward()
    assert m.grad is not None and bool(m.grad.isfinite().all())


@given(strategies.seeds)
def test_the_order_of_a_batch_does_not_matter_even_with_equal_images(seed: int) -> None:
    generator = strategies.generator(seed)
    m = torch.randint(-2, 3, (8, 3), generator=generator).float()
    order = torch.randperm(8, generator=generator)
    torch.testing.assert_close(batch_shaping_loss(m[order], PAPER), batch_shaping_loss(m, PAPER))


def test_a_gate_that_treats_images_alike_is_pulled_apart_until_it_has_the_priors_mean() -> None:
    m = (1.9 + 0.01 * torch.randn(256, 1, generator=strategies.generator(0))).requires_grad_()
    optimizer = torch.optim.Adam([m], lr=0.1)
    before = batch_shaping_loss(m, PAPER).item()
    for _ in range(400):
        optimizer.zero_grad()
        loss = batch_shaping_loss(m, PAPER).sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 * before
    assert torch.sigmoid(m).mean().item() == pytest.approx(0.6, abs=0.03)
    assert torch.sigmoid(m).std().item() > 0.3
