"""The relational router of RDI-Net (ICCV 2021, section 3.2): decisions that know the ones before them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.errors import RecipeError
from sidestep.layers.pool import global_average_pool
from sidestep.routing.router import Router

_GATE_BIAS = (0.1, 2.0)

# The layers of every unit: alignment, GCN weight, decision weight and bias; and the features s so far.
State = tuple[list[tuple[Any, Tensor, Tensor, Tensor]], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationalConfig:
    """Settings of the relational router.

    Args:
        dim: width d of router features (paper: 256).
        gamma: decay of the edge weight per unit of distance; 0 is the vanilla gate, 1 the plain sum,
            "auto" the cosine similarity of the features (table 3).
        reach: number r of previous routers that are seen directly. The paper draws 2 (figure 2) and finds
            its best accuracy at 6 (figure 7a).
        share_gcn: which routers share one GCN weight; the paper shares none.
        normalize_adj: divide edge weights by their sum; needed for gamma near 1 with a long reach, where
            the unnormalised sum diverges.
        batch_norm: BatchNorm between the alignment layer and its ReLU (eq. 6), as in the released code; the
            paper prints none.
        gate_bias: bias of skip and execute at the start; the paper is silent, ConvNet-AIG's (0.1, 2.0) makes
            P(execute) 0.87.
        initial_rates: P(execute) of every unit at the start, in (0, 1), instead of gate_bias: gates that
            start near a good fixed subset of blocks.
        form: "paper" relates features; "released" is the released code's, which relates decisions, see
            `released_relational`, and knows dim and gamma alone.
    """

    dim: int = 256
    gamma: float | Literal["auto"] = 0.5
    reach: int = 2
    share_gcn: Literal["none", "stage", "all"] = "none"
    normalize_adj: bool = False
    batch_norm: bool = True
    gate_bias: tuple[float, float] = _GATE_BIAS
    initial_rates: list[float] | None = None
    form: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        self._check_form()
        if self.initial_rates is not None and self.gate_bias != _GATE_BIAS:
            raise RecipeError(f"gate_bias has no effect beside initial_rates, got {self.gate_bias}; set one")
        if any(not 0 < rate < 1 for rate in self.initial_rates or ()):
            raise RecipeError(
                f"initial_rates must be in (0, 1), got {self.initial_rates}; 0.97 nearly always runs"
            )
        if self.dim < 1:
            raise RecipeError(f"dim must be at least 1, got {self.dim}; the paper uses 256")
        if self.reach < 0:
            raise RecipeError(f"reach must be at least 0, got {self.reach}; the paper uses 2 to 6")
        if self.gamma != "auto" and not 0.0 <= self.gamma <= 1.0:
            raise RecipeError(f"gamma must be in [0, 1] or 'auto', got {self.gamma}; the paper uses 0.5")

    def _check_form(self) -> None:
        if self.form == "paper":
            return
        if self.gamma == "auto":
            raise RecipeError("gamma must be a number with form 'released', got 'auto'; that code uses 0.5")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("dim", "gamma", "form") and value != field.default:
                raise RecipeError(f"{field.name} has no effect with form 'released', got {value!r}; drop it")


@dataclass(frozen=True, slots=True)
class Edges:
    """The edges to previous routers: z = s~ + sum_k gamma^k s_{n-k} (eq. 5 to 7).

    Attributes:
        gamma: decay of the edge weight per unit of distance; "auto" is the cosine similarity.
        normalize: whether the sum is divided by that of the edge weights.
    """

    gamma: float | Literal["auto"]
    normalize: bool

    def __call__(self, own: Tensor, seen: Sequence[Tensor]) -> Tensor:
        """Return (B, d) features z, given s~ and those seen, newest first."""
        gamma = self.gamma
        if gamma == 0 or not seen:
            return own
        if gamma == "auto":
            weights = [F.cosine_similarity(own, s, dim=1, eps=1e-6).unsqueeze(1) for s in seen]
            total = own + sum((e * s for e, s in zip(weights, seen, strict=True)), torch.zeros_like(own))
            return total / (1 + sum(weights)) if self.normalize else total
        total = own
        for distance, s in enumerate(seen, start=1):
            total = torch.add(total, s, alpha=gamma**distance)
        if self.normalize:
            total = total / sum(gamma**distance for distance in range(len(seen) + 1))
        return total


class RelationalRouter(Router):
    """Routers linked by a graph convolution over the last r of them (eq. 5 to 8).

    With GAP for global average pooling, router n computes::

        s~_n = relu(BN(align_n(GAP(x_n))))
        z_n  = s~_n + sum_{k=1..min(r, n-1)} gamma^k s_{n-k}
        s_n  = relu(W_n z_n)
        logits_n = decide_n(s_n)

    Departures from the paper: BatchNorm in eq. 6, which the released code has; its adjacency (eq. 4) is upper
    triangular, with which the last row of eq. 7 would see nothing but itself, so the transpose is used; the
    first routers see the predecessors that exist (the released code repeats features instead).

    Args:
        channels: input channels of every unit.
        stages: stage index of every unit.
        config: settings.
        num_options: options per unit.
    """

    def __init__(
        self,
        channels: Sequence[int],
        stages: Sequence[int],
        config: RelationalConfig | None = None,
        *,
        num_options: int = 2,
    ) -> None:
        super().__init__()
        self.config = config = config or RelationalConfig()
        self.edges = Edges(config.gamma, config.normalize_adj)
        self.align = nn.ModuleList(_align(c, config) for c in channels)
        keys = {"none": list(range(len(channels))), "stage": list(stages), "all": [0] * len(channels)}
        shared = {key: _gcn(config.dim) for key in dict.fromkeys(keys[config.share_gcn])}
        self.gcn = nn.ModuleList(shared[key] for key in keys[config.share_gcn])
        self.decide = nn.ModuleList(
            _decide(config.dim, bias, num_options) for bias in _biases(config, len(channels))
        )

    def first_layers(self) -> nn.ModuleList:
        """Return the layers of eq. 6 in front of the ReLU."""
        return self.align

    def begin(self, images: Tensor, layers: Sequence[Callable[[Tensor], Tensor]] | None = None) -> State:
        """Return the layers, with others in place of the first ones if there are, and no features yet."""
        # Looked up once per image and called as functions: at batch 1 finding a module and calling it costs
        # as much as the product that it is for.
        first: Any = self.align if layers is None else layers
        gates: Iterable[tuple[Any, Any, Any]] = zip(first, self.gcn, self.decide, strict=True)
        return [(align, gcn.weight, decide.weight, decide.bias) for align, gcn, decide in gates], ()

    def forward(self, unit: int, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits (B, K), and a state with the features s of the last r routers, newest first."""
        gates, seen = state
        align, gcn, weight, bias = gates[unit]
        own = F.relu(align(global_average_pool(features)), inplace=True)
        s = F.relu(F.linear(self.edges(own, seen), gcn), inplace=True)
        return F.linear(s, weight, bias), (gates, (s, *seen)[: self.config.reach])

    def take(self, state: State, rows: Tensor) -> State:
        gates, seen = state
        return gates, tuple(s[rows] for s in seen)


def _align(channels: int, config: RelationalConfig) -> nn.Sequential:
    linear = nn.Linear(channels, config.dim)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    norm = [nn.BatchNorm1d(config.dim)] if config.batch_norm else []
    return nn.Sequential(linear, *norm)


def _gcn(dim: int) -> nn.Linear:
    linear = nn.Linear(dim, dim, bias=False)
    # The released code's rule. Kaiming makes gamma = 1 diverge even at r = 2 over 54 routers.
    nn.init.uniform_(linear.weight, -(dim**-0.5), dim**-0.5)
    return linear


def _biases(config: RelationalConfig, num_units: int) -> list[tuple[float, float]]:
    """Return the initial bias of skip and execute for every unit."""
    rates = config.initial_rates
    if rates is None:
        return [config.gate_bias] * num_units
    if len(rates) != num_units:
        raise RecipeError(f"initial_rates must name every unit once, got {len(rates)} for {num_units} units")
    return [(0.0, math.log(rate / (1 - rate))) for rate in rates]


def _decide(dim: int, bias: tuple[float, float], num_options: int) -> nn.Linear:
    linear = nn.Linear(dim, num_options)
    nn.init.normal_(linear.weight, std=0.001)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor([bias[0]] + [bias[1]] * (num_options - 1)))
    return linear
