"""Losses of early exits against literal formulas."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from sidestep.losses.exit_loss import exit_loss, exit_weights, self_distillation_loss
from tests.reference.exits import literal_exit_loss

KINDS = ["uniform", "linear", "triangle", "gauss", "exponential"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_weighted_sum_in_value_and_gradient(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (5,), generator=generator)
    weights = exit_weights(3, kind)
    # exit_loss works in float32, whatever the network ran in.
    ours, theirs = exit_loss(logits, labels, weights), literal_exit_loss(logits, labels, weights)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_one_exit_is_cross_entropy() -> None:
    logits, labels = torch.randn(1, 6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    for kind in KINDS:
        torch.testing.assert_close(
            exit_loss(logits, labels, exit_weights(1, kind)), F.cross_entropy(logits[0], labels)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_mean_one_and_their_shape(kind: str) -> None:
    weights = exit_weights(5, kind)
    assert sum(weights) == pytest.approx(5)
    rising = all(a < b for a, b in pairwise(weights))
    assert rising == (kind in ("linear", "exponential"))
    if kind in ("triangle", "gauss"):
        assert weights[2] == max(weights)
        assert weights == pytest.approx(weights[::-1])


def test_early_exits_learn_from_the_last_and_it_from_none() -> None:
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = self_distillation_loss(logits, [1.0, 2.0, 5.0], temperature=2.0)
    p = (logits[2].detach() / 2).softmax(dim=1)
    literal = sum(
        weight * 4 * (p * (p.log() - (logits[exit] / 2).log_softmax(dim=1))).sum() / 5
        for exit, weight in ((0, 1.0), (1, 2.0))
    )
    torch.testing.assert_close(loss, literal)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[2].abs().sum() == 0 and gradient[0].abs().sum() > 0
    assert self_distillation_loss(logits[:1], [1.0]).item() == 0
