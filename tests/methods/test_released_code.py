"""What networks and routers are made of and start from, beside the released codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.layers.shortcut import PoolShortcut
from sidestep.methods import METHODS
from sidestep.methods.blockdrop import BLOCKDROP, BlockDropConfig
from sidestep.methods.codinet import CODINET, CoDiNetConfig
from sidestep.networks.models import build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.gate import GateConfig, GateRouter
from sidestep.routing.policy import PolicyRouter
from tests.doubles import model_config


def backbone_of(name: str, **settings: Any) -> Backbone:
    with torch.device("meta"):
        return build_backbone(model_config(name, **settings), 10)


def policy_of(backbone: Backbone, settings: BlockDropConfig) -> nn.Module:
    router = BLOCKDROP.router(backbone, settings)
    assert isinstance(router, PolicyRouter)
    return router.network


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The last number: actions, one per block of ResNet-32, ResNet-110 and ResNet-101.
@pytest.mark.parametrize(
    ("model", "settings", "parameters"),
    [
        ("cifar_resnet110", {}, 78_150),
        ("cifar_resnet32", {}, 78_150 - 39 * 65),
        ("cifar_resnet110", {"policy_shortcut": "A"}, 78_150),
        ("cifar_resnet110", {"policy_shortcut": "B"}, 80_902),
        ("resnet101", {"policy_depth": 10, "shrink": 2}, 4_905_792 + 33 * 513),
    ],
)
def test_blockdrops_policy_has_the_parameters_of_the_released_one(
    model: str, settings: dict[str, Any], parameters: int
) -> None:
    assert num_parameters(policy_of(backbone_of(model), BlockDropConfig(**settings))) == parameters


def test_blockdrops_policy_pools_and_appends_zeros() -> None:
    policy = policy_of(backbone_of("cifar_resnet8"), BlockDropConfig()).eval()
    shortcuts = [module for module in policy.modules() if isinstance(module, PoolShortcut)]
    x = torch.rand(2, 16, 8, 8)
    pooled = nn.functional.avg_pool2d(x, 2)
    assert torch.equal(shortcuts[0](x), torch.cat([pooled, 0 * pooled], dim=1))
    assert len(shortcuts) == 2


def test_blockdrop_on_photographs_looks_at_half_their_size_and_leaves_openers_as_they_are() -> None:
    backbone = build_backbone(model_config("resnet50", skip="linear"), 10).eval()
    x, opener = torch.rand(2, 256, 8, 8), backbone.units[3]
    assert torch.equal(opener.skip(x), opener.downsample(x))  # type: ignore[operator]  # a projection
    assert bool((opener.skip(x) < 0).any())
    router = BLOCKDROP.router(backbone, BlockDropConfig(policy_depth=10, shrink=2))
    cost = measure_cost(RoutedNetwork(backbone, router).to("meta").eval(), (224, 224))
    stem, actions = 56 * 56 * 64 * 3 * 49, 16 * 512
    stages = 28 * 28 * 2 * 64 * 64 * 9
    for width, side in ((128, 14), (256, 7), (512, 4)):
        stages += side * side * width * (width // 2 * 9 + width * 9 + width // 2)
    assert cost.routers.sum() == stem + stages + actions == 235_950_080


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_depth": 9}, "policy_depth must be 6n . 2 for 32x32 images or 10 for photographs, got 9"),
        ({"policy_depth": 10, "policy_shortcut": "B"}, "policy_shortcut has no effect with policy_depth 10"),
    ],
)
def test_a_policy_that_there_is_not_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        BlockDropConfig(**settings)


def deviation(tensors: list[Tensor]) -> float:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).std().item()


def weights(router: nn.Module, *, convolutions: bool = False) -> Callable[[str], list[Tensor]]:
    kind = nn.Conv2d if convolutions else nn.Linear
    named = [(name, module.weight) for name, module in router.named_modules() if isinstance(module, kind)]
    return lambda part: [weight for name, weight in named if name.startswith(part)]


@pytest.mark.parametrize("gate", ["feedforward1", "feedforward2"])
def test_skipnets_convolutional_gates_start_as_released(gate: str) -> None:
    torch.manual_seed(0)
    method = METHODS["skipnet"]
    router = method.router(backbone_of("cifar_resnet110"), method.settings(gate=gate))
    assert router is not None
    assert deviation(weights(router)("decide")) == pytest.approx(1.0, rel=0.05)
    for layer in weights(router, convolutions=True)("features")[::8]:
        assert deviation([layer]) == pytest.approx((2 / (9 * layer.shape[0])) ** 0.5, rel=0.1)
    biases = torch.cat([module.bias for module in router.decide])
    assert 0 < biases.detach().abs().max().item() <= 0.25


def test_skipnets_embeddings_start_as_released_and_the_rest_by_xaviers_rule() -> None:
    torch.manual_seed(0)
    method = METHODS["skipnet"]
    router = method.router(backbone_of("cifar_resnet110"), method.settings())
    assert router is not None
    assert deviation(weights(router)("embed")) == pytest.approx(0.2**0.5, rel=0.03)
    assert 0 < max(embed.bias.detach().abs().max().item() for embed in router.embed) <= 0.25
    assert deviation([router.lstm.weight_ih]) == pytest.approx((2 / 50) ** 0.5, rel=0.15)
    assert not router.lstm.bias_ih.any() and not router.lstm.bias_hh.any() and not router.decide.bias.any()


def test_codinets_gates_start_by_kaimings_rule() -> None:
    torch.manual_seed(0)
    router = CODINET.router(backbone_of("cifar_resnet110"), CoDiNetConfig(num_units=30))
    assert isinstance(router, GateRouter)
    for width, first in ((16, 0), (64, 37)):
        layers = slice(first, first + 17)
        inner = [module.weight for module in router.inner.modules() if isinstance(module, nn.Linear)][layers]
        assert {weight.shape[1] for weight in inner} == {width}
        assert deviation(inner) == pytest.approx((2 / width) ** 0.5, rel=0.05)
        decide = [module.weight for module in router.decide if isinstance(module, nn.Linear)][layers]
        assert deviation(decide) == pytest.approx((2 / width) ** 0.5, rel=0.1)
    biased = CoDiNetConfig(num_units=30, gate=GateConfig(hidden=None, batch_norm=False, bias=(0.1, 2.0)))
    router = CODINET.router(backbone_of("cifar_resnet110"), biased)
    assert isinstance(router, GateRouter)
    assert deviation([module.weight for module in router.decide if isinstance(module, nn.Linear)]) < 0.002


def test_blockdrops_policy_starts_as_released() -> None:
    torch.manual_seed(0)
    policy = policy_of(backbone_of("cifar_resnet110"), BlockDropConfig())
    for layer in weights(policy, convolutions=True)("")[3:]:
        assert deviation([layer]) == pytest.approx((2 / (9 * layer.shape[0])) ** 0.5, rel=0.05)
    assert deviation(weights(policy)("fc")) == pytest.approx(1 / (8 * 3**0.5), rel=0.05)


def test_convolutions_for_32x32_images_start_by_fan_in_and_not_as_pytorchs() -> None:
    torch.manual_seed(0)
    theirs: list[Tensor] = []
    ours: list[Tensor] = []
    network = build_backbone(model_config("cifar_resnet20", shortcut="B"), 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 64:
            ours.append(module.weight)
            theirs.append(nn.Conv2d(64, 64, 3, bias=False).weight)
    assert deviation(ours) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    # As docs/methods/convnet_aig.md says of ConvNet-AIG's.
    assert deviation(theirs) / deviation(ours) == pytest.approx(0.41, abs=0.01)
