"""What leaving units out of a trained static network costs and saves, without training.

Every unit alone, every pair, and greedily one after the other until all are gone; and per image, where the
cheapest of all tried paths that is right says what gates could win at most.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.progress import through
from sidestep.types import Batch, CostModel

# Whether each unit is executed.
Path = tuple[bool, ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A path that all images took.

    Attributes:
        path: whether each unit is executed.
        accuracy: share of the images whose class is right, in [0, 1].
        error: standard error of its difference to the whole network's accuracy, over the same images.
        loss: mean cross-entropy.
        cost: mean price of an image, in the unit of the price list.
        fraction: the same over that of the whole network.
    """

    path: Path
    accuracy: float
    error: float
    loss: float
    cost: float
    fraction: float

    @property
    def text(self) -> str:
        """Return the path as `fixed_path` takes it."""
        return "".join("1" if executed else "0" for executed in self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """Every image on the cheapest path that is right, among all that were tried.

    More than any gate reaches: with many paths an image is right by chance on one of them.

    Attributes:
        accuracy: share of the images that are right on a path at all.
        fraction: mean price of these paths, of the cheapest path for the others, over the whole network's.
        num_paths: that were tried.
    """

    accuracy: float
    fraction: float
    num_paths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSurvey:
    """What was found.

    Attributes:
        names: of the units, as modules of the network.
        num_images: that every path was tried on.
        whole: everything executed.
        without: every unit left out alone, in order.
        pairs: every pair left out, in order; empty where none were asked for.
        greedy: one unit more left out each time, the one that raises the loss least for what it saves.
        oracle: per image.
    """

    names: list[str]
    num_images: int
    whole: Tried
    without: list[Tried]
    pairs: list[Tried]
    greedy: list[Tried]
    oracle: Oracle

    def worth(self) -> Tensor:
        """Return (L,) by how much the loss rises without each unit, at least a thousandth of the most."""
        raised = torch.tensor([tried.loss - self.whole.loss for tried in self.without])
        return raised.clamp(min=max(1e-3 * float(raised.max()), 1e-6))

    def cheapest(self, fraction: float) -> Tried | None:
        """Return the first greedy path that costs no more than a fraction of the whole network, or None."""
        return next((tried for tried in self.greedy if tried.fraction <= fraction), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyOf:
    """A survey, with what it is of.

    Attributes:
        text: the network, as the user named it.
        source: where the images are from.
        split: which of them.
        survey: in MACs.
        ms: price of every unit in milliseconds an image, or None where nothing was timed.
        timed: what milliseconds are of, or None.
    """

    text: str
    source: str
    split: str
    survey: UnitSurvey
    ms: list[float] | None = None
    timed: str | None = None


def survey_units(
    backbone: Backbone,
    batches: Sequence[Batch],
    cost: CostModel,
    *,
    names: Sequence[str],
    pairs: bool = True,
    random_paths: int = 0,
    seed: int = 0,
) -> UnitSurvey:
    """Return what leaving units out of a network costs and saves on some images.

    Paths that begin alike share what is computed up to where they part.

    Args:
        backbone: trained, in evaluation mode.
        batches: images with labels, the same for every path.
        cost: its price list, in MACs or milliseconds.
        names: of its units.
        pairs: whether pairs are tried, L (L - 1) / 2 of them.
        random_paths: further paths for the oracle, each with a rate of its own at which units are executed.
        seed: of these.

    Raises:
        RecipeError: for a network without units.
    """
    units = len(backbone.units)
    if not units:
        raise RecipeError("a survey needs a network with units that can be left out, got one without")
    trials = _Trials(backbone, batches)
    _log.info("leaving %d units out, %s", units, "alone and in pairs" if pairs else "alone")
    trials.without_one_or_two(pairs=pairs)
    trials.run(list(_drawn(units, random_paths, seed)))
    order = _greedy(trials, cost)
    whole = (True,) * units
    oracle = _oracle(trials, cost)

    def tried(path: Path) -> Tried:
        return _tried(trials, cost, path)

    return UnitSurvey(
        names=list(names),
        num_images=trials.num_images,
        whole=tried(whole),
        without=[tried(_left_out(whole, unit)) for unit in range(units)],
        pairs=[tried(_left_out(whole, one, other)) for one in range(units) for other in range(one + 1, units)]
        if pairs
        else [],
        greedy=[tried(path) for path in order],
        oracle=oracle,
    )


@dataclass(slots=True)
class _Trials:
    """Paths that were run, with what every image made of them."""

    backbone: Backbone
    batches: Sequence[Batch]
    right: dict[Path, list[Tensor]] = field(default_factory=dict)
    losses: dict[Path, list[Tensor]] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        return sum(len(batch.labels) for batch in self.batches)

    def without_one_or_two(self, *, pairs: bool) -> None:
        """Run the whole network, every unit left out, and every pair left out."""
        whole = (True,) * len(self.backbone.units)
        with torch.inference_mode():
            for batch in through(self.batches, "leaving units out", len(self.batches)):
                self._pairs_of(batch, whole, pairs=pairs)

    def _pairs_of(self, batch: Batch, whole: Path, *, pairs: bool) -> None:
        units = self.backbone.units
        x = self.backbone.stem(batch.images)
        for one, first in enumerate(units):
            y = first.skip(x)
            for other in range(one + 1, len(units)):
                if pairs:
                    path = _left_out(whole, one, other)
                    self._note(path, self._rest(units[other].skip(y), other + 1, path), batch)
                y = units[other].execute(y)
            self._note(_left_out(whole, one), self.backbone.head(y), batch)
            x = first.execute(x)
        self._note(whole, self.backbone.head(x), batch)

    def run(self, paths: Sequence[Path]) -> None:
        """Run paths that were not run yet."""
        new = [path for path in dict.fromkeys(paths) if path not in self.right]
        with torch.inference_mode():
            for batch in through(self.batches if new else (), "running drawn paths", len(self.batches)):
                x = self.backbone.stem(batch.images)
                for path in new:
                    self._note(path, self._rest(x, 0, path), batch)

    def run_without_one_more(self, path: Path) -> list[Path]:
        """Run all paths with one executed unit less, and return them."""
        shorter = {unit: _left_out(path, unit) for unit, runs in enumerate(path) if runs}
        new = {unit: each for unit, each in shorter.items() if each not in self.right}
        with torch.inference_mode():
            for batch in self.batches if new else ():
                x = self.backbone.stem(batch.images)
                for unit in range(len(path)):
                    if unit in new:
                        y = self.backbone.units[unit].skip(x)
                        self._note(new[unit], self._rest(y, unit + 1, new[unit]), batch)
                    x = self._step(x, unit, path)
        return list(shorter.values())

    def _step(self, x: Tensor, unit: int, path: Path) -> Tensor:
        place = self.backbone.units[unit]
        return place.execute(x) if path[unit] else place.skip(x)

    def _rest(self, x: Tensor, start: int, path: Path) -> Tensor:
        for unit in range(start, len(path)):
            x = self._step(x, unit, path)
        return self.backbone.head(x)

    def _note(self, path: Path, logits: Tensor, batch: Batch) -> None:
        logits = logits.float()
        self.right.setdefault(path, []).append(logits.argmax(dim=1) == batch.labels)
        self.losses.setdefault(path, []).append(F.cross_entropy(logits, batch.labels, reduction="none"))


def _left_out(path: Path, *units: int) -> Path:
    return tuple(runs and unit not in units for unit, runs in enumerate(path))


def _drawn(units: int, count: int, seed: int) -> Iterator[Path]:
    """Return random paths, each unit executed at a rate that is drawn for the path."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        rate = torch.rand((), generator=generator)
        yield tuple((torch.rand(units, generator=generator) < rate).tolist())


def price(cost: CostModel, path: Path) -> float:
    """Return the price of an image on a path, without routers."""
    spared = cost.options[:, -1] - cost.options[:, 0]
    skipped = torch.tensor([not runs for runs in path])
    return cost.full - float(spared[skipped].double().sum())


def _greedy(trials: _Trials, cost: CostModel) -> list[Path]:
    """Return ever shorter paths, each without the unit that raises the loss least for what it saves."""
    path: Path = (True,) * len(trials.backbone.units)
    found = []
    # A step tries as many paths as units are left.
    left = range(len(path), 0, -1)
    for _ in through(left, "leaving out one after the other", sum(left), float):
        before = _mean(trials.losses[path])
        shorter = trials.run_without_one_more(path)

        def raised(candidate: Path, path: Path = path, before: float = before) -> float:
            more = _mean(trials.losses[candidate]) - before
            saved = price(cost, path) - price(cost, candidate)
            if saved <= 0:
                return math.inf
            # What is for nothing goes first: the more it saves, the sooner.
            return more / saved if more > 0 else more * saved

        path = min(shorter, key=raised)
        found.append(path)
        _log.info("left %d units out: loss %.4f", path.count(False), _mean(trials.losses[path]))
    return found


def _mean(parts: Sequence[Tensor]) -> float:
    return float(torch.cat(list(parts)).double().mean())


def _tried(trials: _Trials, cost: CostModel, path: Path) -> Tried:
    whole = torch.cat(trials.right[(True,) * len(path)])
    right = torch.cat(trials.right[path])
    change = right.double() - whole.double()
    return Tried(
        path=path,
        accuracy=float(right.double().mean()),
        error=float(change.std(correction=0)) / math.sqrt(len(change)),
        loss=_mean(trials.losses[path]),
        cost=price(cost, path),
        fraction=price(cost, path) / cost.full,
    )


def _oracle(trials: _Trials, cost: CostModel) -> Oracle:
    paths = sorted(trials.right, key=lambda path: price(cost, path))
    right = torch.stack([torch.cat(trials.right[path]) for path in paths])
    prices = torch.tensor([price(cost, path) for path in paths], dtype=torch.float64)
    # The first of several equal ones, which is the cheapest; for images that are wrong everywhere too.
    chosen = right.int().argmax(dim=0)
    return Oracle(
        accuracy=float(right.any(dim=0).double().mean()),
        fraction=float(prices[chosen].mean()) / cost.full,
        num_paths=len(paths),
    )
