"""The classifiers of early exits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.layers.dense import conv_basic
from sidestep.layers.pool import global_average_pool


class AttachedHead(nn.Module):
    """The exit of a network that was built without: convolution, pooling, linear layer.

    Maps get a 3x3 convolution of stride 2 with BatchNorm and ReLU before the mean over positions, since early
    features say little when they are only averaged; tokens, which attend to each other, a LayerNorm behind
    the mean (as ViT's heads have).

    Args:
        channels: of the features.
        width: channels of the convolution; has no effect on tokens.
        num_classes: classes to tell apart.
        tokens: whether features are (B, N, C) tokens instead of (B, C, H, W) maps.
    """

    def __init__(self, channels: int, width: int, num_classes: int, *, tokens: bool) -> None:
        super().__init__()
        self.conv: nn.Module | None = None
        if tokens:
            self.norm: nn.Module = nn.LayerNorm(channels)
        else:
            self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
            self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(channels if tokens else width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the (B, classes) logits of features."""
        if self.conv is None:
            pooled = self.norm(global_average_pool(features))
        else:
            pooled = global_average_pool(F.relu(self.norm(self.conv(features)), inplace=True))
        logits: Tensor = self.fc(pooled)
        return logits


class ExitHead(nn.Module):
    """Two 3x3 convolutions of stride 2, the mean over positions, and a linear layer (MSDNet, section 4).

    The paper pools 2x2 pixels, which is all that is left of its 8x8 and 7x7 maps; the mean over everything
    lets other image sizes through.

    Args:
        in_channels: channels of the features.
        width: channels of both convolutions.
        num_classes: classes to tell apart.
    """

    def __init__(self, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv_basic(in_channels, width, 3, stride=2)
        self.conv2 = conv_basic(width, width, 3, stride=2)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the (B, classes) logits of (B, C, H, W) features."""
        logits: Tensor = self.fc(global_average_pool(self.conv2(self.conv1(features))))
        return logits
