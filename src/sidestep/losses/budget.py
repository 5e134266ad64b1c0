"""Losses that hold a network to its cost: pure functions of decisions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce

from sidestep.types import CostModel, Decisions

Scope = Literal["unit", "sample", "network"]


def cost_loss(
    decisions: Decisions,
    target: float,
    cost: CostModel,
    *,
    scope: Scope = "unit",
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Return the scalar squared distance of execution from a target (RDI-Net eq. 15).

    The paper prints sum_n (v_n - t)^2 per sample, whose minimiser is v_n = t everywhere: equal paths. Its
    text says that it constrains how often a block is used, so the default compares batch means.

    Args:
        decisions: weights (B, L, K) of this process; batch means are taken over all processes.
        target: t in [0, 1]; a rate of execution, or for scope "network" a fraction of the static MACs.
        cost: prices, used by scope "network".
        scope: "unit" compares every unit's mean rate with t, "sample" every decision (as printed), and
            "network" the mean MACs (routers included), which leaves open which units are dispensable.
        reduction: over units; "network" has a single term.
    """
    if scope == "network":
        return (global_mean(cost.fraction(decisions)) - target).square()
    execution = decisions.execution().float()
    if scope == "sample":
        terms = (execution - target).square().mean(dim=0)
    else:
        terms = (global_mean(execution) - target).square()
    return terms.sum() if reduction == "sum" else terms.mean()


def global_mean(values: Tensor) -> Tensor:
    """Return the mean over dimension 0 and over all processes, differentiable; batches must be equal."""
    mean = values.mean(dim=0)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        reduced: Tensor = all_reduce(mean)  # type: ignore[no-untyped-call]
        return reduced / dist.get_world_size()
    return mean
