"""What runs a served network: images in, and a word about every image as soon as it is done."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sidestep.types import CostModel

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a network says about one image.

    Attributes:
        logits: (C,) class scores.
        temperature: by which they are divided before they become probabilities.
        path: (L,) option of every unit, -1 behind the exit.
        exit: at which the image left; the number of early exits where it stayed to the end.
        macs: that it took.
    """

    logits: Floats
    temperature: float
    path: Integers
    exit: int
    macs: float

    @property
    def probabilities(self) -> Floats:
        """Return (C,) softmax(logits / temperature)."""
        scaled = self.logits.astype(np.float64) / self.temperature
        shares = np.exp(scaled - scaled.max())
        probabilities: Floats = (shares / shares.sum()).astype(np.float32)
        return probabilities


class Answers(Protocol):
    """Room for what a network says about a batch."""

    def row(self, index: int) -> Row:
        """Return what it says about an image that is done."""
        ...


@dataclass(slots=True)
class KeptRows:
    """`Answers` that are kept as they come."""

    rows: dict[int, Row] = field(default_factory=dict)

    def row(self, index: int) -> Row:
        return self.rows[index]

    def keep(self, index: int, row: Row, done: int) -> None:
        """Keep what a network says about an image, and tell a file descriptor its index."""
        self.rows[index] = row
        os.write(done, index.to_bytes(8, "little"))


class Runner(Protocol):
    """A network that is ready to run.

    Attributes:
        name: "engine", "pytorch", "onnxruntime" or "openvino".
        precision: of weights and maps.
        num_threads: that share a batch.
        num_exits: number E of early exits.
        never: threshold with which no image leaves.
        always: threshold with which every image leaves.
    """

    name: str
    precision: str
    num_threads: int
    num_exits: int
    never: float
    always: float

    def room_for(self, count: int) -> Any:
        """Return the `Answers` that a call fills."""
        ...

    def run(self, images: npt.NDArray[Any], settings: Doubles, out: Any, done: int) -> None:
        """Run a batch.

        Args:
            images: (B, H, W, C) uint8 pixels, or (B, C, H, W) normalised float32.
            settings: (B, E) thresholds of every image, as the network's own; where gates have a dial (B, L)
                biases on top of it.
            out: what `room_for` has returned for B images.
            done: file descriptor that gets the index of every image that is done, 8 bytes.
        """
        ...


class PriceList:
    """What a path costs, for one image at a time and without PyTorch.

    Args:
        cost: the price list, in MACs.
        num_exits: early exits of what runs; a plan of a network that nobody calibrated has none.
    """

    def __init__(self, cost: CostModel, num_exits: int) -> None:
        self.unused_exits = 0 if cost.exits is None else len(cost.exits) - 1 - num_exits
        self.fixed, self.full = cost.fixed, cost.full
        self.options = cost.options.double().numpy()
        self.routers = cost.routers.double().numpy()
        self.exits = None if cost.exits is None else cost.exits.double().numpy()
        self.units_before = None if cost.exit_units is None else cost.exit_units.numpy()
        self.num_units, self.num_options = self.options.shape

    def path(self, options: Integers, exit: int) -> Integers:
        """Return the (L,) options of all units, where a plan without choices lists none of them."""
        if len(options) == self.num_units:
            return options
        path = np.full(self.num_units, self.num_options - 1)
        if self.units_before is not None:
            path[self.units_before[exit + self.unused_exits] :] = -1
        return path

    def macs(self, path: Integers, exit: int) -> float:
        """Return the MACs of a path, with those of the routers that were asked."""
        asked = path >= 0
        units = np.arange(self.num_units)[asked]
        spent = self.fixed + self.options[units, path[asked]].sum() + self.routers[asked].sum()
        return float(spent if self.exits is None else spent + self.exits[exit + self.unused_exits])
