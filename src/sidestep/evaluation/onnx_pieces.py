"""Networks in ONNX Runtime or OpenVINO piece by piece, with the host between them that decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.cost.latency_book import Runtime
from sidestep.errors import ExecutionError
from sidestep.evaluation.given_paths import PathRunner, Paths, check_has_paths, run_along
from sidestep.evaluation.rivals import (
    installed,
    onnx_of,
    onnxruntime_session,
    openvino_model,
    openvino_precisions,
)
from sidestep.execution.execution import Execution
from sidestep.execution.prepare import Precision
from sidestep.internals import tree_flatten, tree_unflatten
from sidestep.layers.unit import Unit
from sidestep.networks.network import DynamicNetwork

# (B, ...) arrays of a piece's inputs -> those of its outputs.
Session = Callable[[list[Any]], Sequence[Any]]


def onnx_paths(
    network: DynamicNetwork, runtime: Runtime, precision: Precision, batch_size: int, criterion: str
) -> PathRunner:
    """Return a network whose stem, routers, options of units, and ways to exits are graphs of their own.

    Graphs are made when an image comes to them first; batches shrink between them on the host.

    Args:
        network: prepared, in float32.
        runtime: "onnxruntime" or "openvino".
        precision: of weights and features.
        batch_size: images per call.
        criterion: by which images leave.

    Raises:
        ExecutionError: where the runtime is not installed or lacks the precision, or the network halts.
    """
    check_has_paths(network)
    pieces = _Pieces(network, _sessions(runtime, precision, batch_size))

    def run(images: Tensor, paths: Paths) -> Tensor:
        return run_along(
            network, images, paths, execution=pieces.execution, criterion=criterion, call=pieces.call
        ).logits

    return PathRunner(convert=lambda images: images.contiguous(), run=run)


def _sessions(runtime: Runtime, precision: Precision, batch_size: int) -> Callable[[bytes], Session]:
    needed = [package for package in (runtime, "onnx", "onnxscript") if not installed(package)]
    if needed:
        raise ExecutionError(f"times in {runtime} need {', '.join(needed)}; `pip install {' '.join(needed)}`")
    if runtime == "onnxruntime":
        if precision != "float32":
            raise ExecutionError(f"precision must be float32 in onnxruntime, got {precision}")
        return _in_onnxruntime
    if precision not in openvino_precisions():
        raise ExecutionError(f"precision must be one that openvino has kernels for here, got {precision}")
    return partial(_in_openvino, precision=precision, batch_size=1 if batch_size == 1 else -1)


def _in_onnxruntime(onnx: bytes) -> Session:
    session = onnxruntime_session(onnx)
    names = [port.name for port in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _in_openvino(onnx: bytes, precision: Precision, batch_size: int) -> Session:
    request = openvino_model(onnx, precision, batch_size).create_infer_request()

    def run(inputs: list[Any]) -> Sequence[Any]:
        # Copies: the next call writes into the same memory.
        return [output.copy() for output in request.infer(inputs, share_inputs=True).values()]

    return run


class _Piece(nn.Module):
    """A part of a network with flat inputs and outputs.

    Args:
        network: whose weights the part uses.
        function: the part.
        arguments: an example of what it is called with.
    """

    def __init__(self, network: nn.Module, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.network = network
        self.function = function
        self.leaves, self.spec = tree_flatten(arguments)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if _is_feature(leaf) else leaf for leaf in self.leaves]
        said, _ = tree_flatten(self.function(*tree_unflatten(leaves, self.spec)))
        return tuple(leaf for leaf in said if _is_feature(leaf))


def _is_feature(leaf: Any) -> bool:
    """Return whether a leaf has one row per image: routers keep weights in their states, too."""
    return isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter | nn.Buffer)


class _Pieces:
    """The graphs of a network by their places, made when they are needed.

    Args:
        network: whose they are.
        session_of: ONNX to what runs it.
    """

    def __init__(self, network: DynamicNetwork, session_of: Callable[[bytes], Session]) -> None:
        self.network = network
        self.session_of = session_of
        self.known: dict[str, tuple[Session | None, list[Any], Any]] = {}
        self.places = {id(unit): index for index, unit in enumerate(network.units)}
        self.execution = Execution(
            name="in pieces", run=self.run_unit, execute=self.execute_unit, computes_all=False
        )

    def call(self, place: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Return what a piece computes."""
        if place not in self.known:
            self.known[place] = self._made(function, arguments)
        session, leaves, spec = self.known[place]
        if session is None:
            return function(*arguments)
        inputs = [leaf for leaf in tree_flatten(arguments)[0] if _is_feature(leaf)]
        said = iter(session([each.numpy() for each in inputs]))
        outputs = [torch.from_numpy(next(said)) if _is_feature(leaf) else leaf for leaf in leaves]
        return tree_unflatten(outputs, spec)

    def execute_unit(self, unit: Unit, x: Tensor) -> Tensor:
        """Execute a unit that nobody decides about."""
        output: Tensor = self.call(f"unit {self.places[id(unit)]}", unit.execute, (x,))
        return output

    def run_unit(self, unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
        """Run every option for the images that choose it."""
        place, options = self.places[id(unit)], weights.argmax(dim=1)
        out: Tensor | None = None
        for option in sorted(set(options.tolist())):
            rows = (options == option).nonzero().squeeze(1)
            part = self.call(f"option {option} of unit {place}", partial(unit.run, option), (x[rows],))
            out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
            out[rows] = part
        assert out is not None  # every image has an option
        return out

    def _made(
        self, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> tuple[Session | None, list[Any], Any]:
        given = tree_flatten(arguments)[0]
        leaves, spec = tree_flatten(function(*arguments))
        if all(any(leaf is each for each in given) or not _is_feature(leaf) for leaf in leaves):
            return None, leaves, spec  # it computes nothing
        piece = _Piece(self.network, function, arguments)
        tensors = [leaf for leaf in given if _is_feature(leaf)]
        # Two images: with one the exporter would take their number for a constant.
        example = tuple(each[:1].repeat(2, *[1] * (each.dim() - 1)) for each in tensors)
        names = [f"in{index}" for index in range(len(tensors))]
        outputs = [f"out{index}" for index, leaf in enumerate(leaves) if _is_feature(leaf)]
        shapes = (tuple({0: "batch"} for _ in tensors),)
        with torch.inference_mode(False), torch.no_grad():
            example = tuple(each.clone() for each in example)
            onnx = onnx_of(piece.eval(), example, dynamic_shapes=shapes, names=(names, outputs))
        return self.session_of(onnx), leaves, spec
