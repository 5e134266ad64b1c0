"""Units that are named by module path, and networks of one's own: what works, and what is refused and why."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sidestep.backbones.traced_network import TracedNetwork
from sidestep.backbones.wrapping import wrap_network
from sidestep.errors import RecipeError
from sidestep.execution.execution import gathered
from sidestep.execution.prepare import prepare
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import TableRouter, enliven


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Remembering(Residual):
    """Reads the mean of the last call's features."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        branch = self.f(x + self.last)
        self.last = x.mean()
        return x + branch


class Counting(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.f(x)


class Mixing(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x - x.mean(0, keepdim=True))


class Overwriting(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x.relu_())


class Twisting(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3) + self.f(x)


class Scaling(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.f(x), x, alpha=2)


class Pair(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x + self.f(x), x


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0]


def stack(*blocks: nn.Module) -> nn.Sequential:
    """Return a network whose blocks are modules 3 and further."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    enliven(network)
    return network.eval()


class Around(nn.Module):
    """Has a shortcut around both of its blocks, and runs the second one twice if asked to."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), Residual(), Residual()
        self.head = nn.Linear(8, 4)
        self.twice = twice

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        y = self.b(self.a(x))
        y = self.b(y) if self.twice else y + x
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


class Looking(Around):
    def forward(self, images: Tensor) -> Tensor:
        x = self.a(self.stem(images))
        logits: Tensor = self.head((x if x.sum() > 0 else -x).mean((2, 3)))
        return logits


def resnet() -> nn.Module:
    made: nn.Module = torchvision.models.resnet18(num_classes=4)
    return made.eval()


@pytest.mark.parametrize("units", ["blocks", ["3", "5"], ["5"]])
def test_a_network_of_ones_own_is_wrapped(units: str | Sequence[str]) -> None:
    network, images = stack(Residual(), nn.Conv2d(8, 8, 1), Residual()), strategies.images(4, 0, size=16)
    backbone = wrap_network(network, units)  # type: ignore[arg-type]
    assert [unit.origin for unit in backbone.units] == [
        network[int(name)] for name in (["3", "5"] if units == "blocks" else units)
    ]
    routed = RoutedNetwork(backbone, TableRouter(torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]])))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), network(images))
        masked, fast = routed(images).logits, routed(images, execution=gathered).logits
        prepared = prepare(routed, images)
        ready = prepared(images, execution=gathered).logits
    torch.testing.assert_close(fast, masked, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ready, masked, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())


def test_named_units_of_a_known_network_are_those_alone() -> None:
    network, images = resnet(), strategies.images(2, 0, size=32)
    backbone = wrap_network(network, ["layer3.1", "layer1.0", "layer2.0"])
    expected = [network.layer1[0], network.layer2[0], network.layer3[1]]  # type: ignore[index]
    assert [unit.origin for unit in backbone.units] == expected
    assert [unit.keeps_input for unit in backbone.units] == [True, False, False]
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), network(images))


def test_a_copy_runs_its_own_modules_around_units_too() -> None:
    backbone, images = wrap_network(stack(Residual(), Residual())), strategies.images(2, 0, size=16)
    twin = copy.deepcopy(backbone)
    assert isinstance(twin, TracedNetwork)
    with torch.no_grad():
        expected = backbone(images)
        for parameter in backbone.parameters():
            parameter.zero_()
        assert torch.equal(twin(images), expected)


def test_code_takes_the_way_of_its_mode() -> None:
    model = torchvision.models.mobilenet_v2(num_classes=4, dropout=0.5)
    backbone, images = wrap_network(model), strategies.images(4, 0, size=32)
    results = []
    for each in (model, backbone):
        torch.manual_seed(3)
        results.append(each.train()(images))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), backbone(images))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], "units must name one module or more, got an empty list; name resid"),
        (["layer1.7"], r"units must name modules of the network, got 'layer1\.7'; did you mean layer"),
        (["?"], r"units must name modules of the network, got '\?'; modules are avgpool, bn1"),
        (["layer1.0", "layer1.0"], r"units must name every module once, got 'layer1\.0' 2 times; dr"),
        (["layer1", "layer1.0"], r"units must not lie inside of each other, got 'layer1\.0' in 'layer1'"),
        (["conv1"], r"units must return the shape that .*, got 'conv1', which maps 3 x 224"),
        (["layer2"], r"'layer2', which maps 64 x 56 x 56 to 128 x 28 x 28; resid"),
        (["layer1.0.conv1"], r"units must be residual blocks, x \+ f\(x\), got 'layer1\.0\.conv1', who"),
        (["layer1"], r"units must be residual blocks, .* got 'layer1', whose output is no"),
        (["layer1.0.relu"], r"units must be called once for every image, got 'layer1\.0\.relu', .* 2 times"),
        ("bloks", "units must be one of blocks, sublayers, or a list of modules by name, got 'bloks'"),
        ("sublayers", "units must be 'blocks' for networks other than a VisionTransformer of plain blocks"),
    ],
)  # fmt: skip
def test_what_is_no_unit_is_refused(units: str | Sequence[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        wrap_network(resnet(), units)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Remembering(), "units must keep no state between calls, got '4', which returns something else"),
        (Counting(), r"model must keep no state between calls .* got a Sequential that changes 4\.cal"),
        (Mixing(), "units must compute every image by itself, got '4', whose output depends on the other"),
        (Overwriting(), "units must leave their input as it is, got '4', which writes over it"),
        (Twisting(), r"units must be residual blocks, x \+ f\(x\), got '4', whose output is no such sum"),
        (Scaling(), r"units must be residual blocks, x \+ f\(x\), got '4', whose output is no such sum"),
        (nn.Sequential(Pair(), First()), r"got '4\.0', which takes or returns something else; residual bl"),
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_skipped_is_refused(block: nn.Module, message: str) -> None:
    name = "4.0" if isinstance(block, nn.Sequential) else "4"
    with pytest.raises(RecipeError, match=message):
        wrap_network(stack(Residual(), copy.deepcopy(block)), ["3", name])


@pytest.mark.parametrize("block", [Remembering(), Counting(), Mixing()])
def test_a_network_of_unknown_make_is_tried_without_names_too(block: nn.Module) -> None:
    with pytest.raises(
        RecipeError, match=r"must keep no state between calls|must compute every image by its"
    ):
        wrap_network(stack(Residual(), copy.deepcopy(block)))


@pytest.mark.parametrize(
    ("network", "units", "message"),
    [
        (Around(), ["a"], "units must be all that leads .* got 'a', which something passes by"),
        (Around(), "blocks", r"model must have residual blocks, .*Around with children stem, a, b, he"),
        (Around(twice=True), ["b"], "units must be called once for every image, got 'b', .* 2 times"),
        (Looking(), "blocks", "the code of Looking around its units must be the same for all images"),
        (torchvision.models.vgg11(), "blocks", r"got torchvision\.models\.vgg\.VGG with children"),
        (resnet().layer1, "blocks", "model must return one .* got a Sequential that returns a tensor of"),
        (nn.Linear(1, 1), "blocks", "model must map images to logits, got a Linear that does not ru"),
        (torch.compile(nn.ReLU()), "blocks", "model must be a network as it was built, got Optimized"),
    ],
)  # fmt: skip
def test_a_network_without_units_is_refused(network: nn.Module, units: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        wrap_network(network, units)  # type: ignore[arg-type]
