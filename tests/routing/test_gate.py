"""Plain gates: parity with the formula, initial rates, and units without a gate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.routing.gate import GateConfig, GateRouter
from sidestep.routing.samplers import GumbelSoftmax
from tests import strategies
from tests.doubles import enliven, noise
from tests.reference import gate as reference

CHANNELS = [4, 4, 6]


def features(batch: int = 3) -> list[Tensor]:
    generator = strategies.generator(0)
    return [torch.rand(batch, c, 3, 5, generator=generator) for c in CHANNELS]


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", [False, True])
def test_logits_are_those_of_the_formula(hidden: int | None, batch_norm: bool, activation: bool) -> None:
    config = GateConfig(hidden=hidden, batch_norm=batch_norm, activation=activation, bias=None)
    router = GateRouter(CHANNELS, config)
    enliven(router)
    router.eval()
    state = router.begin(torch.zeros(1, 3, 2, 2))
    for unit, maps in enumerate(features()):
        logits, state = router(unit, maps, state)
        inner, decide = router.inner[unit], router.decide[unit]
        expected = reference.logits(inner, decide, maps, activation=activation)  # type: ignore[arg-type]
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_hidden_width_is_16_or_that_of_the_input() -> None:
    assert [layer[0].out_features for layer in GateRouter(CHANNELS).inner] == [16, 16, 16]  # type: ignore[index]
    wide = GateRouter(CHANNELS, GateConfig(hidden=None))
    assert [layer[0].out_features for layer in wide.inner] == CHANNELS  # type: ignore[index]


def test_gates_start_nearly_open() -> None:
    router = GateRouter(CHANNELS).eval()
    logits, _ = router(0, features()[0], router.begin(torch.zeros(1, 3, 2, 2)))
    torch.testing.assert_close(logits.softmax(dim=1)[:, 1], torch.full((3,), 0.8699), atol=0.01, rtol=0)


def test_a_unit_without_a_gate_executes_and_has_no_parameters() -> None:
    router = GateRouter(CHANNELS, gated=[False, True, False])
    state = router.begin(torch.zeros(1, 3, 2, 2))
    sampler = GumbelSoftmax(noise=noise(), hard=True)
    for unit, maps in enumerate(features(64)):
        logits, state = router(unit, maps, state)
        weights = sampler(logits).weights
        assert bool(weights.isfinite().all())
        if unit != 1:
            assert bool((weights == torch.tensor([0.0, 1.0])).all())
    assert {name.split(".")[1] for name, _ in router.named_parameters()} == {"1"}


def test_gate_overhead_is_that_of_the_paper() -> None:
    channels = [16] * 19 + [32] * 18 + [64] * 17
    assert sum(p.numel() for p in GateRouter(channels).parameters()) == 35_916


def test_a_hidden_width_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match="hidden must be at least 1, got 0; ConvNet-AIG uses 16"):
        GateConfig(hidden=0)
