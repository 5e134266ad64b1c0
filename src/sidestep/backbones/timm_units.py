"""ResNets, ConvNeXts and ViTs of timm as stem, units and head: a unit per residual block, timm's module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.internals import with_positions
from sidestep.layers.unit import Unit

# The activation that ends a block of a ResNet; those with other blocks are traced.
_LAST_ACTIVATION: dict[type[nn.Module], str] = {BasicBlock: "act2", Bottleneck: "act3"}

# The two residual branches of a ViT block, each added to its own input.
_SUBLAYERS = (("norm1", "attn", "ls1", "drop_path1"), ("norm2", "mlp", "ls2", "drop_path2"))


class BlockUnit(Unit):
    """A residual block that keeps the shape of its input, which is what skipping it returns.

    Soft weights blend outputs, `v * block(x) + (1 - v) * x` (RDI-Net eq. 9). Where nothing follows the
    block's sum x + B(x), as in ConvNeXt and ViT, that is x + v * B(x), the scaled residual.

    Args:
        block: maps features to features of the same shape.
        in_channels: channels of the input, which routers pool.
        stage: index of the stage.
        entry: layers between two stages, which change the shape in front of the block; both options run them.
    """

    def __init__(
        self,
        block: nn.Module,
        *,
        in_channels: int,
        stage: int,
        entry: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(in_channels=in_channels, stage=stage)
        self.block: Any = block
        self.entry = entry
        self.keeps_input = entry is None
        self.training = block.training

    @property
    def origin(self) -> nn.Module:
        block: nn.Module = self.block
        return block

    def run(self, option: int, x: Tensor) -> Tensor:
        entered = self._enter(x)
        return self._execute(entered) if option else entered

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the blend of both outputs; the entry runs once."""
        entered = self._enter(x)
        return _blend(entered, self._execute(entered), weights)

    def _enter(self, x: Tensor) -> Tensor:
        return x if self.entry is None else self.entry(x)

    def _execute(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class SublayerUnit(BlockUnit):
    """The attention or the MLP of a ViT block: parts of it, applied in a row and added to the input."""

    def __init__(self, block: nn.Module, parts: Sequence[str], *, in_channels: int, stage: int) -> None:
        super().__init__(block, in_channels=in_channels, stage=stage)
        self.parts = tuple(parts)

    def _execute(self, x: Tensor) -> Tensor:
        out = x
        for part in self.parts:
            out = getattr(self.block, part)(out)
        return x + out


class OpenerUnit(BlockUnit):
    """The block that opens a stage of a ResNet; skipping it leaves its shortcut and its last activation.

    The activation keeps the features of a skipped unit non-negative, as `ResidualUnit.skip` does.

    Args:
        block: has a path of its own beside its convolutions.
        in_channels: channels of the input, which routers pool.
        stage: index of the stage.
        activation: the block's last one, or None for a block that ends with its sum.
        entry: see `BlockUnit`.
        shortcut: what that path is called in the block.
    """

    def __init__(
        self,
        block: nn.Module,
        *,
        in_channels: int,
        stage: int,
        activation: nn.Module | None,
        entry: Callable[[Tensor], Tensor] | None = None,
        shortcut: str = "downsample",
    ) -> None:
        super().__init__(block, in_channels=in_channels, stage=stage, entry=entry)
        self.keeps_input = False
        self.activation = activation
        self.shortcut = shortcut

    def run(self, option: int, x: Tensor) -> Tensor:
        entered = self._enter(x)
        return (
            self._execute(entered) if option else self._activated(getattr(self.block, self.shortcut)(entered))
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the blend of both outputs; entry and shortcut run once."""
        # Two runs would count the batch twice in the running statistics of the shortcut's BatchNorm.
        shortcuts: list[Tensor] = []
        path: nn.Module = getattr(self.block, self.shortcut)
        handle = path.register_forward_hook(lambda *call: shortcuts.append(call[-1]))
        try:
            executed = self._execute(self._enter(x))
        finally:
            handle.remove()
        return _blend(self._activated(shortcuts[0]), executed, weights)

    def _activated(self, shortcut: Tensor) -> Tensor:
        return shortcut if self.activation is None else self.activation(shortcut)


class WrappedNetwork(Backbone):
    """A network of timm with its own modules and weights; subclasses say what its parts are.

    The network keeps all weights under timm's names. Units only refer to its blocks and are no submodules,
    so that no weight has a second name; their modes follow the network's.

    Attributes:
        network: the network, which still works by itself.
    """

    def __init__(self, network: nn.Module, units: Iterable[Unit] | None = None) -> None:
        super().__init__()
        self.network: Any = network
        self._units = tuple(self._make_units() if units is None else units)
        self.training = network.training

    @property
    def units(self) -> Sequence[Unit]:
        return self._units

    @property
    def origin(self) -> nn.Module:
        network: nn.Module = self.network
        return network

    @property
    def head_names(self) -> set[str]:
        # timm says what the classifier of a network is called, or the two of a distilled one.
        known = (getattr(self.network, "pretrained_cfg", None) or {}).get("classifier", ())
        names = (known,) if isinstance(known, str) else tuple(known)
        return {key for key in self.network.state_dict() for name in names if key.startswith(f"{name}.")}

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the network and of its units, and return self."""
        super().train(mode)
        for unit in self._units:
            unit.training = mode
        return self

    def _make_units(self) -> Iterable[Unit]:
        raise NotImplementedError


class WrappedResNet(WrappedNetwork):
    """ResNet, ResNeXt, Wide ResNet, and those with squeeze-and-excitation."""

    @classmethod
    def fits(cls, network: Any) -> bool:
        """Return whether a network is a ResNet of the blocks that are known here."""
        if not isinstance(network, ResNet):
            return False
        stages: Any = (network.layer1, network.layer2, network.layer3, network.layer4)
        return all(type(block) in _LAST_ACTIVATION for stage in stages for block in stage)

    def _make_units(self) -> Iterator[Unit]:
        network = self.network
        for stage, blocks in enumerate((network.layer1, network.layer2, network.layer3, network.layer4)):
            for block in blocks:
                channels = block.conv1.in_channels
                if block.downsample is None:
                    yield BlockUnit(block, in_channels=channels, stage=stage)
                else:
                    activation = getattr(block, _LAST_ACTIVATION[type(block)])
                    yield OpenerUnit(block, in_channels=channels, stage=stage, activation=activation)

    def stem(self, images: Tensor) -> Tensor:
        network = self.network
        features: Tensor = network.maxpool(network.act1(network.bn1(network.conv1(images))))
        return features

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.network.forward_head(features)
        return logits


class WrappedConvNeXt(WrappedNetwork):
    """ConvNeXt and ConvNeXt V2; the downsampling between stages is the entry of the unit behind it."""

    def _make_units(self) -> Iterator[Unit]:
        for stage, part in enumerate(self.network.stages):
            entry = None if isinstance(part.downsample, nn.Identity) else part.downsample
            for block in part.blocks:
                channels = _in_channels(block.conv_dw if entry is None else entry)
                yield BlockUnit(block, in_channels=channels, stage=stage, entry=entry)
                entry = None

    def stem(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.stem(images)
        return features

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.network.forward_head(self.network.norm_pre(features))
        return logits


class WrappedTransformer(WrappedNetwork):
    """ViT and DeiT: features are tokens (B, N, C), and attention and MLP of a block are skipped together."""

    tokens = True

    def _make_units(self) -> Iterator[Unit]:
        for block in self.network.blocks:
            yield BlockUnit(block, in_channels=self.network.embed_dim, stage=0)

    def stem(self, images: Tensor) -> Tensor:
        network = self.network
        tokens = with_positions(network, network.patch_embed(images))
        features: Tensor = network.norm_pre(network.patch_drop(tokens))
        return features

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.network.forward_head(self.network.norm(features))
        return logits


class WrappedSublayers(WrappedTransformer):
    """ViT and DeiT with two units per block: attention and MLP."""

    def _make_units(self) -> Iterator[Unit]:
        for block in self.network.blocks:
            for parts in _SUBLAYERS:
                yield SublayerUnit(block, parts, in_channels=self.network.embed_dim, stage=0)


def _in_channels(module: nn.Module) -> int:
    return next(part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))


def _blend(skipped: Tensor, executed: Tensor, weights: Tensor) -> Tensor:
    """Return v * executed + (1 - v) * skipped under the (B, 2) weights (1 - v, v) of skip and execute."""
    v = weights[:, 1].to(executed.dtype).view(-1, *[1] * (executed.dim() - 1))
    return torch.lerp(skipped.to(executed.dtype), executed, v)
