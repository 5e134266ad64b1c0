"""Halting: scores that say after every unit how likely a stage ends, and the rule that ends it.

Graves 2016 (ACT) and Figurnov et al. 2017 (SACT). Scores and everything made of them are (B, 1, h, w) maps:
h = w = 1 where an image halts as a whole (ACT), the size of the features where positions halt (SACT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.layers.norm import CIFAR, NormStyle
from sidestep.layers.pool import global_average_pool
from sidestep.routing.router import Router

# sigmoid(-3) = 0.047, so that stages run to their end at the start of training.
_BIAS = -3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Halting:
    """How far a stage has come, for images or for positions (Graves, eq. 6 to 8).

    With scores h_l and h_L = 1 for the last unit of a stage::

        N   = min {n : h_1 + ... + h_n >= 1 - eps}
        R   = 1 - (h_1 + ... + h_{N-1})
        p_l = h_l for l < N,  p_N = R,  0 after N
        rho = N + R

    Attributes:
        spent: (B, 1, h, w) sum of the p_l so far without R, float32.
        running: (B, 1, h, w) booleans, true where the next unit is computed.
        num_units: (B, 1, h, w) units computed so far; N in the end.
    """

    spent: Tensor
    running: Tensor
    num_units: Tensor

    @classmethod
    def begin(cls, batch: int, device: torch.device) -> Halting:
        """Return the state in front of a stage, where everything runs."""
        zeros = torch.zeros(batch, 1, 1, 1, device=device)
        return cls(spent=zeros, running=torch.ones_like(zeros, dtype=torch.bool), num_units=zeros)

    def take(self, which: Tensor) -> Halting:
        """Return the state of some of the images, by index."""
        return Halting(spent=self.spent[which], running=self.running[which], num_units=self.num_units[which])

    def step(self, score: Tensor, eps: float) -> tuple[Tensor, Halting]:
        """Return the weight p_l of a unit's output, (B, 1, h, w), and the state behind that unit.

        Args:
            score: h_l, (B, 1, h, w) in [0, 1]; 1 for the last unit. Where nothing runs it is not looked at.
            eps: what the sum may miss of 1, so that a stage can halt after a single unit.
        """
        halts = self.running & (self.spent + score >= 1 - eps)
        runs_on = self.running & ~halts
        # In two steps, so that where a stage halts no gradient reaches the score itself.
        added = torch.where(runs_on, score, 0.0)
        weight = torch.where(halts, 1 - self.spent, added)
        behind = Halting(
            spent=self.spent + added, running=runs_on, num_units=self.num_units + self.running.float()
        )
        return weight, behind

    def ponder(self) -> Tensor:
        """Return rho = N + R, (B, 1, h, w), of a stage that has ended; the gradient flows through R alone."""
        return self.num_units + (1 - self.spent)


class HaltingUnit(nn.Module):
    """The score of an image as a whole: W * act(BN(GAP(x))) + b, before the sigmoid (ACT).

    Args:
        channels: C of the features.
        style: of BatchNorm and activation.
    """

    def __init__(self, channels: int, style: NormStyle = CIFAR) -> None:
        super().__init__()
        self.style = style
        self.norm = nn.BatchNorm1d(channels, eps=style.eps)
        self.score = nn.Linear(channels, 1)
        _begin_open(self.score)

    def forward(self, features: Tensor) -> Tensor:
        """Return the (B, 1, 1, 1) logits of (B, C, H, W) features."""
        pooled = self.style.activate(self.norm(global_average_pool(features)))
        logits: Tensor = self.score(pooled)
        return logits.view(-1, 1, 1, 1)

    def share_of_macs(self, positions: Tensor) -> Tensor:
        """Return the (B,) share of this unit's MACs that is needed where (B, 1, h, w) positions ran."""
        return positions[:, 0, 0, 0].float()


class SpatialHaltingUnit(nn.Module):
    """The score of every position, before the sigmoid (SACT).

    With two BatchNorms: conv3x3(act(BN(x))) + b + V * act(BN'(GAP(x))).

    Args:
        channels: C of the features.
        style: of BatchNorm and activation.
    """

    def __init__(self, channels: int, style: NormStyle = CIFAR) -> None:
        super().__init__()
        self.style = style
        self.local_norm = nn.BatchNorm2d(channels, eps=style.eps)
        self.local_score = nn.Conv2d(channels, 1, 3, padding=1)
        self.global_norm = nn.BatchNorm1d(channels, eps=style.eps)
        self.global_score = nn.Linear(channels, 1, bias=False)
        _begin_open(self.local_score)
        nn.init.kaiming_normal_(self.global_score.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return the (B, 1, H, W) logits of (B, C, H, W) features."""
        local: Tensor = self.local_score(self.style.activate(self.local_norm(features)))
        pooled = self.style.activate(self.global_norm(global_average_pool(features)))
        whole: Tensor = self.global_score(pooled)
        return local + whole.view(-1, 1, 1, 1)

    def share_of_macs(self, positions: Tensor) -> Tensor:
        """Return the (B,) share of this unit's MACs that is needed where (B, 1, h, w) positions ran.

        The convolution is counted at these positions, the global part once for an image that has any.
        """
        ran = positions.float()
        taps = self.local_score.weight[0, 0].numel() * ran[0].numel()
        return (taps * ran.mean(dim=(1, 2, 3)) + ran.amax(dim=(1, 2, 3))) / (taps + 1)


def _begin_open(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.kaiming_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, _BIAS)


class HaltingRouter(Router):
    """The halting units of a network: one behind every unit, except behind the last one of a stage.

    The one behind unit n is asked in front of unit n + 1, whose input is the output of unit n. So it is
    called with n + 1 like any router; in front of a stage opener, which always runs, there is none. What it
    returns are logits (B, 1, h, w) of halting and not of options, which `HaltingNetwork` knows how to read.

    Args:
        channels: input channels of every unit of the network.
        stages: stage index of every unit.
        spatial: whether positions halt (SACT) or images (ACT).
        eps: what the scores may miss of 1 where a stage halts, in (0, 1).
        style: of BatchNorm and activation in the halting units.
    """

    plan_obstacle = (
        "act and sact weigh the outputs of several units, and plans run one option of each; "
        "evaluate them gathered instead"
    )

    def __init__(
        self,
        channels: Sequence[int],
        stages: Sequence[int],
        *,
        spatial: bool,
        eps: float = 0.01,
        style: NormStyle = CIFAR,
    ) -> None:
        super().__init__()
        self.spatial = spatial
        self.eps = eps
        kind = SpatialHaltingUnit if spatial else HaltingUnit
        # Keyed by the unit in front of which they are asked; openers have none.
        self.halting = nn.ModuleDict(
            {str(n): kind(channels[n], style) for n in range(1, len(channels)) if stages[n] == stages[n - 1]}
        )

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the logits (B, 1, h, w) of halting in front of a unit, and the state as it came."""
        if str(unit) not in self.halting:
            return features.new_full((features.shape[0], 1, 1, 1), -torch.inf), state
        return self.halting[str(unit)](features), state

    def share_of_macs(self, unit: int, positions: Tensor) -> Tensor:
        """Return the (B,) share of the price of asking in front of a unit that is paid.

        Args:
            unit: index of a unit that opens no stage.
            positions: (B, 1, h, w) booleans, true where the unit before it ran.
        """
        halting: Any = self.halting[str(unit)]
        share: Tensor = halting.share_of_macs(positions)
        return share
