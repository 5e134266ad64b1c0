"""RANet (Yang et al. 2020): dense sub-networks of rising resolution, each building on the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, cast

from torch import Tensor, nn

from sidestep.errors import RecipeError
from sidestep.layers.dense import DenseBlock, DenseLayer, FusionBlock, FusionLayer, bottleneck, conv_basic
from sidestep.networks.exit_network import ExitNetwork
from sidestep.networks.multi_scale import (
    FirstLayers,
    Stem,
    check_choice,
    check_counts,
    check_factors,
    check_reduction,
    initialise,
    make_heads,
)

RaNetStepMode = Literal["even", "lg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaNetSettings:
    """Settings of a RANet. Lists are given for the sub-network of the lowest resolution first.

    Args:
        scale_list: scale s of every sub-network: 1 is the lowest resolution and each further one doubles it;
            neighbours may be equal.
        blocks: blocks of the first sub-network, each of which ends in an exit.
        block_step: blocks that every sub-network has more than the one before; these end in exits.
        step: layers of every block, or of the first one with stepmode lg.
        stepmode: "even" for `step` layers in every block, "lg" for step * j in block j.
        channels: of the first layer, before the sub-network's factor.
        growth: channels that a layer appends, before the factor.
        gr_factor: by which channels and growth of every sub-network are multiplied.
        bn_factor: width of every sub-network's bottlenecks as a multiple of what they append.
        reduction: share of the channels that transitions keep.
        compress: share of a fusion layer's growth that comes from the sub-network before, and of its channels
            that a fusion block's end adds from there.
        stem: "cifar" for small images, "imagenet" for photographs; see `FirstLayers` and `make_heads`.

    Raises:
        RecipeError: naming the first setting that is wrong.
    """

    scale_list: tuple[int, ...] = (1, 2, 3)
    blocks: int = 2
    block_step: int = 2
    step: int = 4
    stepmode: RaNetStepMode = "even"
    channels: int = 16
    growth: int = 6
    gr_factor: tuple[int, ...] = (4, 2, 1)
    bn_factor: tuple[int, ...] = (4, 2, 1)
    reduction: float = 0.5
    compress: float = 0.25
    stem: Stem = "cifar"

    def __post_init__(self) -> None:
        scales = self.scale_list
        if scales[:1] != (1,) or any(b - a not in (0, 1) for a, b in pairwise(scales)):
            raise RecipeError(
                "scale_list must begin with 1, and every entry must equal the one before or be one more, "
                f"got {list(scales)}; try 1, 2, 3"
            )
        check_counts(blocks=self.blocks, block_step=self.block_step, channels=self.channels)
        check_counts(growth=self.growth)
        if self.step < 2:
            raise RecipeError(f"step must be at least 2, got {self.step}; the paper uses 2, 4 and 8")
        check_choice("stepmode", self.stepmode, RaNetStepMode)
        check_choice("stem", self.stem, Stem)
        of = f"each of the {len(scales)} sub-networks in scale_list"
        check_factors("gr_factor", self.gr_factor, len(scales), of)
        check_factors("bn_factor", self.bn_factor, len(scales), of)
        check_reduction(self.reduction, self.step * self.growth * min(self.gr_factor) + 1)
        self._check_compress()

    def _check_compress(self) -> None:
        grown = [self.growth * factor for factor in self.gr_factor[1:]]
        if any(not 1 <= int(self.compress * channels) < channels for channels in grown):
            raise RecipeError(
                "compress must leave every fusion layer at least one channel from the sub-network before and "
                f"one from its own, got {self.compress} of {' and '.join(map(str, grown))} channels; "
                "the paper uses 0.25"
            )

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """Return the number of blocks of every sub-network."""
        return tuple(self.blocks + self.block_step * index for index in range(len(self.scale_list)))

    @property
    def num_fused(self) -> tuple[int, ...]:
        """Return the number of fusion blocks of every sub-network: those that the one before has too."""
        return (0, *self.num_blocks[:-1])

    def num_layers(self, block: int) -> int:
        """Return the number of layers of a block, counted from 1."""
        return self.step if self.stepmode == "even" else self.step * block


@dataclass(frozen=True, slots=True, kw_only=True)
class RaNetConfig(RaNetSettings):
    """Settings of a RANet for a number of classes.

    Args:
        num_classes: classes of every exit.
        in_channels: of the images.
    """

    num_classes: int = 10
    in_channels: int = 3

    def __post_init__(self) -> None:
        # Not by super(), which does not find a class that slots have made anew.
        RaNetSettings.__post_init__(self)
        check_counts(num_classes=self.num_classes, in_channels=self.in_channels)


class RaNetState(NamedTuple):
    """Where a RANet stands.

    inputs: (B, C, H, W) first-layer maps of the sub-networks that have not begun, the coarsest first.
    features: of every block so far of the sub-network that runs, its input and what came out of its layers.
    x: (B, C, H, W) output of the last block.
    """

    inputs: tuple[Tensor, ...]
    features: tuple[tuple[Tensor, ...], ...]
    x: Tensor


class RaNet(ExitNetwork):
    """A resolution adaptive network: coarse sub-networks answer first, finer ones build on their features.

    The blocks that a sub-network has in common with the one before are fusion blocks, whose layers read that
    one's features; those that it has more are dense blocks, each with an exit (section 3.2). All maps of the
    first layer are needed for the first exit, since the coarsest is made from the finest.

    Features are kept as long as they are read: those of one sub-network, and of the last one none.
    """

    def __init__(self, config: RaNetConfig) -> None:
        plan = _plan(config)
        super().__init__(num_exits=len(plan))
        self.config = config
        self._plan = plan
        self.first = _make_first_layers(config)
        self.networks = nn.ModuleList()
        exits: list[int] = []
        widths: list[_Widths] = []
        for index, fused in enumerate(config.num_fused):
            blocks, widths = _make_network(config, index, widths)
            self.networks.append(nn.ModuleList(blocks))
            exits.extend(width.output for width in widths[fused:])
        self.heads = make_heads(config.stem, exits, config.num_classes)
        # The first layer keeps PyTorch's defaults, as in the released code.
        initialise(self.networks, self.heads)

    def begin(self, images: Tensor) -> RaNetState:
        """Return the state in front of the first sub-network."""
        maps: tuple[Tensor, ...] = self.first(images)
        return RaNetState(inputs=maps[::-1], features=(), x=maps[-1])

    def advance(self, index: int, state: RaNetState) -> RaNetState:
        """Return the state behind an exit's block; fusion blocks come with their sub-network's first exit."""
        network, first, end = self._plan[index]
        inputs, lows, x = state
        kept = lows
        if first == 0:
            (x, *rest), kept = inputs, ()
            inputs = tuple(rest)
        blocks = cast(nn.ModuleList, self.networks[network])
        for number in range(first, end):
            block = blocks[number]
            x, features = block(x, lows[number] if number < len(lows) else ())
            # There is no one behind the last sub-network to read them.
            kept = (*kept, features) if inputs else ()
        return RaNetState(inputs=inputs, features=kept, x=x)

    def classify(self, index: int, state: RaNetState) -> Tensor:
        logits: Tensor = self.heads[index](state.x)
        return logits


def _plan(config: RaNetConfig) -> list[tuple[int, int, int]]:
    """Return the sub-network of every exit, and the range of that one's blocks since the exit before."""
    return [
        (network, 0 if block == fused else block, block + 1)
        for network, fused in enumerate(config.num_fused)
        for block in range(fused, config.num_blocks[network])
    ]


def _make_first_layers(config: RaNetConfig) -> FirstLayers:
    scales = config.scale_list[::-1]
    strides = [1 if finer == coarser else 2 for finer, coarser in pairwise(scales)]
    channels = [config.channels * factor for factor in config.gr_factor[::-1]]
    return FirstLayers(config.stem, channels, strides, in_channels=config.in_channels)


class _Widths(NamedTuple):
    """Channels of a block: at its input and behind every layer, of what it concatenates, of its output."""

    features: list[int]
    concatenated: int
    output: int


def _make_network(
    config: RaNetConfig, index: int, before: Sequence[_Widths]
) -> tuple[list[nn.Module], list[_Widths]]:
    """Return the blocks of a sub-network and their channels, given those of the sub-network before."""
    scale, num_blocks = config.scale_list[index], config.num_blocks[index]
    # As many blocks halve the maps as it takes to end at the lowest resolution.
    halving = set(config.num_fused[: index + 1][1 - scale :]) if scale > 1 else set()
    mixing = {part * num_blocks // scale for part in range(1, scale)}
    channels = config.channels * config.gr_factor[index]
    blocks: list[nn.Module] = []
    widths: list[_Widths] = []
    for number in range(1, num_blocks + 1):
        low = before[number - 1] if number <= len(before) else None
        width = _widths(config, index, number, channels, fuses=low is not None, mixes=number in mixing)
        transition = conv_basic(width.concatenated, width.output, 1) if number in mixing else None
        if low is None:
            blocks.append(DenseBlock(_dense_layers(config, index, width), transition))
        else:
            layers = _fusion_layers(config, index, width, low, halves=number in halving)
            end = conv_basic(low.features[-1], width.concatenated - width.features[-1], 1)
            blocks.append(FusionBlock(layers, end, transition))
        widths.append(width)
        channels = width.output
    return blocks, widths


def _widths(
    config: RaNetConfig, index: int, number: int, channels: int, *, fuses: bool, mixes: bool
) -> _Widths:
    """Return the channels of block `number`, counted from 1, with `channels` at its input."""
    growth = config.growth * config.gr_factor[index]
    features = [channels + growth * layer for layer in range(config.num_layers(number) + 1)]
    concatenated = features[-1] + (int(config.compress * features[-1]) if fuses else 0)
    output = int(config.reduction * concatenated) if mixes else concatenated
    return _Widths(features, concatenated, output)


def _dense_layers(config: RaNetConfig, index: int, width: _Widths) -> list[DenseLayer]:
    growth, factor = config.growth * config.gr_factor[index], config.bn_factor[index]
    return [DenseLayer(bottleneck(inputs, growth, width=factor)) for inputs in width.features[:-1]]


def _fusion_layers(
    config: RaNetConfig, index: int, width: _Widths, low: _Widths, *, halves: bool
) -> list[FusionLayer]:
    growth = config.growth * config.gr_factor[index]
    from_low = int(config.compress * growth)
    low_factor, factor = config.bn_factor[index - 1 : index + 1]
    strides = [1] * (len(width.features) - 2) + [2 if halves else 1]
    return [
        FusionLayer(
            own=bottleneck(inputs, growth - from_low, width=factor, stride=stride),
            low=bottleneck(low_inputs, from_low, width=low_factor),
        )
        for inputs, low_inputs, stride in zip(width.features[:-1], low.features[:-1], strides, strict=True)
    ]
