"""What losses and routers compute of a batch that two processes share: what one computes of all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp

from sidestep.losses.batch_shaping import batch_shaping_loss
from sidestep.losses.budget import cost_loss
from sidestep.losses.policy_gradient import leave_one_out_advantage
from sidestep.types import CostModel, Decisions
from tests.routing.test_share import Margins, sampled, share_router

PRICES = CostModel(fixed=1.0, options=torch.tensor([[0.0, 2.0], [0.0, 6.0]]), routers=torch.zeros(2))
EXECUTION = torch.tensor([[1.0, 0.2], [0.4, 0.6], [0.0, 0.9], [0.3, 0.7]])
MARGINS = torch.tensor([[2.0, -1.0], [0.3, 4.0], [-3.0, 0.1], [1.1, -0.6]])
SCOPES = ("unit", "network")


def budget(execution: Tensor, scope: str) -> Tensor:
    return cost_loss(
        Decisions(weights=torch.stack([1 - execution, execution], dim=2)), 0.3, PRICES, scope=scope
    )


def shaping(margins: Tensor) -> Tensor:
    return batch_shaping_loss(margins, (0.6, 0.4)).sum()


def loss_and_gradient(loss: Callable[..., Tensor], values: Tensor, *rest: str) -> tuple[Tensor, Tensor]:
    leaf = values.clone().requires_grad_()
    found = loss(leaf, *rest)
    found.backward()
    assert leaf.grad is not None
    return found.detach(), leaf.grad


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    rows = slice(2 * rank, 2 * rank + 2)
    margins = torch.arange(16.0).square().flip(0).unsqueeze(1)
    router = share_router(Margins(margins[8 * rank : 8 * rank + 8].clone()), [0.25], learn=True)
    router.worth.fill_(float(rank + 1))
    sample = sampled(router, 0, 8)
    said = {
        **{scope: loss_and_gradient(budget, EXECUTION[rows], scope) for scope in SCOPES},
        "advantage": leave_one_out_advantage(EXECUTION[rows]),
        "shaping": loss_and_gradient(shaping, MARGINS[rows]),
        "share": (router.shift, router.learnt, sample.weights.detach()),
    }
    torch.save(said, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each process says of its half."""
    folder = tmp_path_factory.mktemp("halves")
    mp.start_processes(one_of_two, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_as_one(halves: list[tuple[Tensor, Tensor]], whole: tuple[Tensor, Tensor]) -> None:
    """Compare loss and gradient; data-parallel training averages gradients, which halves those of two."""
    for loss, _ in halves:
        torch.testing.assert_close(loss, whole[0])
    torch.testing.assert_close(torch.cat([gradient for _, gradient in halves]) / 2, whole[1])


def test_budgets_have_the_loss_and_gradient_of_the_whole_batch(halves: list[dict[str, Any]]) -> None:
    for scope in SCOPES:
        assert_as_one([half[scope] for half in halves], loss_and_gradient(budget, EXECUTION, scope))
    advantages = torch.cat([half["advantage"] for half in halves])
    torch.testing.assert_close(advantages, leave_one_out_advantage(EXECUTION))


def test_images_are_ranked_together(halves: list[dict[str, Any]]) -> None:
    assert_as_one([half["shaping"] for half in halves], loss_and_gradient(shaping, MARGINS))


def test_quantiles_and_shares_are_agreed_on(halves: list[dict[str, Any]]) -> None:
    (shift, learnt, weights), other = (half["share"] for half in halves)
    assert torch.equal(shift, other[0]) and torch.equal(learnt, other[1])
    # The fourth and the fifth of all sixteen; each process executes a quarter of its images.
    assert float(shift[0, 1]) == (12.0**2 + 11.0**2) / 2
    assert float(weights[:, 1].sum()) == float(other[2][:, 1].sum()) == 2
