"""Families of timm and torchvision with their smallest members wrapped: units, shares, and what changes.

With everything executed a wrapped network has to compute what it did, and gathered what it does masked.
Weights are drawn anew from a seed: nothing is downloaded, and no accuracy is claimed.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from pathlib import Path

import timm
import torch
import torchvision
from measure import publish, table
from torch import Tensor, nn

from sidestep.backbones.wrapping import wrap_network
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.execution.execution import gathered
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import Router

FAMILIES = {
    "ResNet": "timm/resnet10t",
    "ConvNeXt": "timm/convnext_atto",
    "ViT": "timm/vit_tiny_patch16_224",
    "DeiT": "timm/deit_tiny_patch16_224",
    "EfficientNet": "timm/efficientnet_lite0",
    "EfficientNet V2": "timm/efficientnetv2_rw_t",
    "MobileNet V2": "timm/mobilenetv2_035",
    "MobileNet V3": "timm/mobilenetv3_small_050",
    "MobileNet V4": "timm/mobilenetv4_conv_small_035",
    "MNASNet": "timm/mnasnet_small",
    "HardCoRe-NAS": "timm/hardcorenas_a",
    "GhostNet": "timm/ghostnet_050",
    "RegNet X": "timm/regnetx_002",
    "RegNet Y": "timm/regnety_002",
    "Res2Net": "timm/res2net50_14w_8s",
    "ResNeSt": "timm/resnest14d",
    "SK-ResNet": "timm/skresnet18",
    "ECA-ResNet": "timm/ecaresnet26t",
    "ResNet V2": "timm/resnetv2_50",
    "NFNet": "timm/nf_regnet_b0",
    "Swin": "timm/swin_tiny_patch4_window7_224",
    "Swin V2": "timm/swinv2_tiny_window8_256",
    "PoolFormer": "timm/poolformer_s12",
    "InceptionNeXt": "timm/inception_next_atto",
    "FasterNet": "timm/fasternet_t0",
    "EdgeNeXt": "timm/edgenext_xx_small",
    "ConvMixer": "timm/convmixer_768_32",
    "MLP-Mixer": "timm/mixer_s32_224",
    "ResMLP": "timm/resmlp_12_224",
    "CoAtNet": "timm/coatnet_nano_rw_224",
    "MaxViT": "timm/maxvit_rmlp_pico_rw_256",
    "MobileViT": "timm/mobilevit_xxs",
    "ResNet (torchvision)": "torchvision/resnet18",
    "ResNeXt (torchvision)": "torchvision/resnext50_32x4d",
    "ConvNeXt (torchvision)": "torchvision/convnext_tiny",
    "MobileNet V2 (torchvision)": "torchvision/mobilenet_v2",
    "MobileNet V3 (torchvision)": "torchvision/mobilenet_v3_small",
    "EfficientNet (torchvision)": "torchvision/efficientnet_b0",
    "RegNet (torchvision)": "torchvision/regnet_y_400mf",
    "Swin (torchvision)": "torchvision/swin_t",
    "VGG": "timm/vgg11",
    "DenseNet": "timm/densenet121",
    "PVT V2": "timm/pvt_v2_b0",
    "BEiT": "timm/beit_base_patch16_224",
    "RepViT": "timm/repvit_m0_9",
}
NAMES = ["family", "network", "units", "free", "option 1", "out of MACs", "executed", "gathered"]
LEGEND = (
    "`units`: residual blocks that can be skipped; `free`: those whose skipping computes nothing; "
    "`option 1`: the block's class; `out of MACs`: share of the network's MACs that is spared where every "
    "unit is skipped; `executed`: largest difference of logits to the original's with every unit executed, "
    "as a share of the largest logit; `gathered`: the same of gathered to masked execution under random "
    "decisions. Two images at the network's own size, 1,000 classes."
)


class Drawn(Router):
    """Decides by lot, the same for every call."""

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        draw = torch.rand(len(features), generator=torch.Generator().manual_seed(unit)) < 0.5
        return nn.functional.one_hot(draw.long(), 2).float(), state


def row(family: str, name: str) -> list[str]:
    """Return the cells of a network."""
    source, _, short = name.partition("/")
    torch.manual_seed(0)
    if source == "timm":
        network: nn.Module = timm.create_model(short).eval()
        size: tuple[int, int] = network.pretrained_cfg["input_size"][-2:]  # type: ignore[index, assignment]
    else:
        network, size = torchvision.models.get_model(short, weights=None).eval(), (224, 224)
    for parameter in network.parameters():
        # Scales of branches and heads that begin at zero, or near it, would hide what a block does.
        if parameter.squeeze().dim() == 1 and float(parameter.detach().abs().max()) < 0.01:
            nn.init.uniform_(parameter, 0.3, 0.6)
        elif not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    try:
        backbone = wrap_network(network)
    except RecipeError as error:
        return [family, f"`{name}`", "refused", "", f"{str(error)[:60]} ...", "", "", ""]
    routed = RoutedNetwork(backbone, Drawn())
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, executed = network(images), backbone(images)
        masked, fast = routed(images).logits, routed(images, execution=gathered).logits
    cost = measure_cost(RoutedNetwork(backbone), size)
    scale = float(expected.abs().max())
    free = int((cost.options[:, 0] == 0).sum())
    spared = float((cost.options[:, 1] - cost.options[:, 0]).sum()) / float(cost.full)
    kinds = sorted({type(unit.origin).__name__ for unit in backbone.units})
    differences = [float((a - b).abs().max()) / scale for a, b in ((executed, expected), (fast, masked))]
    return [
        family,
        f"`{name}`",
        str(len(backbone.units)),
        str(free),
        ", ".join(kinds),
        f"{spared:.0%}",
        *(f"{difference:.0e}" for difference in differences),
    ]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(FAMILIES), help="families (default: all)")
    parser.add_argument("--out", type=Path, help="file for the page, benchmarks/results/families/<date>.md")
    chosen = parser.parse_args()
    chosen.load = os.getloadavg()[0]
    rows = []
    for family in chosen.only:
        rows.append(row(family, FAMILIES[family]))
        print(" | ".join(rows[-1]), flush=True)
    publish("Families of networks that can be wrapped", [LEGEND, table(NAMES, rows)], chosen)


if __name__ == "__main__":
    main()
