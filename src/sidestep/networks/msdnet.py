"""MSDNet (Huang et al. 2018): a dense network that keeps several scales, with exits on the coarsest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Literal, cast

from torch import Tensor, nn

from sidestep.errors import RecipeError
from sidestep.layers.dense import DenseLayer, bottleneck, conv_basic
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

MsdNetStepMode = Literal["even", "lin_grow"]
Prune = Literal["max", "min"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MsdNetSettings:
    """Settings of an MSDNet. Factors are given for the finest scale first.

    Args:
        num_scales: number S of scales; each has half the height and width of the one before.
        blocks: number of blocks, each of which ends in an exit.
        base: layers of the first block.
        step: layers of every later block, or their growth with stepmode lin_grow.
        stepmode: "even" for `step` layers in every later block, "lin_grow" for step * i + 1 in block i.
        prune: when fine scales end. "max" divides the layers into S equal parts, each with one scale less;
            "min" ends a scale where no exit needs it any more.
        channels: of the first layer's finest map, before its factor.
        growth: channels that a layer appends to its finest scale, before the factor.
        gr_factor: by which channels and growth of every scale are multiplied.
        bn_factor: width of every scale's bottlenecks as a multiple of what they append; None for 3x3
            convolutions without bottlenecks.
        reduction: share of the channels that transitions keep.
        stem: "cifar" for small images, "imagenet" for photographs; see `FirstLayers` and `make_heads`.

    Raises:
        RecipeError: naming the first setting that is wrong.
    """

    num_scales: int = 3
    blocks: int = 10
    base: int = 4
    step: int = 2
    stepmode: MsdNetStepMode = "even"
    prune: Prune = "max"
    channels: int = 16
    growth: int = 6
    gr_factor: tuple[int, ...] = (1, 2, 4)
    bn_factor: tuple[int, ...] | None = (1, 2, 4)
    reduction: float = 0.5
    stem: Stem = "cifar"

    def __post_init__(self) -> None:
        check_counts(num_scales=self.num_scales, blocks=self.blocks, base=self.base, step=self.step)
        check_counts(channels=self.channels, growth=self.growth)
        check_choice("stepmode", self.stepmode, MsdNetStepMode)
        check_choice("prune", self.prune, Prune)
        check_choice("stem", self.stem, Stem)
        of = f"each of the {self.num_scales} scales"
        check_factors("gr_factor", self.gr_factor, self.num_scales, of)
        if self.bn_factor is not None:
            check_factors("bn_factor", self.bn_factor, self.num_scales, of)
        if any(self.growth * factor < 2 for factor in self.gr_factor[1:]):
            raise RecipeError(
                "growth times gr_factor must be at least 2 at all scales but the finest, where half of that "
                f"comes from the finer scale, got {self.growth} times {list(self.gr_factor)}; raise growth"
            )
        check_reduction(self.reduction, self.growth + 1)

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """Return the number of layers in front of every exit."""
        later = range(1, self.blocks)
        steps = [self.step if self.stepmode == "even" else self.step * i + 1 for i in later]
        return tuple(accumulate([self.base, *steps]))

    @property
    def last_layers(self) -> tuple[int, ...]:
        """Return the last layer of every scale that an exit needs, counted from 1; below 1 for none."""
        layers, scales = self.exit_layers[-1], self.num_scales
        needed = [layers - scales + scale for scale in range(1, scales + 1)]
        if self.prune == "min":
            return tuple(needed)
        interval = ceil(layers / scales)
        return tuple(min(last, interval * scale) for scale, last in enumerate(needed, start=1))

    @property
    def transition_layers(self) -> frozenset[int]:
        """Return the layers, counted from 1, behind which all live scales have a transition."""
        layers = self.exit_layers[-1]
        if self.prune == "min":
            return frozenset({layers // 3, 2 * layers // 3})
        interval = ceil(layers / self.num_scales)
        return frozenset(interval * scale + 1 for scale in range(1, self.num_scales))


@dataclass(frozen=True, slots=True, kw_only=True)
class MsdNetConfig(MsdNetSettings):
    """Settings of an MSDNet for a number of classes.

    Args:
        num_classes: classes of every exit.
        in_channels: of the images.
    """

    num_classes: int = 10
    in_channels: int = 3

    def __post_init__(self) -> None:
        # Not by super(), which does not find a class that slots have made anew.
        MsdNetSettings.__post_init__(self)
        check_counts(num_classes=self.num_classes, in_channels=self.in_channels)


class MsdNet(ExitNetwork):
    """A multi-scale dense network; its state is the newest features of every scale that is needed again.

    Layer t of scale i reads layers t - 1 of the scales i and i - 1. So an exit behind layer T needs scale S
    up to layer T, scale S - 1 up to T - 1 and so on, and no more is computed: layer t - (S - i) of every
    scale i in one wave t, the finest scale first, so that each finds the next finer one where it has to be.

    The released code computes all scales of a layer at once, and so are the exits priced in its tables.
    Departures from it: layers of fine scales that no exit reads are not built (none in the published
    configurations), and weights are initialised as in the Lua original, which the PyTorch code forgets.
    """

    def __init__(self, config: MsdNetConfig) -> None:
        super().__init__(num_exits=config.blocks)
        self.config = config
        self._exit_layers, self._last_layers = config.exit_layers, config.last_layers
        widths = [config.channels * factor for factor in config.gr_factor]
        self.first = FirstLayers(
            config.stem, widths, [2] * (config.num_scales - 1), in_channels=config.in_channels
        )
        self.scales, channels = _make_scales(config)
        inputs = [channels[layer] * config.gr_factor[-1] for layer in config.exit_layers]
        self.heads = make_heads(config.stem, inputs, config.num_classes)
        initialise(self)

    def begin(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the first layer's (B, C, H, W) map of every scale, the finest first."""
        maps: tuple[Tensor, ...] = self.first(images)
        return maps

    def advance(self, index: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the newest features of every scale that this exit or a later one reads, the finest first."""
        ends, last_layers = self._exit_layers, self._last_layers
        coarsest = self.config.num_scales - 1
        # Scales that are over have left the state at its front.
        newest = dict(zip(range(coarsest + 1 - len(state), coarsest + 1), state, strict=True))
        for wave in range(ends[index - 1] + 1 if index else 1, ends[index] + 1):
            for scale in newest:
                layer = wave - (coarsest - scale)
                if 1 <= layer <= last_layers[scale]:
                    modules = cast(nn.ModuleList, self.scales[scale])
                    newest[scale] = modules[layer - 1](newest[scale], newest.get(scale - 1))
        return tuple(
            x
            for scale, x in newest.items()
            if scale == coarsest or ends[index] < last_layers[scale] + coarsest - scale
        )

    def classify(self, index: int, state: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.heads[index](state[-1])
        return logits


def _make_scales(config: MsdNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Return the layers of every scale, and the channels behind every layer before their factor."""
    channels = [config.channels]
    for layer in range(1, config.exit_layers[-1] + 1):
        grown = channels[-1] + config.growth
        channels.append(int(config.reduction * grown) if layer in config.transition_layers else grown)
    scales = [
        nn.ModuleList(
            _make_layer(config, scale, layer, inputs=channels[layer - 1], outputs=channels[layer])
            for layer in range(1, last + 1)
        )
        for scale, last in enumerate(config.last_layers)
    ]
    return nn.ModuleList(scales), channels


def _make_layer(config: MsdNetConfig, scale: int, layer: int, *, inputs: int, outputs: int) -> DenseLayer:
    """Return a layer, counted from 1, of a scale, counted from 0.

    A scale reads the next finer one up to that one's last layer: where the finer scale is dropped, it is read
    once more. Of an odd growth the larger half comes from the scale itself.
    """
    factors, widths = config.gr_factor, config.bn_factor or [None] * config.num_scales
    factor, growth, down = factors[scale], config.growth * factors[scale], None
    grown = inputs * factor + growth
    if scale and layer <= config.last_layers[scale - 1] + 1:
        half = growth // 2
        down = bottleneck(inputs * factors[scale - 1], half, width=widths[scale - 1], stride=2)
        growth -= half
    own = bottleneck(inputs * factor, growth, width=widths[scale])
    mixed = layer in config.transition_layers
    transition = conv_basic(grown, outputs * factor, 1) if mixed else None
    return DenseLayer(own, down=down, transition=transition)
