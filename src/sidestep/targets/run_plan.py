"""Plans run on image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidestep.data.preparation import Pixels, Preparation, pixels_of, pixels_of_old_plan
from sidestep.data.split import decoding, open_encoded, shown_name
from sidestep.errors import ExecutionError
from sidestep.plan.format import preparation_in
from sidestep.targets.native_engine import EnginePrecision, at_budget, engine_of, exits_in, routed
from sidestep.types import CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a network says about an image file.

    Attributes:
        path: of the file.
        label: name of the most probable class, or its number where the plan has no names.
        probability: of that class, in [0, 1], by the exit at which the image left and its temperature.
        executed: number of units that were executed.
        num_units: number of units that could be.
        fraction: MACs, routers included, over those of the static network.
    """

    path: str
    label: str
    probability: float
    executed: int
    num_units: int
    fraction: float


def run_plan(
    plan: Path | str,
    images: Sequence[Path | str],
    *,
    precision: EnginePrecision = "auto",
    budget: float | None = None,
) -> list[Prediction]:
    """Return what a plan says about image files, in the native engine.

    Pictures are prepared as the plan says, which is how training's evaluation prepared them.

    Args:
        plan: a file that `export_run` wrote.
        images: files.
        precision: of the engine.
        budget: largest mean MACs per image as a fraction of the full network's, of a plan with budgets.

    Raises:
        ExecutionError: when the engine is not installed, cannot run the plan, or the plan has no such budget.
        DataError: for a file that cannot be read as an image.
    """
    content = read_content(plan)
    engine = engine_of(content, precision)
    preparation = preparation_in(content)
    pixels = np.stack([_pixels(path, engine.plan, preparation) for path in images])
    output = engine(pixels) if budget is None else at_budget(engine, pixels, budget)
    cost = cost_of(engine.plan.cost)
    said = routed(output, cost, exits_in(engine.plan.steps))
    executed, fractions = said.decisions.execution().sum(dim=1), cost.fraction(said.decisions)
    best = said.probabilities.max(dim=1)
    names = engine.plan.classes
    return [
        Prediction(
            path=shown_name(str(path)),
            label=names[label] if label < len(names) else str(label),
            probability=best.values[row].item(),
            executed=int(executed[row]),
            num_units=len(cost.options),
            fraction=fractions[row].item(),
        )
        for row, (path, label) in enumerate(zip(images, best.indices.tolist(), strict=True))
    ]


def read_content(plan: Path | str) -> bytes:
    """Return the content of a plan file.

    Raises:
        ExecutionError: when it cannot be read.
    """
    try:
        return Path(plan).read_bytes()
    except OSError as error:
        raise ExecutionError(
            f"plan {plan} must be a file that can be read ({error.strerror}); `sidestep export` writes one"
        ) from error


def _pixels(path: Path | str, plan: Any, preparation: Preparation | None) -> Pixels:
    with decoding(f"image {str(path)!r}"), open_encoded(Path(path).open("rb")) as image:
        if preparation is None:
            return pixels_of_old_plan(image, plan.size, plan.channels)
        return pixels_of(image, preparation)


def cost_of(prices: dict[str, Any]) -> CostModel:
    """Return the price list in a plan."""

    def tensor(name: str) -> torch.Tensor | None:
        return torch.tensor(prices[name]) if name in prices else None

    options = prices["option_macs"]
    return CostModel(
        fixed=prices["fixed_macs"],
        # A network of exits alone has no units, and an empty list no second dimension.
        options=torch.tensor(options) if options else torch.zeros(0, 2),
        routers=torch.tensor(prices["router_macs"]),
        exits=tensor("exit_macs"),
        exit_units=tensor("exit_units"),
        static=prices.get("static_macs"),
    )
