"""wrap(): a network of timm made dynamic, with the settings and errors of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import sidestep
from sidestep.backbones.static_weights import load_weights
from sidestep.backbones.wrapping import wrap_network
from sidestep.errors import RecipeError
from sidestep.methods import METHODS
from sidestep.routing.relational import RelationalRouter
from sidestep.routing.router import ConstantRouter
from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests import strategies
from tests.doubles import TableRouter

NETWORKS: dict[str, dict[str, Any]] = {
    "convnext_atto": {},
    "resnet10t": {},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 3},
}


def network(name: str = "test_convnext", **settings: Any) -> nn.Module:
    made: nn.Module = timm.create_model(name, num_classes=5, **settings)
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_routed_with_one_decision_per_block(name: str) -> None:
    dynamic = sidestep.wrap(network(name, **NETWORKS[name]).eval(), router={"dim": 8, "gamma": 0.25})
    assert isinstance(dynamic, sidestep.RoutedNetwork)
    assert isinstance(dynamic.router, RelationalRouter)
    assert (dynamic.router.config.dim, dynamic.router.config.gamma) == (8, 0.25)
    images = strategies.images(3, 0, size=32)
    with torch.inference_mode():
        masked, gathered = dynamic(images), dynamic(images, execution=sidestep.gathered)
    assert masked.logits.shape == (3, 5)
    assert masked.decisions.weights.shape == (3, len(dynamic.backbone.units), 2)
    torch.testing.assert_close(gathered.logits, masked.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"method": "fixed_path", "path": "1 1 1 1 1"}, {"method": "static"}])
def test_every_method_can_be_named(settings: dict[str, Any]) -> None:
    model, images = network("convnext_atto", depths=(1, 1, 2, 1)).eval(), strategies.images(2, 0, size=32)
    dynamic = sidestep.wrap(model, **settings)
    assert isinstance(dynamic.router, ConstantRouter) is (settings["method"] == "fixed_path")
    with torch.no_grad():
        torch.testing.assert_close(dynamic(images).logits, model(images), rtol=1e-5, atol=1e-5)


def test_sublayers_of_a_transformer_are_skipped_apart() -> None:
    model = network("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    dynamic, images = sidestep.wrap(model, units="sublayers"), strategies.images(4, 0, size=32)
    router = TableRouter(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1]]))
    rows: list[int] = []
    with torch.inference_mode():
        masked = dynamic(images, router=router)
        for block in model.blocks:
            for part in (block.attn, block.mlp):
                part.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
        gathered = dynamic(images, router=router, execution=sidestep.gathered)
    assert rows == [3, 2, 3]
    torch.testing.assert_close(gathered.logits, masked.logits, rtol=1e-5, atol=1e-5)


def test_weights_are_shared_and_the_original_still_runs() -> None:
    model = network().eval()
    images = strategies.images(2, 0, size=32)
    before, names = model(images), list(model.state_dict())
    dynamic = sidestep.wrap(model)
    assert torch.equal(model(images), before)
    assert list(model.state_dict()) == names
    nn.init.zeros_(model.head.fc.weight)
    nn.init.ones_(model.head.fc.bias)
    assert bool((dynamic(images).logits == 1).all())


@pytest.mark.parametrize("training", [True, False])
def test_everything_is_in_the_mode_of_the_model(training: bool) -> None:
    model = network("resnet10t").train(training)
    model.bn1.train(not training)
    dynamic = sidestep.wrap(model)
    apart = [name for name, module in dynamic.named_modules() if module.training is not training]
    assert apart == ["backbone.network.bn1"]
    assert all(unit.training is training for unit in dynamic.backbone.units)
    assert all(module.training for module in dynamic.train().modules())


def test_routers_are_in_the_dtype_of_the_model() -> None:
    dynamic = sidestep.wrap(network().bfloat16().eval())
    assert {parameter.dtype for parameter in dynamic.parameters()} == {torch.bfloat16}
    assert dynamic(strategies.images(2, 0, size=32).bfloat16()).logits.dtype == torch.bfloat16


def test_a_checkpoint_brings_back_weights_and_routers(tmp_path: Path) -> None:
    first, second = (sidestep.wrap(network("resnet10t")).eval() for _ in range(2))
    tensors = {f"model.{name}": tensor for name, tensor in first.state_dict().items()}
    save_checkpoint(tmp_path / "last.safetensors", Checkpoint(tensors=tensors, values={}))
    load_weights(second, load_checkpoint(tmp_path / "last.safetensors").section("model"), "checkpoint")
    images = strategies.images(2, 0, size=32)
    expected, actual = first(images), second(images)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.decisions.logits, expected.decisions.logits)


def test_settings_are_checked_as_in_a_recipe_all_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        sidestep.wrap(network(), tagret=0.6, gate_mode="harrd", router={"gamma": 2})
    text = str(caught.value)
    assert text.startswith("wrap has 3 errors:")
    assert "method.tagret is no setting of method rdi_net; did you mean target?" in text
    assert "gate_mode must be a value out of soft, hard, share, got 'harrd'; did you mean hard?" in text
    assert "method.router.gamma must be in [0, 1] or 'auto', got 2" in text


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"method\.name must be .* got 'rdinet'; did you mean rdi_net"):
        sidestep.wrap(network(), method="rdinet")


def test_a_path_that_does_not_fit_the_network_is_refused() -> None:
    with pytest.raises(RecipeError, match="path must name every unit of the network once, got 3 for 9 units"):
        sidestep.wrap(network(), method="fixed_path", path="101")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(1, 1)),
            r"model must map images to logits, got a Sequential that does not run",
        ),
        ("resnet50", r"model must be a network, a torch\.nn\.Module, got 'resnet50'; build one of timm"),
    ],
)
def test_what_is_no_network_of_images_is_refused(model: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sidestep.wrap(model)


def model_of_maps() -> nn.Module:
    return network("resnet10t").eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_wrapped_and_runs_or_is_refused_in_a_sentence(method: str) -> None:
    settings = {
        "codinet": {"num_units": 2},
        "fixed_path": {"path": "1010"},
        "certainty": {"shares": [1, 0, 1, 1]},
    }.get(method, {})
    if method in ("act", "sact", "ranet", "msdnet", "cascade"):
        with pytest.raises(
            RecipeError, match=f"method must choose which units run .* got '{method}', which has"
        ):
            sidestep.wrap(model_of_maps(), method=method, **settings)
        with pytest.raises(RecipeError, match="method must choose"):
            sidestep.wrap(model_of_maps(), method=method, target=0.6)
        return
    dynamic = sidestep.wrap(model_of_maps(), method=method, **settings)
    images = strategies.images(2, 0, size=32)
    with torch.no_grad():
        assert dynamic(images).decisions.weights.shape == (2, 4, 2)
        sidestep.measure_cost(dynamic, (32, 32))


def test_a_method_of_ones_own_with_a_network_of_its_own_is_refused() -> None:
    class Other(sidestep.RoutedNetwork):
        pass

    METHODS.add(replace(METHODS["rdi_net"], name="guest", network=Other))
    try:
        with pytest.raises(RecipeError, match="got 'guest', which has a network of its own"):
            sidestep.wrap(model_of_maps(), method="guest")
    finally:
        METHODS.remove("guest")


@pytest.mark.parametrize("gate", ["feedforward1", "feedforward2"])
def test_gates_that_look_at_maps_refuse_tokens(gate: str) -> None:
    model = network("vit_tiny_patch16_224", img_size=32, depth=2)
    with pytest.raises(RecipeError, match=f"method skipnet with gate '{gate}' looks at feature maps"):
        sidestep.wrap(model, method="skipnet", gate=gate)
    assert sidestep.wrap(model, method="skipnet").eval()(strategies.images(2, 0, size=32)).logits.shape == (
        2,
        5,
    )


@pytest.mark.parametrize("name", ["act", "sact"])
def test_halting_refuses_tokens(name: str) -> None:
    backbone = wrap_network(network("vit_tiny_patch16_224", img_size=32, depth=2))
    with pytest.raises(RecipeError, match=f"method {name} looks at feature maps, so model.name must be"):
        METHODS[name].router(backbone, METHODS[name].settings())


@pytest.mark.parametrize("policy", [{}, {"policy_depth": 10}])
def test_a_policy_looks_at_images_of_as_many_channels_as_the_network(policy: dict[str, Any]) -> None:
    grey = sidestep.wrap(network("resnet10t", in_chans=1), method="blockdrop", **policy).eval()
    with torch.no_grad():
        assert grey(strategies.images(2, 0, size=32)[:, :1]).decisions.weights.shape == (2, 4, 2)
