"""The latency book: what every part of a network takes on one machine in one runtime, in milliseconds.

It is a price list like that of the MACs, so that whatever takes a budget takes one in milliseconds as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sidestep.errors import RecipeError
from sidestep.files import read_json, write_file
from sidestep.types import CostModel

Runtime = Literal["engine", "pytorch", "onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
_AGAIN = "measure it again with `sidestep bench RUN --book RUNTIME`"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyBook:
    """What the parts of a network take.

    Attributes:
        prices: in milliseconds per image. The cheapest option of a unit and its router have no price of their
            own: every image on its way to an exit pays them, and they are in the price of that way.
        runtime: that was measured.
        precision: of weights and features.
        batch_size: images per call.
        error: mean difference between predicted and measured time of paths that prices were not fitted to,
            as a share of the time.
        network: what was measured: model and size of the images.
        hardware: processor, flags, cores and threads in use.
        versions: of Python and the runtimes.
    """

    prices: CostModel
    runtime: Runtime
    precision: str
    batch_size: int
    error: float
    network: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]

    @property
    def name(self) -> str:
        """Return what the book is called among those of a run, such as "engine-float32-1"."""
        return f"{self.runtime}-{self.precision}-{self.batch_size}"


def as_values(book: LatencyBook) -> dict[str, Any]:
    """Return a latency book as plain values, ready for JSON."""
    prices = {part.name: _plain(getattr(book.prices, part.name)) for part in fields(CostModel)}
    return {part.name: getattr(book, part.name) for part in fields(LatencyBook)} | {"prices": prices}


def save_book(path: Path, book: LatencyBook) -> None:
    """Write a latency book as JSON.

    Raises:
        OutputError: when it cannot be written.
    """
    write_file(path, json.dumps(as_values(book), indent=1) + "\n", what="latency book")


def read_book(path: Path) -> LatencyBook:
    """Return the latency book in a file.

    Raises:
        RecipeError: when the file holds none.
    """
    values = read_json(path, what="latency book", way_out=_AGAIN)
    try:
        prices = {name: _tensor(name, value) for name, value in values["prices"].items()}
        book = LatencyBook(**values | {"prices": CostModel(**prices)})
        if book.prices.unit != "ms" or book.runtime not in RUNTIMES or not _are_numbers(book.prices):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"latency book {path} must be one that `bench --book` has written, and it is not; {_AGAIN}"
        ) from error
    return book


def _are_numbers(prices: CostModel) -> bool:
    """Return whether all prices are finite and none is below 0."""
    parts = (prices.options, prices.routers, prices.exits, prices.static, prices.fixed)
    found = [torch.as_tensor(part).double().flatten() for part in parts if part is not None]
    return all(bool(((each >= 0) & each.isfinite()).all()) for each in found)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _tensor(name: str, value: Any) -> Any:
    if name == "options" and value == []:  # a network of exits alone has no units
        return torch.zeros(0, 2)
    return torch.tensor(value) if isinstance(value, list) else value
