"""ViTs and ConvNeXts as plans: the engine says what they say in PyTorch, whatever is decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from sidestep.backbones.wrapping import wrap_network
from sidestep.errors import ExportError
from sidestep.networks.attached_exits import attach_exits
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.networks.whole_network import WholeNetwork
from sidestep.plan.format import Plan
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.samplers import Sample
from sidestep.targets.torch_plan import TorchPlan
from tests import strategies
from tests.doubles import relational_router
from tests.marks import slow_where
from tests.plan.networks import NUM_CLASSES, lively, plan_of
from tests.reference.plan import run_plan

engine = pytest.importorskip("sidestep_engine")

SIZE = (32, 32)
VIT: dict[str, Any] = {"num_classes": NUM_CLASSES, "img_size": 32}
CONVNEXT: dict[str, Any] = {"num_classes": NUM_CLASSES}
# With LayerNorm in front of linear layers and of convolutions, both GELUs, a class token or means of the
# others, registers, LayerScale, positions in front of the class token or behind it, two tokens that classify.
NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "convnext": ("test_convnext", CONVNEXT, "blocks"),
    "convnext of convolutions": ("convnext_atto", CONVNEXT | {"depths": (1, 1, 2, 1)}, "blocks"),
    "vit": ("test_vit", VIT, "blocks"),
    "vit in sublayers": ("test_vit", VIT | {"depth": 2}, "sublayers"),
    "vit of means": ("test_vit2", VIT | {"depth": 2}, "blocks"),
    "vit of 16 pixels": ("vit_tiny_patch16_224", VIT | {"depth": 2, "patch_size": 8}, "blocks"),
    "deit3": ("deit3_small_patch16_224", VIT | {"depth": 2}, "blocks"),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT | {"depth": 2}, "blocks"),
}


def network_of(name: str, size: tuple[int, int] = SIZE) -> RoutedNetwork:
    """Return a lively network in evaluation mode."""
    model, settings, units = NETWORKS[name]
    torch.manual_seed(7)
    whole = timm.create_model(model, **settings)
    for key, parameter in whole.named_parameters():
        if key.endswith("gamma"):  # starts so small that blocks would do nothing
            nn.init.uniform_(parameter, -1.0, 1.0)
        elif key.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    network = RoutedNetwork(wrap_network(whole, units), None)
    network.router = relational_router(network.backbone)
    lively(network, strategies.images(16, 0, size=size[0]))
    return network


def masked(network: DynamicNetwork, images: Tensor, options: Tensor | None = None) -> Any:
    """Return what a network says, on given paths or on its own ones."""
    if options is None:
        with torch.no_grad():
            return network(images)
    rows = iter(nn.functional.one_hot(options.T, 2).float())

    def forced(logits: Tensor) -> Sample:
        weights = next(rows)
        return Sample(weights, weights)

    with torch.no_grad():
        return network(images, sampler=forced)


def assert_same(plan: Plan, network: DynamicNetwork, images: Tensor, num_paths: int = 2) -> None:
    """Assert that the engine, PyTorch and the literal reader run the plan as the network."""
    loaded = engine.Engine(engine.parse_plan(plan.as_bytes()), precision="float32", num_threads=2)
    output = masked(network, images)
    paths, scale = output.decisions.paths(), output.logits.abs().max()
    assert len(paths.unique(dim=0)) >= num_paths
    for count in (len(images), 3, 1):
        said = loaded(images[:count].numpy())
        assert said.options.tolist() == paths[:count].tolist()
        close(said.logits, output.logits[:count], scale)
    close(TorchPlan(plan)(images).logits, output.logits, scale)
    literal, decisions, _ = run_plan(plan.document, plan.tensors, images[0])
    assert decisions == paths[0].tolist()
    close(literal, output.logits[0], scale)
    draw = torch.Generator().manual_seed(3)
    for options in (torch.ones_like(paths), 0 * paths, torch.randint(2, paths.shape, generator=draw)):
        expected = masked(network, images, options).logits
        exits = np.zeros(len(images), np.int64)
        close(
            loaded(images.numpy(), options=options.numpy(), exits=exits).logits,
            expected,
            expected.abs().max(),
        )


def close(said: Any, expected: Tensor, scale: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(said) / scale, expected / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", slow_where(lambda name: name in ("deit3", "distilled"), NETWORKS))
def test_a_plan_is_the_masked_network(name: str) -> None:
    network = network_of(name)
    plan = plan_of(network, SIZE)
    assert plan.document["version"] == 4
    assert_same(plan, network, strategies.images(16, 0, size=SIZE[0]))


def test_executed_blocks_are_a_few_operations() -> None:
    for name, wanted in (
        ("convnext", ["conv", "layer_norm", "conv", "conv"]),
        ("convnext of convolutions", ["conv", "layer_norm", "conv", "conv"]),
        ("vit of means", ["layer_norm", "conv", "attention", "conv", "layer_norm", "conv", "conv"]),
    ):
        plan = plan_of(network_of(name), SIZE)
        skip, execute = next(step["options"] for step in plan.steps if "choose" in step)
        assert not skip["ops"] and [op["op"] for op in execute["ops"]] == wanted
        *_, first, last = execute["ops"]
        assert first["activation"].startswith("gelu") and last["residual"] is not None


def test_convnexts_take_other_sizes_and_vits_refuse_them() -> None:
    network = network_of("convnext")
    plan = plan_of(network, SIZE)
    loaded = engine.Engine(engine.parse_plan(plan.as_bytes()), precision="float32", num_threads=2)
    images = torch.randn(3, 3, 41, 70, generator=torch.Generator().manual_seed(1))
    expected = masked(network, images).logits
    for count in (3, 1):
        close(loaded(images[:count].numpy()).logits, expected[:count], expected.abs().max())
    vit = engine.Engine(engine.parse_plan(plan_of(network_of("vit in sublayers"), SIZE).as_bytes()))
    with pytest.raises(
        engine.PlanError, match=r"op tokens .* rows of weights for the pixels of a map of 64 x 4 x 3"
    ):
        vit(np.zeros((1, 3, 64, 48), np.float32))


def test_images_leave_at_exits_of_tokens() -> None:
    """Their heads have a LayerNorm behind the mean over all tokens."""
    network = attach_exits(network_of("vit of means"), ["blocks.0"], num_classes=NUM_CLASSES)
    images = strategies.images(16, 0, size=SIZE[0])
    lively(network, images)
    with torch.no_grad():
        largest = network(images).exit_logits[0].softmax(dim=1).amax(dim=1)
        rule = ExitRule(thresholds=[float(largest.sort().values[7:9].mean())], criterion="confidence")
        output = network(images, rule=rule)
    exits = output.decisions.exits.argmax(dim=1)
    assert exits.sum() == 8
    plan = plan_of(network, SIZE, rule)
    said = engine.Engine(engine.parse_plan(plan.as_bytes()), precision="float32")(images.numpy())
    assert said.exits.tolist() == exits.tolist()
    close(said.logits, output.logits, output.logits.abs().max())


def test_whole_networks_of_torchvision_have_plans() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(3)
    network = torchvision.models.convnext_tiny(num_classes=3).eval()
    images = torch.randn(3, 3, 40, 64)
    plan = plan_of(WholeNetwork(network), (40, 64))
    loaded = engine.Engine(engine.parse_plan(plan.as_bytes()), precision="float32")
    with torch.no_grad():
        expected = network(images)
    close(loaded(images.numpy()).logits, expected, expected.abs().max())


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("convnextv2_atto", {"depths": (1, 1, 1, 1)}, r"uses aten\.linalg_vector_norm\.default on maps"),
        ("test_vit4", {"img_size": 32}, r"uses aten\..* on maps"),
        ("test_vit3", {"img_size": 32}, "attends with a mask or to constants"),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)},
            r"maps?\b",
        ),
    ],
)
def test_what_plans_lack_is_named(model: str, settings: dict[str, Any], message: str) -> None:
    network = WholeNetwork(timm.create_model(model, num_classes=NUM_CLASSES, **settings).eval())
    size = (settings.get("img_size", 32),) * 2
    with pytest.raises(ExportError, match=message):
        plan_of(network, size)
