"""Given paths: drawn, followed in PyTorch, ONNX Runtime and OpenVINO, and what was asked on the way."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sidestep.cost.macs import measure_cost
from sidestep.errors import ExecutionError
from sidestep.evaluation import given_paths, onnx_pieces
from sidestep.evaluation.given_paths import Paths, draw_paths, pytorch_paths
from sidestep.evaluation.onnx_pieces import onnx_paths
from sidestep.execution.prepare import prepare
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.exit_rule import ExitRule
from tests.doubles import (
    TableRouter,
    attached_network,
    lively_network,
    shared_exit_network,
    shared_halting_network,
)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network_of(name: str) -> DynamicNetwork:
    return {
        "routed": lambda: lively_network(8),
        "routed with exits": attached_network,
        "static with exits": lambda: attached_network("static"),
        "msdnet": lambda: shared_exit_network("msdnet"),
    }[name]()


def wanted(network: DynamicNetwork, x: Tensor, paths: Paths) -> Tensor:
    """Return what masked execution says about images whose exits are told, with a router that is told."""
    router = None if network.router is None else TableRouter(paths.options)
    output = network(x, router=router)
    if output.exit_logits is None:
        return output.logits
    return output.exit_logits[paths.exits, torch.arange(len(x))]


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("routed", "pytorch"),
        ("routed with exits", "pytorch"),
        ("static with exits", "pytorch"),
        ("msdnet", "pytorch"),
        ("routed", "onnxruntime"),
        pytest.param("routed with exits", "onnxruntime", marks=pytest.mark.slow),
        pytest.param("routed", "openvino", marks=pytest.mark.exhaustive),
        pytest.param("static with exits", "openvino", marks=pytest.mark.exhaustive),
        pytest.param("msdnet", "onnxruntime", marks=pytest.mark.exhaustive),
    ],
)
def test_images_take_the_paths_that_they_are_given(name: str, runtime: Any) -> None:
    network, x = network_of(name), images(6)
    prepared = prepare(network, x)
    chooses = network.router is not None
    # The fifth batch is the first that is mixed everywhere.
    paths = draw_paths(measure_cost(network, (16, 16)), 6, 9, chooses=chooses)[-1]
    if runtime == "pytorch":
        runner = pytorch_paths(prepared, "float32", "confidence")
    else:
        runner = onnx_paths(prepared, runtime, "float32", 6, "confidence")
    with torch.inference_mode():
        found = runner.run(runner.convert(x), paths)
        again = runner.run(runner.convert(x), paths)
    expected = wanted(network, x, paths)
    assert isinstance(found, Tensor) and isinstance(again, Tensor)
    assert torch.allclose(found, expected, atol=2e-4 * expected.abs().max().item() + 1e-5)
    assert torch.equal(found, again)


def test_paths_differ_in_cost_from_one_extreme_to_the_other() -> None:
    network = attached_network()
    cost = measure_cost(network, (16, 16))
    drawn = draw_paths(cost, 64, 60, chooses=True)
    first, cheapest = drawn[0], drawn[1]
    assert (first.exits == 0).all() and (first.options == 1).all() and (cheapest.options == 0).all()
    assert len(drawn) == 60 and {tuple(paths.options.shape) for paths in drawn} == {(64, len(cost.options))}
    rates = torch.stack([paths.options.double().mean() for paths in drawn[6:]])
    left = torch.stack([(paths.exits == 0).double().mean() for paths in drawn[6:]])
    assert rates.min() < 0.1 and rates.max() > 0.9 and left.min() < 0.15 and left.max() > 0.85
    assert set(torch.cat([paths.exits for paths in drawn]).tolist()) == {0, 1, 2}
    shares = torch.stack([paths.options.double().mean(dim=0) for paths in drawn])
    assert torch.equal(shares[7::2], shares[7::2].round()) and (shares[7::2].std(dim=0) > 0.4).all()
    assert (shares[6::2].std(dim=0) < 0.4).all()
    again = draw_paths(cost, 64, 60, chooses=True)
    assert all(torch.equal(a.options, b.options) for a, b in zip(drawn, again, strict=True))
    assert all((paths.options == 1).all() for paths in draw_paths(cost, 4, 20, chooses=False))


def test_routers_and_exits_are_asked_and_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = attached_network()
    asked: list[tuple[int, int]] = []
    assert network.router is not None
    ask = network.router.forward

    def noted(unit: int, features: Tensor, state: Any) -> Any:
        asked.append((unit, len(features)))
        return ask(unit, features, state)

    monkeypatch.setattr(network.router, "forward", noted)
    certain: list[int] = []
    known = ExitRule.certainty

    def certainty(self: ExitRule, index: int, *rest: Any) -> Any:
        certain.append(index)
        return known(self, index, *rest)

    monkeypatch.setattr(ExitRule, "certainty", certainty)
    # Copies of the network would ask copies of the router.
    monkeypatch.setattr(given_paths, "cast", lambda network, precision: network)
    runner = pytorch_paths(network, "float32", "margin")
    last = Paths(options=torch.zeros(3, len(network.units), dtype=torch.long), exits=torch.tensor([2, 0, 2]))
    runner.run(images(3), last)
    assert certain == [0, 1, 2]
    before = network.units_before[0]
    assert asked == [(unit, 3 if unit < before else 2) for unit in range(len(network.units))]


def test_a_network_that_halts_has_no_such_paths() -> None:
    with pytest.raises(ExecutionError, match="got one that halts"):
        pytorch_paths(shared_halting_network(), "float32", "confidence")


def test_what_a_runtime_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = attached_network()
    with pytest.raises(ExecutionError, match="precision must be float32 in onnxruntime"):
        onnx_paths(network, "onnxruntime", "bfloat16", 1, "confidence")
    monkeypatch.setattr(onnx_pieces, "openvino_precisions", lambda: {"float32"})
    with pytest.raises(ExecutionError, match="kernels for here, got bfloat16"):
        onnx_paths(network, "openvino", "bfloat16", 1, "confidence")
    monkeypatch.setattr(onnx_pieces, "installed", lambda package: package != "openvino")
    with pytest.raises(ExecutionError, match="times in openvino need openvino"):
        onnx_paths(network, "openvino", "float32", 1, "confidence")
