"""Early exits on networks that had none."""

import pytest
import timm
import torch
from torch import Tensor

from sidestep.cost.macs import measure_cost
from sidestep.errors import ExecutionError, RecipeError
from sidestep.execution.execution import cascade
from sidestep.methods import METHODS
from sidestep.networks.attached_exits import attach_exits
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.exit_rule import ExitRule
from tests.doubles import attached_network, entered_rows

# Certain enough for some images and not for others, as fresh weights have it.
RULE = ExitRule(thresholds=[0.118, 0.113])


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def middle_rule(attached: RoutedNetwork) -> ExitRule:
    """A rule with which about a third of the images leaves at every exit."""
    exit_logits = attached(images()).exit_logits
    first, second, _ = exit_logits.softmax(dim=2).amax(dim=2)
    rest = second[first < first.quantile(0.66)]
    return ExitRule(thresholds=[first.quantile(0.66).item(), rest.quantile(0.5).item()])


ROUTED = ["rdi_net", "convnet_aig", "skipnet", "random_drop"]


@pytest.mark.parametrize("method", [*ROUTED, "static"])
def test_exits_change_nothing_for_images_that_stay(method: str) -> None:
    attached = attached_network(method)
    routed = RoutedNetwork(attached.backbone, attached.router).eval()
    expected, output = routed(images()), attached(images())
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.decisions.weights, expected.decisions.weights)
    assert output.exit_logits.shape == (3, 16, 10)
    assert output.decisions.exits.argmax(dim=1).eq(2).all()


@pytest.mark.parametrize("method", [*ROUTED, "static"])
def test_a_cascade_equals_the_masked_network(method: str) -> None:
    attached = attached_network(method)
    rule, cost = middle_rule(attached), measure_cost(attached, (16, 16))
    with torch.no_grad():
        masked = attached(images(), rule=rule)
        leaving = attached(images(), rule=rule, execution=cascade)
    assert masked.decisions.exits.sum(dim=0).gt(2).all()
    torch.testing.assert_close(leaving.logits, masked.logits, atol=1e-5, rtol=0)
    for name in ("weights", "asked", "exits"):
        ours, theirs = getattr(leaving.decisions, name), getattr(masked.decisions, name)
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(cost.per_sample(leaving.decisions), cost.per_sample(masked.decisions))
    for row in range(16):
        alone = attached(images()[row : row + 1], rule=rule, execution=cascade)
        torch.testing.assert_close(alone.logits[0], masked.logits[row], atol=1e-5, rtol=0)


def test_images_that_have_left_run_nothing() -> None:
    attached = attached_network("static")
    rule = middle_rule(attached)
    exits = attached(images(), rule=rule).decisions.exits.argmax(dim=1)
    convolutions = [unit.conv1 for unit in attached.backbone.units]
    with entered_rows(convolutions) as counts:
        attached(images(), rule=rule, execution=cascade)
    staying = [16, int((exits > 0).sum()), int((exits > 1).sum())]
    assert counts == [staying[0]] * 2 + [staying[1]] * 1 + [staying[2]] * 3
    assert staying[0] > staying[1] > staying[2] > 0


def test_permuting_a_batch_changes_nothing() -> None:
    attached = attached_network()
    rule, order = middle_rule(attached), torch.randperm(16, generator=torch.Generator().manual_seed(2))
    straight = attached(images(), rule=rule, execution=cascade)
    shuffled = attached(images()[order], rule=rule, execution=cascade)
    torch.testing.assert_close(shuffled.logits, straight.logits[order], atol=1e-5, rtol=0)
    assert shuffled.decisions.exits.equal(straight.decisions.exits[order])


@pytest.mark.parametrize("method", ["rdi_net", "static"])
def test_the_cost_of_leaving_adds_up(method: str) -> None:
    attached = attached_network(method)
    cost, output = measure_cost(attached, (16, 16)), attached(images())
    at_exits = cost.at_exits(output.decisions)
    torch.testing.assert_close(at_exits[:, -1], cost.per_sample(output.decisions))
    routed = measure_cost(RoutedNetwork(attached.backbone, attached.router), (16, 16))
    # Heads: a 3x3 convolution to 8 channels at half the size, and a linear layer; then the network's own.
    first, second = 9 * 16 * 8 * 8 * 8 + 80, 9 * 32 * 8 * 4 * 4 + 80
    assert cost.exits.tolist() == [first, first + second, first + second + 640]
    assert cost.full == routed.full + first + second
    executed = output.decisions.weights[:, :2, 1] @ cost.options[:2, 1]
    expected = cost.fixed + executed + cost.routers[:2].sum() + first
    torch.testing.assert_close(at_exits[:, 0], expected)
    rule = middle_rule(attached)
    left = attached(images(), rule=rule).decisions
    exits = left.exits.argmax(dim=1, keepdim=True)
    torch.testing.assert_close(cost.per_sample(left), at_exits.gather(1, exits)[:, 0])


def test_every_exit_learns_from_the_sum_of_losses() -> None:
    attached = attached_network().train()
    output = attached(images())
    output.exit_logits.square().mean(dim=(1, 2)).sum().backward()
    without = [name for name, p in attached.named_parameters() if p.grad is None]
    # The router's decisions are hard here and have no gradient.
    assert all(name.startswith("router.") for name in without)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "resnet10t"])
def test_networks_of_timm_get_exits(name: str) -> None:
    size = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=5, **size).eval()
    at = {"convnext_atto": ["stages.1", "stages.2.blocks.3"], "resnet10t": ["layer2"]}.get(name, ["blocks.5"])
    attached = attach_exits(model, at, num_classes=5).eval()
    picture = torch.randn(4, 3, 32, 32)
    output = attached(picture)
    torch.testing.assert_close(output.logits, model(picture), atol=1e-5, rtol=1e-5)
    assert output.exit_logits.shape == (len(at) + 1, 4, 5)
    assert measure_cost(attached, (32, 32)).exits[0] > 0


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([], "at must name one module or more in order of execution"),
        (["layer2", "layer1"], "at must name one module or more in order of execution"),
        (["layer1", "layer1.1"], "at must name one module or more in order of execution"),
        (
            ["layer7"],
            "at must name modules with units inside, got 'layer7'; this network has them in layer1, ",
        ),
        (["conv1"], "at must name modules with units inside, got 'conv1'"),
        (["layer3"], "at must not name the network's end"),
    ],
)
def test_wrong_places_are_refused(at: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        attached_network(at=at)


def test_networks_that_halt_are_refused() -> None:
    backbone = build_backbone(ModelConfig(name="cifar_resnet8"), num_classes=10)
    act = METHODS["act"]
    halting = act.network(backbone, act.router(backbone, act.settings()))
    with pytest.raises(
        RecipeError, match="exits can be attached to a network that skips units and has none yet, got Halting"
    ):
        attach_exits(halting, ["layer1"], num_classes=10)


def test_a_cascade_needs_a_rule_and_evaluation_mode() -> None:
    attached = attached_network()
    with pytest.raises(ExecutionError, match="needs evaluation mode and an exit rule, got no rule"):
        attached(images(), execution=cascade)
    with pytest.raises(ExecutionError, match="got training mode"):
        attached.train()(images(), execution=cascade, rule=RULE)
    with pytest.raises(ExecutionError, match="must have 2 thresholds for 3 exits, got 1"):
        attached.eval()(images(), rule=ExitRule(thresholds=[0.5]))
