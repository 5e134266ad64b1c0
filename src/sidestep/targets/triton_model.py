"""A network in segments as a model of Triton's Python backend, which calls a model for every graph.

Lies in a folder that `sidestep export --to triton` has written (docs/segments.md), with the manifest and the
runner beside it; Triton imports it there, and it needs NumPy alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class TritonPythonModel:
    """Answers requests for images together, and leaves graphs out that an image does not need."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest; models of the graphs are called like this one, and the graph."""
        sys.path.append(str(Path(__file__).parent))
        import triton_python_backend_utils
        from sidestep_segments import Segments

        self.triton, self.name = triton_python_backend_utils, args["model_name"]
        self.segments = Segments(Path(__file__).parent, self._graph)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response to every request, an error for what is no picture or no budget."""
        failed: dict[int, Exception] = {}
        asked: dict[int, tuple[Any, Any]] = {}
        for number, request in enumerate(requests):
            try:
                asked[number] = self._read(request)
            except (TypeError, ValueError) as error:
                failed[number] = error
        answers: dict[int, list[Any]] = {}
        try:
            answers = self._answers(asked)
        except Exception as error:  # of a graph: all that were to run together have none
            failed |= dict.fromkeys(asked, error)
        return [
            self.triton.InferenceResponse(output_tensors=answers[number])
            if number in answers
            else self.triton.InferenceResponse(error=self.triton.TritonError(str(failed[number])))
            for number in range(len(requests))
        ]

    def _read(self, request: Any) -> tuple[Any, Any]:
        """Return (N, C, H, W) images of a request, and the (N, E) doubts with which they leave."""
        pictures = self.triton.get_input_tensor_by_name(request, "image").as_numpy()
        if pictures.ndim != 4 or not len(pictures):
            raise ValueError(f"image must be (N, h, w, C) of uint8, N from 1, got {pictures.shape}")
        budget = json.loads(request.parameters() or "{}").get("budget")
        if isinstance(budget, bool) or not isinstance(budget, int | float | None):
            raise ValueError(f"budget must be a number, got {budget!r}")
        limits = np.array(self.segments.limits(budget), np.float32)
        images = np.stack([self.segments.pixels(picture) for picture in pictures])
        return images, np.broadcast_to(limits, (len(images), len(limits)))

    def _answers(self, asked: dict[int, tuple[Any, Any]]) -> dict[int, list[Any]]:
        """Return the outputs of all requests that are asked together."""
        if not asked:
            return {}
        images, limits = (np.concatenate(column) for column in zip(*asked.values(), strict=True))
        answer = self.segments(images, limits=limits)
        outputs = {
            "probabilities": answer.probabilities,
            "class": answer.probabilities.argmax(axis=1)[:, None],
            "exit": answer.exits[:, None],
            "macs": answer.macs[:, None],
        }
        if answer.options.shape[1]:
            outputs["path"] = answer.options
        ends = np.cumsum([len(images) for images, _ in asked.values()])
        return {
            number: [
                self.triton.Tensor(name, np.ascontiguousarray(values[end - len(asked[number][0]) : end]))
                for name, values in outputs.items()
            ]
            for number, end in zip(asked, ends, strict=True)
        }

    def _graph(self, component: str) -> Callable[[dict[str, Any], list[str]], list[Any]]:
        """Return what lets Triton compute a graph, on whatever device its model is placed."""
        triton = self.triton
        here = triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU)

        def run(inputs: dict[str, Any], outputs: list[str]) -> list[Any]:
            said = triton.InferenceRequest(
                model_name=f"{self.name}_{component}",
                requested_output_names=outputs,
                inputs=[triton.Tensor(name, np.ascontiguousarray(value)) for name, value in inputs.items()],
                preferred_memory=here,
            ).exec()
            if said.has_error():
                raise RuntimeError(said.error().message())
            return [triton.get_output_tensor_by_name(said, name).as_numpy() for name in outputs]

        return run
