"""Cascades of whole networks: every member begins anew, exits are the members' ends."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sidestep
from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.errors import RecipeError
from sidestep.networks.cascade_network import CascadeNetwork, Combine, MemberInput, MemberView, shared_input
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.budget_router import BudgetRouter, BudgetsConfig
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.gate import GateRouter

INPUT = MemberInput(size=(16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
OTHER = MemberInput(size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
SMALL = MemberInput(size=(8, 8), mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))


def static(depth: int, seed: int = 0) -> RoutedNetwork:
    torch.manual_seed(seed)
    return RoutedNetwork(CifarResNet(CifarResNetConfig(depth=depth, num_classes=7))).eval()


def routed(depth: int, seed: int = 0) -> RoutedNetwork:
    torch.manual_seed(seed)
    backbone = CifarResNet(CifarResNetConfig(depth=depth, num_classes=7))
    router = GateRouter([unit.in_channels for unit in backbone.units])
    for parameter in router.parameters():
        nn.init.normal_(parameter, std=0.7)
    return RoutedNetwork(backbone, router).eval()


def cascade(
    members: list[RoutedNetwork], inputs: list[MemberInput], combine: Combine = "last"
) -> CascadeNetwork:
    given = shared_input(inputs)
    return CascadeNetwork(members, [MemberView(given, each) for each in inputs], combine).eval()


def images(count: int = 24, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def middle(exit_logits: Tensor) -> ExitRule:
    """Return a rule by which half of the images leave at every exit."""
    confidence = exit_logits.softmax(dim=2).amax(dim=2)
    return ExitRule(thresholds=confidence[:-1].median(dim=1).values.tolist())


@pytest.mark.parametrize("make", [static, routed], ids=["static", "routed"])
def test_every_exit_says_what_its_member_says_of_its_own_pixels(make: object) -> None:
    assert callable(make)
    members = [make(8, 1), make(14, 2)]
    network = cascade(members, [OTHER, INPUT])
    pixels = images() * 0.2 + torch.tensor(INPUT.mean).view(3, 1, 1)
    with torch.no_grad():
        output = network(images())
        for exit, (member, wanted) in enumerate(zip(members, [OTHER, INPUT], strict=True)):
            mean, std = (torch.tensor(each).view(3, 1, 1) for each in (wanted.mean, wanted.std))
            assert output.exit_logits is not None
            expected = member((pixels - mean) / std).logits
            assert torch.allclose(output.exit_logits[exit], expected, atol=1e-4)


@pytest.mark.parametrize("combine", ["last", "log_probs", "probs"])
@pytest.mark.parametrize("kinds", [(static, static), (routed, static), (static, routed), (routed, routed)])
def test_cascade_execution_is_the_masked_one(combine: Combine, kinds: tuple[object, object]) -> None:
    members = [make(depth, depth) for make, depth in zip(kinds, (8, 14), strict=True) if callable(make)]
    network = cascade([*members, static(20, 3)], [SMALL, OTHER, INPUT], combine)
    with torch.no_grad():
        everything = network(images()).exit_logits
        assert everything is not None
        rule = middle(everything)
        masked, cascaded = (
            network(images(), rule=rule, execution=way) for way in (sidestep.masked, sidestep.cascade)
        )
    assert masked.decisions.exits is not None and cascaded.decisions.exits is not None
    assert 0 < masked.decisions.exits[:, 0].mean() < 1
    assert torch.equal(masked.decisions.exits, cascaded.decisions.exits)
    assert torch.equal(masked.decisions.weights, cascaded.decisions.weights)
    assert torch.allclose(masked.logits, cascaded.logits, atol=1e-5)


def test_answers_are_combined_by_the_mean_of_log_probabilities_or_of_probabilities() -> None:
    members = [static(8, 1), static(8, 2), static(8, 3)]
    with torch.no_grad():
        said = torch.stack([member(images()).logits.softmax(dim=1) for member in members])
        for combine, expected in (
            ("log_probs", [said[: n + 1].log().mean(dim=0).softmax(dim=1) for n in range(3)]),
            ("probs", [said[: n + 1].mean(dim=0) for n in range(3)]),
        ):
            network = cascade(members, [INPUT] * 3, combine)  # type: ignore[arg-type]
            found = network(images()).exit_logits
            assert found is not None
            assert torch.allclose(found.softmax(dim=2), torch.stack(expected), atol=1e-5)


def test_a_cascade_costs_its_members_up_to_the_exit_and_is_measured_against_the_last() -> None:
    members = [routed(8, 1), static(14, 2)]
    network = cascade(members, [INPUT, INPUT])
    cost = sidestep.measure_cost(network, (16, 16))
    first, last = (sidestep.measure_cost(member, (16, 16)) for member in members)
    assert cost.full == pytest.approx(last.full)
    with torch.no_grad():
        output = network(images())
        alone = members[0](images())
    at_exits = cost.at_exits(output.decisions)
    assert torch.allclose(at_exits[:, 0], first.per_sample(alone.decisions))
    assert torch.allclose(at_exits[:, 1], first.per_sample(alone.decisions) + last.full)


def test_a_smaller_member_sees_the_picture_smaller() -> None:
    seen: list[Tensor] = []

    class Looking(RoutedNetwork):
        def stem(self, images: Tensor) -> Tensor:
            seen.append(images)
            return super().stem(images)

    torch.manual_seed(0)
    member = Looking(CifarResNet(CifarResNetConfig(depth=8, num_classes=7)))
    network = cascade([member, static(14)], [SMALL, INPUT])
    network(images())
    pixels = images() * 0.2 + torch.tensor(INPUT.mean).view(3, 1, 1)
    small = F.interpolate(pixels, (8, 8), mode="bilinear", antialias=True)
    expected = (small - torch.tensor(SMALL.mean).view(3, 1, 1)) / torch.tensor(SMALL.std).view(3, 1, 1)
    assert torch.allclose(seen[0], expected, atol=1e-5)


def test_members_of_other_sizes_run_in_bfloat16() -> None:
    network = cascade([static(8, 1), static(14, 2)], [SMALL, INPUT])
    with torch.no_grad():
        wanted = network(images()).exit_logits
        said = network.to(torch.bfloat16)(images().bfloat16()).exit_logits
    assert wanted is not None and said is not None and said.dtype == torch.bfloat16
    torch.testing.assert_close(said.float(), wanted, rtol=0.05, atol=0.05)


def test_the_shared_pixels_are_as_wide_and_as_fine_as_any_member_needs() -> None:
    near = MemberInput(size=(224, 224), crop_share=0.875, mean=(0.5,) * 3, std=(0.5,) * 3)
    wide = MemberInput(size=(100, 100), crop_share=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    given = shared_input([wide, near])
    assert (given.size, given.crop_share) == ((256, 256), 1.0)
    assert MemberView(given, near).crop == (224, 224) and MemberView(given, wide).crop == (256, 256)


def test_what_cannot_be_in_a_cascade_is_refused() -> None:
    with pytest.raises(RecipeError, match="two networks or more"):
        cascade([static(8)], [INPUT])
    with pytest.raises(RecipeError, match="combine must be one of"):
        cascade([static(8), static(8)], [INPUT] * 2, "vote")  # type: ignore[arg-type]


def test_a_network_for_all_budgets_is_no_member() -> None:
    member = routed(8)
    given = BudgetRouter(member.router, BudgetsConfig(low=0.4), asked=0.6, scope="unit")
    with pytest.raises(RecipeError, match="members must have one budget"):
        cascade([RoutedNetwork(member.backbone, given), static(14)], [INPUT, INPUT])
