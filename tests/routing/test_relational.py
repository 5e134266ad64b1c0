from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.errors import RecipeError
from sidestep.routing.relational import RelationalConfig, RelationalRouter
from tests import strategies
from tests.doubles import enliven, relational_router
from tests.reference import relational as reference

CHANNELS = [2, 2, 3, 3, 4, 4]
STAGES = [0, 0, 1, 1, 2, 2]


def run(router: RelationalRouter, features: list[Tensor]) -> list[Tensor]:
    state, logits = router.begin(features[0]), []
    for unit, feature in enumerate(features):
        scores, state = router(unit, feature, state)
        logits.append(scores)
    return logits


def transparent(width: int = 1, **settings: Any) -> RelationalRouter:
    """Return three routers of identity weights, whose second logit is the sum of s."""
    config = RelationalConfig(dim=width, batch_norm=False, **settings)
    router = RelationalRouter([width] * 3, [0] * 3, config).eval()
    for align, gcn, decide in zip(router.align, router.gcn, router.decide, strict=True):
        nn.init.eye_(align[0].weight)
        nn.init.eye_(gcn.weight)
        decide.weight.data = torch.tensor([[0.0] * width, [1.0] * width])
        nn.init.zeros_(decide.bias)
    return router


def scores_of(router: RelationalRouter, *features: list[float]) -> list[float]:
    maps = [torch.tensor(f).view(1, -1, 1, 1).expand(1, -1, 2, 2) for f in features]
    return [scores[0, 1].item() for scores in run(router, maps)]


def lively(**settings: Any) -> RelationalRouter:
    torch.manual_seed(1)
    router = RelationalRouter(CHANNELS, STAGES, RelationalConfig(dim=5, **settings))
    enliven(router)
    for decide in router.decide:
        nn.init.normal_(decide.weight)
    return router.eval()


def feature_maps(batch: int, seed: int = 0) -> list[Tensor]:
    generator = strategies.generator(seed)
    return [torch.rand(batch, c, 3, 2, generator=generator) * 2 for c in CHANNELS]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gamma": 0.5, "reach": 2}, [1, 2 + 0.5, 4 + 0.5 * 2.5 + 0.25]),
        ({"gamma": 0.5, "reach": 6}, [1, 2.5, 5.5]),
        ({"gamma": 0.5, "reach": 1}, [1, 2.5, 4 + 0.5 * 2.5]),
        ({"gamma": 0.0, "reach": 2}, [1, 2, 4]),
        ({"gamma": 0.5, "reach": 0}, [1, 2, 4]),
        ({"gamma": 1.0, "reach": 2}, [1, 2 + 1, 4 + 3 + 1]),
        ({"gamma": 0.5, "normalize_adj": True}, [1, 2.5 / 1.5, (4 + 0.5 * 2.5 / 1.5 + 0.25) / 1.75]),
        ({"gamma": 1.0, "normalize_adj": True}, [1, 1.5, (4 + 1.5 + 1) / 3]),
        ({"gamma": "auto"}, [1, 3, 8]),
        ({"gamma": "auto", "normalize_adj": True}, [1, 1.5, 6.5 / 3]),
    ],
    ids=str,
)
def test_three_routers_agree_with_hand_arithmetic(settings: dict[str, Any], expected: list[float]) -> None:
    assert scores_of(transparent(**settings), [1.0], [2.0], [4.0]) == pytest.approx(expected)


def test_auto_edges_are_the_cosine_of_the_features() -> None:
    router = transparent(2, gamma="auto", reach=1)
    orthogonal = scores_of(router, [3.0, 0.0], [0.0, 2.0], [0.0, 5.0])
    assert orthogonal == pytest.approx([3.0, 2.0, 5.0 + 2.0])
    diagonal = scores_of(router, [3.0, 0.0], [1.0, 1.0], [0.0, 0.0])
    assert diagonal == pytest.approx([3.0, 2.0 + 3.0 * 0.5**0.5, 0.0])


@given(
    st.sampled_from([0.0, 0.25, 0.5, 1.0, "auto"]),
    st.integers(0, 7),
    st.booleans(),
    st.sampled_from(["none", "stage", "all"]),
    st.booleans(),
    st.integers(1, 3),
    strategies.seeds,
)
def test_logits_equal_the_full_adjacency_matrix(
    gamma: Any, reach: int, normalize_adj: bool, share_gcn: Any, batch_norm: bool, batch: int, seed: int
) -> None:
    router = lively(
        gamma=gamma, reach=reach, normalize_adj=normalize_adj, share_gcn=share_gcn, batch_norm=batch_norm
    )
    features = feature_maps(batch, seed)
    for fast, slow in zip(run(router, features), reference.relational(router, features), strict=True):
        torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_full_adjacency_matrix() -> None:
    router = lively(gamma=0.5, reach=2).double()
    gradients = []
    for forward in (run, reference.relational):
        features = [f.double().requires_grad_() for f in feature_maps(2)]
        router.zero_grad()
        torch.stack(forward(router, features)).square().sum().backward()
        gradients.append([t.grad.clone() for t in (*features, *router.parameters())])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("normalize_adj", [False, True])
def test_gamma_zero_and_reach_zero_are_the_same_plain_gate(normalize_adj: bool) -> None:
    features = feature_maps(3)
    plain = lively(gamma=0.0, normalize_adj=normalize_adj)
    unreached = lively(gamma=0.5, reach=0, normalize_adj=normalize_adj)
    for unit, (a, b) in enumerate(zip(run(plain, features), run(unreached, features), strict=True)):
        assert torch.equal(a, b)
        alone, _ = plain(unit, features[unit], plain.begin(features[unit]))
        assert torch.equal(a, alone)


def test_a_plain_gate_ignores_earlier_features_and_a_relational_one_does_not() -> None:
    features = feature_maps(2)
    changed = [features[0] + 1, *features[1:]]
    for gamma, is_plain in ((0.0, True), (0.5, False)):
        router = lively(gamma=gamma)
        assert torch.equal(run(router, features)[-1], run(router, changed)[-1]) is is_plain


def test_the_state_holds_the_features_of_the_last_routers_newest_first() -> None:
    router = transparent(gamma=0.5, reach=2)
    state = router.begin(torch.zeros(1, 3, 2, 2))
    assert state[1] == ()
    for unit, value in enumerate([1.0, 2.0, 4.0]):
        _, state = router(unit, torch.full((1, 1, 2, 2), value), state)
    assert [s.item() for s in state[1]] == [5.5, 2.5]


def test_a_fresh_router_executes_with_the_probability_of_its_bias() -> None:
    router = RelationalRouter([16] * 3, [0] * 3).eval()
    for logits in run(router, [torch.zeros(2, 16, 4, 4)] * 3):
        torch.testing.assert_close(logits, torch.tensor([[0.1, 2.0]] * 2))
    router.train()
    for logits in run(router, [torch.rand(64, 16, 4, 4)] * 3):
        executes = logits.softmax(dim=1)[:, 1]
        torch.testing.assert_close(executes, torch.full((64,), 1.9).sigmoid(), atol=0.02, rtol=0)


def test_initial_rates_set_the_probability_of_every_unit() -> None:
    rates = [0.97, 0.5, 0.03]
    router = RelationalRouter([16] * 3, [0] * 3, RelationalConfig(initial_rates=rates)).eval()
    for logits, rate in zip(run(router, [torch.zeros(2, 16, 4, 4)] * 3), rates, strict=True):
        torch.testing.assert_close(logits.softmax(dim=1)[:, 1], torch.full((2,), rate))


def test_initial_rates_for_another_number_of_units_are_refused() -> None:
    with pytest.raises(RecipeError, match="initial_rates must name every unit once, got 2 for 3 units"):
        RelationalRouter([16] * 3, [0] * 3, RelationalConfig(initial_rates=[0.5, 0.5]))


def test_the_gate_bias_repeats_for_dearer_options() -> None:
    router = RelationalRouter([4], [0], RelationalConfig(dim=8, gate_bias=(0.5, 1.5)), num_options=3)
    assert router.decide[0].bias.tolist() == [0.5, 1.5, 1.5]


def test_initial_weights_follow_the_specification() -> None:
    router = RelationalRouter([64] * 4, [0] * 4)
    for align, gcn, decide in zip(router.align, router.gcn, router.decide, strict=True):
        assert align[0].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
        assert not align[0].bias.any()
        assert gcn.weight.abs().max() <= 1 / 16
        assert gcn.weight.std().item() == pytest.approx((1 / (3 * 256)) ** 0.5, rel=0.05)
        assert gcn.bias is None
        assert decide.weight.std().item() == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize(
    ("share_gcn", "num_parameters"),
    [("none", 4_084_332), ("stage", 4_084_332 - 51 * 65_536), ("all", 4_084_332 - 53 * 65_536)],
)
def test_router_parameters_of_resnet_110_are_those_of_the_specification(
    share_gcn: Any, num_parameters: int
) -> None:
    with torch.device("meta"):
        backbone = CifarResNet(CifarResNetConfig(depth=110))
        bare, normed = (
            relational_router(backbone, RelationalConfig(share_gcn=share_gcn, batch_norm=batch_norm))
            for batch_norm in (False, True)
        )
    assert sum(p.numel() for p in bare.parameters()) == num_parameters
    assert sum(p.numel() for p in normed.parameters()) == num_parameters + 54 * 2 * 256


@pytest.mark.parametrize(("share_gcn", "distinct"), [("none", 6), ("stage", 3), ("all", 1)])
def test_routers_share_the_gcn_as_told(share_gcn: Any, distinct: int) -> None:
    router = RelationalRouter(CHANNELS, STAGES, RelationalConfig(dim=4, share_gcn=share_gcn))
    assert len({id(gcn) for gcn in router.gcn}) == distinct
    if share_gcn == "stage":
        assert router.gcn[2] is router.gcn[3]
        assert router.gcn[1] is not router.gcn[2]


def test_a_zero_feature_leaves_auto_edges_and_their_gradients_finite() -> None:
    router = transparent(2, gamma="auto")
    features = [torch.zeros(1, 2, 2, 2, requires_grad=True) for _ in range(3)]
    torch.stack(run(router, features)).sum().backward()
    assert all(bool(f.grad.isfinite().all()) for f in features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"reach": -1}, "reach must be at least 0, got -1"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\] or 'auto', got 1.5"),
        ({"initial_rates": [0.5, 1.0]}, r"initial_rates must be in \(0, 1\), got \[0.5, 1.0\]"),
        ({"initial_rates": [0.0]}, r"initial_rates must be in \(0, 1\), got \[0.0\]"),
        ({"gamma": -0.1}, r"gamma must be in \[0, 1\] or 'auto', got -0.1"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RelationalConfig(**settings)
