"""The router of RDI-Net's released code, which relates decisions and not features as the paper's does."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.layers.pool import global_average_pool
from sidestep.routing.relational import RelationalConfig
from sidestep.routing.router import Router

State = tuple[Tensor, ...]


class ReleasedRelationalRouter(Router):
    """Routers linked by the decisions of the two before them, as RDI-Net's released code has them.

    With K options and soft decisions p, router n computes::

        a_n = narrow_n(relu(BN(align_n(GAP(x_n)))))                   (K)
        z_n = a_n + gamma p_{n-1} + gamma^2 p_{n-2}
        logits_n = decide_n(W_n z_n),  p_n = softmax(logits_n)

    The first router has a_n in the place of decisions before it, the second p_{n-1} twice. Where the released
    code draws p with Gumbel noise, in evaluation too, it is taken without here.

    Args:
        channels: input channels of every unit.
        config: settings; `dim` and `gamma` of them.
        num_options: options per unit.
    """

    plan_obstacle = (
        "routers of RDI-Net's released code relate soft decisions, for which plans have no operation; train "
        "one with router.form: paper, or run it in PyTorch"
    )

    def __init__(self, channels: Sequence[int], config: RelationalConfig, *, num_options: int = 3) -> None:
        super().__init__()
        assert config.gamma != "auto"  # as its settings are checked
        self.gamma: float = config.gamma
        self.align = nn.ModuleList(nn.Sequential(_linear(c, c), nn.BatchNorm1d(c)) for c in channels)
        self.narrow = nn.ModuleList(_linear(c, num_options) for c in channels)
        self.gcn = nn.ModuleList(nn.Linear(num_options, config.dim, bias=False) for _ in channels)
        self.decide = nn.ModuleList(_linear(config.dim, num_options) for _ in channels)
        for gcn in self.gcn.modules():
            if isinstance(gcn, nn.Linear):
                nn.init.uniform_(gcn.weight, -(config.dim**-0.5), config.dim**-0.5)

    def begin(self, images: Tensor) -> State:
        return ()

    def forward(self, unit: int, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits (B, K), and the soft decisions of this router and the one before."""
        hidden = F.relu(self.align[unit](global_average_pool(features)))
        own: Tensor = self.narrow[unit](hidden)
        newest = state[0] if state else own
        oldest = state[-1] if state else own
        related = own + self.gamma * newest + self.gamma**2 * oldest
        logits: Tensor = self.decide[unit](self.gcn[unit](related))
        return logits, (logits.softmax(dim=1), *state[:1])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(linear.weight)
    return linear
