"""Fused passes: the numbers and statistics of the modules, which run wherever fusing is not possible."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sidestep.execution.execution import blend, masked
from sidestep.fused.blocks import cheap_mean
from sidestep.fused.by_hand import blend_outputs
from sidestep.fused.companions import companions_of
from sidestep.fused.norms import norm_add_relu, norm_blend, norm_relu
from sidestep.fused.training_execution import compiled
from sidestep.layers.pool import averaging_by, global_average_pool, spatial_mean
from sidestep.layers.residual import BasicBlock, BlockConfig, Bottleneck, HalfBlock, ResidualUnit
from tests import strategies

# Every program is compiled anew.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings are the compiler's own

CHANNELS_LAST = torch.channels_last
UNITS: dict[str, Callable[[], ResidualUnit]] = {
    "keeps its shape": partial(BasicBlock, 16, 16, stride=1, stage=0),
    "changes its shape": partial(BasicBlock, 8, 16, stride=2, stage=0),
    "projects": partial(BasicBlock, 8, 16, stride=2, stage=0, config=BlockConfig(shortcut="B")),
    "blends branches": partial(BasicBlock, 16, 16, stride=1, stage=0, config=BlockConfig(mix="branch")),
    "squeezes": partial(BasicBlock, 16, 16, stride=1, stage=0, config=BlockConfig(se_ratio=2)),
    "halves": partial(HalfBlock, 16, 16, stride=1, stage=0),
    "bottleneck": partial(Bottleneck, 16, 16, stride=1, stage=0),
}


def lively_norm(channels: int = 16) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def map_of(seed: int, channels: int = 16, *, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
    x = torch.randn(4, channels, 5, 6, generator=strategies.generator(seed)) + mean
    return x.to(dtype).to(memory_format=CHANNELS_LAST).requires_grad_()


def plain_norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(norm(x))


def plain_norm_blend(norm: nn.Module, x: Tensor, skipped: Tensor, execution: Tensor) -> Tensor:
    return blend_outputs(norm(x), skipped, execution)


def plain_norm_add_relu(norm: nn.Module, x: Tensor, skipped: Tensor) -> Tensor:
    return torch.relu(norm(x) + skipped)


PLAIN: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    norm_relu: plain_norm_relu,
    norm_blend: plain_norm_blend,
    norm_add_relu: plain_norm_add_relu,
}


def run(function: Callable[..., Tensor], norm: nn.BatchNorm2d, *inputs: Tensor) -> dict[str, Tensor]:
    """Return output, its means, gradients and statistics."""
    norm.load_state_dict(norm.state_dict() | {"running_mean": torch.zeros(16), "running_var": torch.ones(16)})
    norm.zero_grad()
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(norm, leaves[0].clone(), *leaves[1:])
    with averaging_by(cheap_mean if function in PLAIN else spatial_mean):
        means = global_average_pool(out)
    weights = torch.randn(out.shape, generator=strategies.generator(7)).to(out.dtype)
    loss = (out * weights).sum().float() + means.float().square().sum()
    loss.backward()
    grads = {f"grad {n}": leaf.grad for n, leaf in enumerate(leaves)}
    learnt = {name: p.grad.clone() for name, p in norm.named_parameters()}
    statistics = {name: b.clone() for name, b in norm.named_buffers() if name != "num_batches_tracked"}
    return {"out": out.detach(), "means": means.detach()} | grads | learnt | statistics


def compare(function: Callable[..., Tensor], *inputs: Tensor, **tolerance: float) -> None:
    torch.manual_seed(0)
    norm = lively_norm()
    mine, theirs = (run(way, norm, *inputs) for way in (function, PLAIN[function]))
    for name, value in theirs.items():
        torch.testing.assert_close(
            mine[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_functions_have_the_values_and_gradients_of_the_modules(mean: float) -> None:
    # Around 100 a float32 has seven binary digits less, for torch's own moments too.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if not mean else {"rtol": 1e-3, "atol": 1e-3}
    x, skipped, execution = map_of(0, mean=mean), map_of(1), torch.rand(4)
    compare(norm_relu, x, **tolerance)
    compare(norm_blend, x, skipped, execution, **tolerance)
    compare(norm_add_relu, x, skipped, **tolerance)


def test_a_map_in_the_other_memory_format_has_the_same_numbers() -> None:
    x, skipped, execution = map_of(0).contiguous(), map_of(1).contiguous(), torch.rand(4)
    compare(norm_relu, x, rtol=1e-5, atol=1e-5)
    compare(norm_blend, x, skipped, execution, rtol=1e-5, atol=1e-5)
    compare(norm_add_relu, x, skipped, rtol=1e-5, atol=1e-5)


def test_bfloat16_maps_stay_bfloat16_and_channels_last() -> None:
    x, skipped, execution = map_of(0, dtype=torch.bfloat16), map_of(1, dtype=torch.bfloat16), torch.rand(4)
    outs = (
        norm_relu(lively_norm(), x),
        norm_blend(lively_norm(), x, skipped, execution),
        norm_add_relu(lively_norm(), x, skipped),
    )
    for out in outs:
        assert out.dtype == torch.bfloat16
        assert out.is_contiguous(memory_format=CHANNELS_LAST)
    compare(norm_relu, x, rtol=0.05, atol=0.05)


def test_a_channel_that_is_constant_becomes_its_bias() -> None:
    norm, x = nn.BatchNorm2d(16), torch.full((4, 16, 5, 6), 1000.1).to(memory_format=CHANNELS_LAST)
    nn.init.constant_(norm.bias, 0.25)
    assert torch.equal(norm_relu(norm, x), torch.full_like(x, 0.25))


def test_statistics_count_the_batch_once() -> None:
    norm = lively_norm()
    norm_relu(norm, map_of(0))
    assert int(norm.num_batches_tracked) == 1


def test_means_are_those_of_the_map() -> None:
    out = norm_blend(lively_norm(), map_of(0), map_of(1), torch.rand(4))
    means = cheap_mean(out)
    torch.testing.assert_close(means, out.mean((2, 3)))


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("frozen", [False, True])
def test_units_train_as_they_do_without(kind: str, frozen: bool) -> None:
    torch.manual_seed(0)
    unit = UNITS[kind]().to(memory_format=CHANNELS_LAST).requires_grad_(not frozen)
    kept = {name: value.clone() for name, value in unit.state_dict().items()}
    x = torch.rand(4, unit.in_channels, 6, 6).to(memory_format=CHANNELS_LAST)
    weights = torch.rand(4, unit.num_options).softmax(1)
    results = []
    for way in (compiled.run, blend):
        unit.load_state_dict(kept)
        unit.zero_grad()
        images, gates = x.clone().requires_grad_(not frozen), weights.clone().requires_grad_()
        out = way(unit, images, gates)
        out.square().sum().backward()
        grads = [images.grad, gates.grad, *[p.grad for p in unit.parameters()]]
        results.append([out.detach(), *[g for g in grads if g is not None], *unit.state_dict().values()])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_units_in_a_row_train_as_they_do_without() -> None:
    torch.manual_seed(0)
    shapes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1)]
    units = nn.ModuleList(BasicBlock(a, b, stride=stride, stage=0) for a, b, stride in shapes)
    units.to(memory_format=CHANNELS_LAST)
    kept = {name: value.clone() for name, value in units.state_dict().items()}
    images = torch.rand(4, 16, 6, 6).to(memory_format=CHANNELS_LAST)
    scales = torch.rand(len(shapes))
    results = []
    for execution, mean in ((compiled, cheap_mean), (masked, spatial_mean)):
        units.load_state_dict(kept)
        units.zero_grad()
        x = first = images.clone().requires_grad_()
        pooled = []
        for unit, scale in zip(units, scales, strict=True):
            # The weights depend on the map, as a router's do.
            gate = torch.sigmoid(scale * mean(x).mean(1))
            x = execution.run(unit, x, torch.stack([1 - gate, gate], dim=1))
            pooled.append(mean(x))
        torch.cat(pooled, dim=1).square().sum().backward()
        assert first.grad is not None
        results.append([x.detach(), first.grad, *[p.grad for p in units.parameters() if p.grad is not None]])
    assert len(results[0]) == 2 + len(list(units.parameters()))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("se_ratio", [None, 4])
def test_units_that_nobody_decides_about_train_as_they_do_without(se_ratio: int | None) -> None:
    torch.manual_seed(0)
    shapes, config = [(16, 16, 1), (16, 16, 1), (16, 32, 2)], BlockConfig(se_ratio=se_ratio)
    units = nn.ModuleList(BasicBlock(a, b, stride=s, stage=0, config=config) for a, b, s in shapes)
    units.to(memory_format=CHANNELS_LAST)
    kept = {name: value.clone() for name, value in units.state_dict().items()}
    images = torch.rand(4, 16, 6, 6).to(memory_format=CHANNELS_LAST)
    results = []
    for execution, mean in ((compiled, cheap_mean), (masked, spatial_mean)):
        units.load_state_dict(kept)
        units.zero_grad()
        x = first = images.clone().requires_grad_()
        for unit in units:
            x = execution.execute(unit, x)
        mean(x).square().sum().backward()
        assert first.grad is not None
        grads = [p.grad for p in units.parameters() if p.grad is not None]
        results.append([x.detach(), first.grad, *grads, *units.state_dict().values()])
    assert len(results[0]) == 2 + len(list(units.parameters())) + len(kept)
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_gradients_of_a_map_are_added_on_the_way() -> None:
    x, execution = map_of(0), torch.rand(4)
    first = norm_blend(lively_norm(), x, map_of(1), execution)
    second = norm_blend(lively_norm(), first * 2, first, execution)
    companions = companions_of(first)
    assert companions is not None and companions.twin.data_ptr() == first.data_ptr()
    seen = []
    first.register_hook(lambda grad: seen.append("map"))
    companions.twin.register_hook(lambda grad: seen.append("twin"))
    second.square().sum().backward()
    assert sorted(seen) == ["map", "twin"]


@pytest.mark.parametrize(
    "norm",
    [
        lively_norm().eval(),
        nn.BatchNorm2d(16, affine=False),
        nn.BatchNorm2d(16, momentum=None),
        nn.BatchNorm2d(16, track_running_stats=False),
        nn.SyncBatchNorm(16).eval(),
        nn.Identity(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_that_are_not_batch_norms_in_training_are_called(norm: nn.Module) -> None:
    x, skipped, execution = map_of(0).detach(), map_of(1), torch.rand(4)
    mine = (
        norm_relu(norm, x.clone()),
        norm_blend(norm, x, skipped, execution),
        norm_add_relu(norm, x, skipped),
    )
    expected = tuple(
        plain(norm, *arguments)
        for plain, arguments in (
            (plain_norm_relu, (x,)),
            (plain_norm_blend, (x, skipped, execution)),
            (plain_norm_add_relu, (x, skipped)),
        )
    )
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
