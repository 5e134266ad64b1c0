"""The relational router as one program: the numbers and statistics of its modules."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from sidestep.layers.programs import fused_passes
from sidestep.routing import fused_relation
from sidestep.routing.relational import RelationalConfig, RelationalRouter
from tests.doubles import enliven

pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler's own

CHANNELS = [8, 8, 12, 12]
CONFIGS = {
    "the paper's": RelationalConfig(dim=16),
    "vanilla": RelationalConfig(dim=16, gamma=0),
    "by likeness": RelationalConfig(dim=16, gamma="auto", normalize_adj=True),
    "normalised": RelationalConfig(dim=16, gamma=1.0, normalize_adj=True, reach=3),
    "no reach": RelationalConfig(dim=16, reach=0),
    "one GCN": RelationalConfig(dim=16, share_gcn="all"),
}


def run(router: RelationalRouter, *, fuses: bool, low: bool = False) -> dict[str, Tensor]:
    """Return logits, gradients and statistics of all units, the first three of which have a loss."""
    torch.manual_seed(0)
    maps = [torch.randn(6, channels, 4, 5, requires_grad=True) for channels in CHANNELS]
    router.zero_grad()
    state, logits = router.begin(maps[0]), []
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=low)
    with fused_passes() if fuses else nullcontext(), autocast:
        for unit, features in enumerate(maps):
            scores, state = router(unit, features, state)
            logits.append(scores)
    sum((scores.float() * torch.randn(scores.shape)).sum() for scores in logits[:3]).backward()  # type: ignore[union-attr]
    grads = {f"map {n}": features.grad for n, features in enumerate(maps)}
    grads |= {name: p.grad for name, p in router.named_parameters()}
    found = {f"logits {n}": scores.detach() for n, scores in enumerate(logits)}
    found |= {name: buffer.clone() for name, buffer in router.named_buffers()}
    return found | {f"gradient of {name}": grad.clone() for name, grad in grads.items() if grad is not None}


def compare(config: RelationalConfig, *, low: bool = False, num_options: int = 2, tolerance: float) -> None:
    results = []
    for fuses in (True, False):
        torch.manual_seed(0)
        router = RelationalRouter(CHANNELS, [0] * 4, config, num_options=num_options)
        enliven(router)
        results.append(run(router.train(), fuses=fuses, low=low))
    mine, theirs = results
    # The last unit has no loss: what is zero here has no gradient there.
    assert all(not value.any() for name, value in mine.items() if name not in theirs)
    for name, value in theirs.items():
        assert mine[name].dtype == value.dtype, name
        torch.testing.assert_close(
            mine[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_trains_as_the_modules_do(kind: str) -> None:
    compare(CONFIGS[kind], tolerance=1e-5)


def test_it_has_as_many_options_as_the_units() -> None:
    compare(RelationalConfig(dim=16), num_options=3, tolerance=1e-5)


def test_it_is_as_exact_as_bfloat16_under_autocast() -> None:
    compare(RelationalConfig(dim=16), low=True, tolerance=0.06)


@pytest.mark.parametrize("why", ["not asked", "no BatchNorm", "in evaluation"])
def test_modules_run_where_a_program_would_not_do_the_same(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("must not be compiled")

    monkeypatch.setattr(fused_relation, "compiled", refuse)
    router = RelationalRouter([8], [0], RelationalConfig(dim=16, batch_norm=why != "no BatchNorm"))
    router.train(why != "in evaluation")
    images = torch.randn(4, 8, 2, 2)
    with nullcontext() if why == "not asked" else fused_passes():
        router(0, images, router.begin(images))


def test_one_image_alone_has_no_variance_to_train_with() -> None:
    router = RelationalRouter([8], [0], RelationalConfig(dim=16)).train()
    images = torch.randn(1, 8, 2, 2)
    with fused_passes(), pytest.raises(ValueError, match="more than 1 value per channel"):
        router(0, images, router.begin(images))
