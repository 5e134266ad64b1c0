"""Pre-activation residual blocks, where BatchNorm and activation stand before every convolution."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.layers.positions import share_of_macs
from sidestep.layers.shortcut import make_shortcut
from sidestep.layers.unit import Unit

# ACT and SACT's values; PyTorch's own epsilon is a hundredth of it.
LEAK, BN_EPS = 0.1, 1e-3


class PreactBlock(Unit):
    """Two 3x3 convolutions behind BatchNorm and a leaky ReLU each (He et al. 2016b, as in ACT and SACT).

    With a(x) = lrelu(BN(x)), S the shortcut and B(x) = conv2(a(conv1(a(x))))::

        execute(x) = S(x) + B(x)
        skip(x)    = S(x)

    Nothing follows the sum, so soft weights v give S + v * B, whether outputs or branches are blended.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; twice the input's in a stage opener, which has stride 2.
        stride: 1, or 2 for a stage opener.
        stage: index of the stage.
        first: whether this is the network's first block, whose shortcut is a(x) instead of x.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, stage: int, first: bool = False
    ) -> None:
        super().__init__(in_channels=in_channels, stage=stage)
        self.bn1 = nn.BatchNorm2d(in_channels, eps=BN_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=BN_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.first = first
        same_shape = stride == 1 and in_channels == out_channels
        self.keeps_input = same_shape and not first
        self.downsample = make_shortcut(in_channels, out_channels, stride=stride, option="pool_both")

    def run(self, option: int, x: Tensor) -> Tensor:
        if not option:
            return self._shortcut(self._activate(x) if self.first else x)
        branch, shortcut = self._parts(x)
        return branch + shortcut if branch.requires_grad else branch.add_(shortcut)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return S + v * B, everything computed: the masked reference.

        Args:
            x: (B, C, H, W) features.
            weights: (B, 2) weights of skip and execute.
        """
        branch, shortcut = self._parts(x)
        return shortcut + weights[:, 1].to(branch.dtype).view(-1, 1, 1, 1) * branch

    def share_of_macs(self, positions: Tensor) -> Tensor:
        return share_of_macs((self.conv1, self.conv2), positions)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return B(x) and S(x)."""
        activated = self._activate(x)
        inner = F.leaky_relu(self.bn2(self.conv1(activated)), LEAK, inplace=True)
        return self.conv2(inner), self._shortcut(activated if self.first else x)

    def _activate(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn1(x), LEAK)

    def _shortcut(self, source: Tensor) -> Tensor:
        return source if self.downsample is None else self.downsample(source)
