"""Hypothesis strategies: small depths, batches, paths, decisions and price lists."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from sidestep.types import CostModel, Decisions

depths = st.sampled_from([8, 14])
shortcuts = st.sampled_from(["A", "B", "pool_end", "pool_both"])
batch_sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int, seed: int, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=generator(seed))


@st.composite
def execution_tables(draw: st.DrawFn, units: int, batch: int | None = None) -> Tensor:
    """Draw (B, L) zeros and ones; all-run and none-run come up often."""
    rows = draw(batch_sizes) if batch is None else batch
    kind = draw(st.sampled_from(["mixed", "all", "none"]))
    if kind != "mixed":
        return torch.full((rows, units), float(kind == "all"))
    row = st.lists(st.integers(0, 1), min_size=units, max_size=units)
    return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows))).float()


@st.composite
def paths(draw: st.DrawFn, batch: int, units: int, levels: int = 8) -> Tensor:
    """Draw (B, L) soft paths in steps of 1/levels, whose squared distances are exact."""
    row = st.lists(st.integers(0, levels), min_size=units, max_size=units)
    return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch))) / levels


@st.composite
def statistics(draw: st.DrawFn, batch: int) -> Tensor:
    """Draw (B, 1) integer statistics, with duplicates and ties, whose distances are exact."""
    return (
        torch.tensor(draw(st.lists(st.integers(0, 9), min_size=batch, max_size=batch))).float().unsqueeze(1)
    )


@st.composite
def price_lists(draw: st.DrawFn, units: int, options: int) -> CostModel:
    """Draw prices that rise with the option."""
    steps = st.lists(st.integers(1, 10_000), min_size=options, max_size=options)
    options = torch.tensor(draw(st.lists(steps, min_size=units, max_size=units))).float().cumsum(dim=1)
    routers = torch.tensor(draw(st.lists(st.integers(0, 500), min_size=units, max_size=units))).float()
    return CostModel(fixed=float(draw(st.integers(0, 10_000))), options=options, routers=routers)


@st.composite
def decisions(draw: st.DrawFn, batch: int, units: int, options: int) -> Decisions:
    """Draw soft or hard weights (B, L, K)."""
    scores = torch.randn(batch, units, options, generator=generator(draw(seeds)))
    if draw(st.booleans()):
        return Decisions(weights=torch.nn.functional.one_hot(scores.argmax(dim=2), options).float())
    return Decisions(weights=scores.mul(3).softmax(dim=2))


@st.composite
def priced_decisions(draw: st.DrawFn) -> tuple[CostModel, Decisions]:
    units, options = draw(st.integers(1, 5)), draw(st.integers(2, 4))
    return draw(price_lists(units, options)), draw(decisions(draw(batch_sizes), units, options))
