"""Served networks in segments, in ONNX Runtime or OpenVINO."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sidestep.serve.runner import Doubles, KeptRows, Row
from sidestep.targets.read_segments import OpenedSegments

# Of limits, JSON has no infinities.
_BEYOND = 3e38


class SegmentRunner:
    """A `Runner` that is the host program of segments; its thresholds are the largest doubts.

    Args:
        opened: folder of segments.
    """

    precision = "float32"
    never, always = -_BEYOND, _BEYOND

    def __init__(self, opened: OpenedSegments) -> None:
        self.segments, self.temperatures = opened.segments, opened.temperatures
        self.name = opened.runtime
        self.num_threads = opened.num_threads
        self.num_exits = len(opened.temperatures) - 1
        images = opened.route["input"]
        self.mean, self.std = np.float32(images["mean"]), np.float32(images["std"])

    def room_for(self, count: int) -> KeptRows:
        return KeptRows()

    def run(self, images: npt.NDArray[Any], settings: Doubles, out: KeptRows, done: int) -> None:
        if images.dtype == np.uint8:
            scaled = (images.astype(np.float32) / 255 - self.mean) / self.std
            images = scaled.transpose(0, 3, 1, 2)
        limits = np.clip(settings, -_BEYOND, _BEYOND)
        for rows, answer in self.segments.leaving(images, limits):
            for place, index in enumerate(rows.tolist()):
                exit = int(answer.exits[place])
                row = Row(
                    logits=answer.logits[place],
                    temperature=self.temperatures[exit],
                    path=answer.options[place],
                    exit=exit,
                    macs=float(answer.macs[place]),
                )
                out.keep(index, row, done)
