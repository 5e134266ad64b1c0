"""Losses that hold a network to its cost: pure functions of decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sidestep.layers.constant import constant
from sidestep.layers.processes import num_processes, sum_over_processes
from sidestep.types import CostModel, Decisions

Scope = Literal["unit", "sample", "network"]


def cost_loss(
    decisions: Decisions,
    target: float | Sequence[float] | Tensor,
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
        target: t in [0, 1]; a rate of execution, of all units or one for each, or for scope "network" a
            fraction of the static MACs. A tensor is a scalar.
        cost: prices, used by scope "network".
        scope: "unit" compares every unit's mean rate with t, "sample" every decision (as printed), and
            "network" the mean MACs (routers included), which leaves open which units are dispensable.
        reduction: over units; "network" has a single term.
    """
    execution = decisions.execution().float()
    wanted = constant(tuple(target), execution.device) if isinstance(target, Sequence) else target
    if scope == "network":
        return (global_mean(cost.fraction(decisions)) - wanted).square()
    if scope == "sample":
        terms = (execution - wanted).square().mean(dim=0)
    else:
        terms = (global_mean(execution) - wanted).square()
    return terms.sum() if reduction == "sum" else terms.mean()


def target_rate_loss(decisions: Decisions, rates: Sequence[float] | Tensor) -> Tensor:
    """Return the scalar mean over units of (mean_i w_n - t_n)^2 (ConvNet-AIG, target-rate loss).

    Units that always execute have the target 1 and add nothing, but they count in the mean, as in the
    released code.

    Args:
        decisions: weights (B, L, K) of this process; batch means are taken over all processes.
        rates: target rate t_n of every unit, in [0, 1], or a scalar of all.
    """
    execution = global_mean(decisions.execution().float())
    wanted = rates if isinstance(rates, Tensor) else constant(tuple(rates), execution.device)
    return (execution - wanted).square().mean()


def unit_count_loss(decisions: Decisions, num_units: float | Tensor) -> Tensor:
    """Return the scalar |mean number of executed units - num_units| (CoDiNet's cost term).

    The released code sums over the batch; this is its value divided by the batch size.

    Args:
        decisions: weights (B, L, K) of this process; the batch mean is taken over all processes.
        num_units: T, how many units an image executes on average.
    """
    return (global_mean(decisions.execution().float().sum(dim=1)) - num_units).abs()


def global_mean(values: Tensor) -> Tensor:
    """Return the mean over dimension 0 and over all processes, differentiable; batches must be equal."""
    mean = values.mean(dim=0)
    if num_processes() == 1:
        return mean
    return sum_over_processes(mean) / num_processes()
