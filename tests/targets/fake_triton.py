"""What Triton gives a Python model, as far as ours uses it, with ONNX Runtime behind it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import text_format

TRITONSERVER_MEMORY_CPU = 0
# Where models lie, and which of them were called; a test sets the former.
REPOSITORY = Path()
CALLED: list[str] = []


def read_config(path: Path) -> Any:
    """Return a model's configuration, read with Triton's own description of it."""
    (place,) = importlib.util.find_spec("tritonclient").submodule_search_locations  # type: ignore[union-attr]
    file = Path(place) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(path.read_text(), module.ModelConfig())


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


class TritonError:
    def __init__(self, text: str) -> None:
        self.text = text

    def message(self) -> str:
        return self.text


class PreferredMemory:
    def __init__(self, kind: int) -> None:
        assert kind == TRITONSERVER_MEMORY_CPU


class InferenceResponse:
    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self.outputs = {tensor.name: tensor.values for tensor in output_tensors}
        self.failure = error

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> TritonError | None:
        return self.failure


class Asked:
    """A request of a client."""

    def __init__(self, image: Any, **parameters: Any) -> None:
        self.image, self.asked = image, json.dumps(parameters) if parameters else ""

    def parameters(self) -> str:
        return self.asked


class InferenceRequest:
    """A call of another model, whose configuration says what it takes."""

    def __init__(
        self,
        *,
        model_name: str,
        requested_output_names: list[str],
        inputs: list[Tensor],
        preferred_memory: Any,
    ) -> None:
        assert isinstance(preferred_memory, PreferredMemory)
        self.name, self.wanted, self.inputs = model_name, requested_output_names, inputs

    def exec(self) -> InferenceResponse:
        CALLED.append(self.name)
        folder = REPOSITORY / self.name
        if not folder.is_dir():
            return InferenceResponse(error=TritonError(f"no model {self.name}"))
        config = read_config(folder / "config.pbtxt")
        given = {tensor.name: tensor.values for tensor in self.inputs}
        assert set(given) == {each.name for each in config.input}
        for each in config.input:
            assert fits(each, given[each.name]), (each.name, given[each.name].shape)
        session = onnxruntime.InferenceSession(
            folder / "1" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        found = session.run(self.wanted, given)
        for each in config.output:
            if each.name in self.wanted:
                assert fits(each, found[self.wanted.index(each.name)]), each.name
        return InferenceResponse([Tensor(*pair) for pair in zip(self.wanted, found, strict=True)])


def fits(said: Any, values: Any, *, batched: bool = False) -> bool:
    """Return whether values are what a configuration says of a tensor."""
    kinds = {2: np.uint8, 9: np.int64, 11: np.float32, 12: np.float64}
    shape = values.shape[batched:]
    return (
        values.dtype == kinds[said.data_type]
        and len(shape) == len(said.dims)
        and all(side in (-1, found) for side, found in zip(said.dims, shape, strict=True))
    )


def get_input_tensor_by_name(request: Asked, name: str) -> Tensor:
    assert name == "image"
    return Tensor(name, request.image)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor:
    return Tensor(name, response.outputs[name])
