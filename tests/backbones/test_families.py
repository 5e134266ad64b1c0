"""Families of timm and torchvision: wrapped, they compute what they did, and skip what is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from sidestep.backbones.wrapping import wrap_network
from sidestep.cost.macs import measure_cost
from sidestep.execution.execution import gathered
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import TableRouter, enliven, entered_rows

Size = tuple[int, int]
Build = Callable[[int, int, Size], nn.Module]


def of_timm(name: str, **settings: Any) -> Build:
    def build(num_classes: int, channels: int, size: Size) -> nn.Module:
        # Networks that are built for one size take that of the images.
        fixed = (
            {"img_size": size} if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False) else {}
        )
        made: nn.Module = timm.create_model(
            name, num_classes=num_classes, in_chans=channels, **fixed, **settings
        )
        return made

    return build


def of_torchvision(name: str, **settings: Any) -> Build:
    def build(num_classes: int, channels: int, size: Size) -> nn.Module:
        made: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **settings
        )
        first = next((key, each) for key, each in made.named_modules() if isinstance(each, nn.Conv2d))
        if channels != 3:
            key, each = first
            made.set_submodule(
                key,
                nn.Conv2d(channels, each.out_channels, each.kernel_size, each.stride, each.padding),  # type: ignore[arg-type]
            )
        return made

    return build


SWIN = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
# Family: how its smallest member is built, and how many units that has.
FAMILIES: dict[str, tuple[Build, int]] = {
    "EfficientNet": (of_timm("efficientnet_lite0"), 9),
    "EfficientNet V2": (of_timm("efficientnetv2_rw_t"), 34),
    "MobileNet V2": (of_timm("mobilenetv2_035"), 10),
    "MobileNet V3": (of_timm("mobilenetv3_small_050"), 7),
    "MobileNet V4": (of_timm("mobilenetv4_conv_small_035"), 10),
    "MNASNet": (of_timm("mnasnet_small"), 10),
    "HardCoRe-NAS": (of_timm("hardcorenas_a"), 5),
    "GhostNet": (of_timm("ghostnet_050"), 16),
    "RegNet X": (of_timm("regnetx_002"), 13),
    "RegNet Y": (of_timm("regnety_002"), 13),
    "Res2Net": (of_timm("res2net50_14w_8s"), 16),
    "ResNeSt": (of_timm("resnest14d"), 4),
    "SK-ResNet": (of_timm("skresnet18"), 8),
    "ECA-ResNet": (of_timm("ecaresnet26t"), 8),
    "ResNet V2": (of_timm("resnetv2_50"), 12),
    "NFNet": (of_timm("nf_regnet_b0"), 12),
    "Swin": (of_timm("swin_tiny_patch4_window7_224", **SWIN), 5),
    "Swin V2": (of_timm("swinv2_tiny_window8_256", **SWIN), 5),
    "PoolFormer": (of_timm("poolformer_s12"), 12),
    "InceptionNeXt": (of_timm("inception_next_atto"), 12),
    "FasterNet": (of_timm("fasternet_t0"), 13),
    "EdgeNeXt": (of_timm("edgenext_xx_small"), 12),
    "ConvMixer": (of_timm("convmixer_768_32"), 32),
    "MLP-Mixer": (of_timm("mixer_s32_224"), 8),
    "ResMLP": (of_timm("resmlp_12_224"), 12),
    "CoAtNet": (of_timm("coatnet_nano_rw_224"), 16),
    "MaxViT": (of_timm("maxvit_rmlp_pico_rw_256"), 33),
    "MobileViT": (of_timm("mobilevit_xxs"), 3),
    "torchvision ResNet": (of_torchvision("resnet18"), 8),
    "torchvision ResNeXt": (of_torchvision("resnext50_32x4d"), 16),
    "torchvision ConvNeXt": (of_torchvision("convnext_tiny"), 18),
    "torchvision MobileNet V2": (of_torchvision("mobilenet_v2"), 10),
    "torchvision MobileNet V3": (of_torchvision("mobilenet_v3_small"), 6),
    "torchvision EfficientNet": (of_torchvision("efficientnet_b0"), 9),
    "torchvision RegNet": (of_torchvision("regnet_y_400mf"), 16),
    "torchvision Swin": (of_torchvision("swin_t"), 12),
}
# What takes images in multiples of a window alone, and of one size.
SIDES: dict[str, tuple[Size, Size]] = {
    "Swin": ((64, 64), (64, 96)),
    "CoAtNet": ((64, 64), (64, 96)),
    "MaxViT": ((64, 64), (64, 128)),
}


def check(family: str, num_classes: int, channels: int, size: Size) -> None:
    """Fail unless a wrapped network computes what it did, and gathered what it does masked."""
    build, num_units = FAMILIES[family]
    torch.manual_seed(0)
    network = build(num_classes, channels, size).eval()
    enliven(network)
    for parameter in network.parameters():
        # Scales of branches, norms behind them and heads begin at zero or near it.
        if parameter.squeeze().dim() == 1 and float(parameter.detach().abs().max()) < 0.01:
            nn.init.uniform_(parameter, 0.3, 0.6)
        elif not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    images = torch.randn(4, channels, *size, generator=strategies.generator(1))
    backbone = wrap_network(network, size=size)
    assert len(backbone.units) == num_units
    table = torch.randint(0, 2, (4, num_units), generator=strategies.generator(2))
    routed = RoutedNetwork(backbone, TableRouter(table))
    blocks = [unit.origin for unit in backbone.units]
    with torch.no_grad():
        expected = network(images)
        scale = float(expected.abs().max())
        torch.testing.assert_close(backbone(images), expected, rtol=0, atol=1e-4 * scale)
        masked = routed(images).logits
        with entered_rows(blocks) as rows:
            actual = routed(images, execution=gathered).logits
    assert expected.shape == (4, num_classes)
    assert rows == table.sum(dim=0).tolist()
    torch.testing.assert_close(actual, masked, rtol=0, atol=1e-4 * scale)
    assert (actual - masked).abs().max() < 0.05 * (masked - expected).abs().max()
    cost = measure_cost(routed, size)
    assert bool((cost.options[:, 1] > cost.options[:, 0]).all())


QUICK = ["EfficientNet", "RegNet X", "torchvision ResNet"]


@pytest.mark.parametrize("family", QUICK)
def test_a_family_computes_what_it_did_and_gathers_what_it_masks(family: str) -> None:
    check(family, 3, 1, (64, 96))


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_does_for_other_classes_channels_and_shapes(family: str) -> None:
    square, oblong = SIDES.get(family, ((64, 64), (64, 96)))
    check(family, 1000, 3, square)
    check(family, 3, 1, oblong)
