"""One ONNX graph, written node by node: constants, shared weights, and the number of images left open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from sidestep.errors import ExportError
from sidestep.evaluation.rivals import installed
from sidestep.targets.map_shapes import Shape

# Opset 20 belongs to IR version 9 and later; older runtimes than ours refuse newer ones.
OPSET, IR_VERSION = 20, 10
BATCH = "batch"
# Name, shape without the batch, and type of an input or output: "float" or "int64", with a row for every
# image, or "list", whole numbers without one.
Port = tuple[str, Shape, str]
# Bytes from which on a weight lies in the file that segments share. Numbers of shapes must lie in the graph.
_EXTERNAL = 1024


def check_onnx() -> None:
    """Return if ONNX files can be written here.

    Raises:
        ExportError: without the package.
    """
    if not installed("onnx"):
        raise ExportError("onnx is not installed, which writes such files; `pip install 'sidestep[export]'`")


class SharedWeights:
    """The weights of several graphs in one file, each of them once.

    Attributes:
        name: of the file, beside the graphs.
        content: of it so far.
    """

    # Runtimes map the file into memory, by pages.
    _alignment = 64

    def __init__(self, name: str) -> None:
        self.name = name
        self.content = bytearray()
        self._places: dict[bytes, tuple[int, int]] = {}

    def place(self, array: Any) -> tuple[int, int]:
        """Return offset and length of an array in the file."""
        data = array.tobytes()
        if data not in self._places:
            self.content += bytes(-len(self.content) % self._alignment)
            self._places[data] = len(self.content), len(data)
            self.content += data
        return self._places[data]


class OnnxGraph:
    """Collects the nodes of a graph.

    Args:
        tensors: weights of the plan.
        shapes: of its values, without the batch.
        shared: where large weights lie, or None for the graph itself.
        prefix: of all names that the graph makes up.
        num_images: of every call, or None for any number.

    Attributes:
        constant_values: values that are the same for all images, whose batch is 1.
        first: name of an input, which says how many images there are.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        shapes: Mapping[int, Shape],
        shared: SharedWeights | None,
        *,
        prefix: str = "",
        num_images: int | None = None,
    ) -> None:
        self.tensors, self.shapes, self.shared = tensors, shapes, shared
        self.prefix, self.num_images = prefix, num_images
        self.nodes: list[Any] = []
        self.constant_values: set[int] = set()
        self.first = ""
        self._initializers: dict[str, Any] = {}
        self._known: dict[tuple[bytes, tuple[int, ...], str], str] = {}
        self._outputs: set[str] = set()
        self._count = 0

    def node(self, kind: str, inputs: Iterable[str], out: str | None = None, **attributes: Any) -> str:
        """Write a node and return the name of its output."""
        (name,) = self.several(kind, inputs, 1, **attributes) if out is None else [out]
        if out is not None:
            self._write(kind, inputs, [out], attributes)
        return name

    def several(self, kind: str, inputs: Iterable[str], count: int, **attributes: Any) -> list[str]:
        """Write a node with some outputs and return their names."""
        names = [f"{self.prefix}t{self._count}_{index}" for index in range(count)]
        self._write(kind, inputs, names, attributes)
        return names

    def _write(self, kind: str, inputs: Iterable[str], outputs: list[str], attributes: Any) -> None:
        from onnx import helper

        name = f"{self.prefix}n{self._count}"
        self._count += 1
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))

    def yields(self, name: str, out: str) -> None:
        """Let an output of the graph be what a node computes, under its name, or a copy where that cannot be.

        Args:
            name: of what is computed.
            out: of the output.
        """
        maker = next((node for node in self.nodes if name in node.output), None)
        if maker is None or name in self._outputs:
            self.node("Identity", [name], out)
            return
        self._outputs.add(out)
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, known in enumerate(names):
                    if known == name:
                        names[place] = out

    def weight(self, name: str, shape: tuple[int, ...] | None = None) -> str:
        """Return the name of a weight of the plan in the graph, perhaps in another shape."""
        tensor = self.tensors[name] if shape is None else self.tensors[name].reshape(shape)
        return self.constant(tensor.numpy(), name)

    def constant(self, array: Any, name: str = "") -> str:
        """Return the name of an array in the graph; equal ones are one."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        key = (array.tobytes(), array.shape, str(array.dtype))
        if key not in self._known:
            label = name if name and name not in self._initializers else f"c{len(self._initializers)}"
            label = self.prefix + label
            self._initializers[label] = self._tensor(label, array)
            self._known[key] = label
        return self._known[key]

    def numbers(self, *values: int) -> str:
        """Return the name of a list of whole numbers."""
        return self.constant(np.asarray(values, np.int64))

    def number(self, value: float) -> str:
        """Return the name of a number."""
        return self.constant(np.asarray(value, np.float32))

    def spread(self, name: str, shape: Shape) -> str:
        """Return a constant, whose batch is 1, for all images."""
        if self.num_images == 1:
            return name
        count = self.node("Shape", [self.first], start=0, end=1)
        whole = self.node("Concat", [count, self.numbers(*shape)], axis=0) if shape else count
        return self.node("Expand", [name, whole])

    def model(self, name: str, inputs: list[Port], outputs: list[Port]) -> bytes:
        """Return the graph as an ONNX file.

        Args:
            name: of the graph.
            inputs: of the graph.
            outputs: of the graph.
        """
        from onnx import checker, helper

        graph = self._whole(name, inputs, outputs)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="sidestep"
        )
        model.ir_version = IR_VERSION
        if self.shared is None:
            checker.check_model(model)
        content: bytes = model.SerializeToString()
        return content

    def body(self, outputs: list[Port]) -> Any:
        """Return the graph as the branch of an `If`, which reads what is around it."""
        return self._whole(f"{self.prefix}body", [], outputs)

    def _whole(self, name: str, inputs: list[Port], outputs: list[Port]) -> Any:
        from onnx import TensorProto, helper

        def info(label: str, shape: Shape, kind: str) -> Any:
            images = BATCH if self.num_images is None else self.num_images
            sides = shape if kind == "list" else (images, *shape)
            number = TensorProto.FLOAT if kind == "float" else TensorProto.INT64
            return helper.make_tensor_value_info(label, number, sides)

        return helper.make_graph(
            self.nodes,
            name,
            [info(*given) for given in inputs],
            [info(*given) for given in outputs],
            initializer=list(self._initializers.values()),
        )

    def _tensor(self, label: str, array: Any) -> Any:
        from onnx import TensorProto, numpy_helper

        if self.shared is None or array.nbytes < _EXTERNAL:
            return numpy_helper.from_array(array, label)
        offset, length = self.shared.place(array)
        tensor = TensorProto(
            name=label,
            dims=array.shape,
            data_type=TensorProto.FLOAT,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", self.shared.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
