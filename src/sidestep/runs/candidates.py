"""Which cascade of some candidates is the cheapest for an accuracy: scores on disk, points, a page."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sidestep.cost.latency_book import LatencyBook
from sidestep.cost.macs import measure_cost
from sidestep.data import Data
from sidestep.data.image_set import ImageSet, shown_batches
from sidestep.errors import (
    CheckpointError,
    ExecutionError,
    ExportError,
    RecipeError,
    SidestepError,
    understood,
)
from sidestep.evaluation.environment import hardware
from sidestep.evaluation.exit_curve import ExitSurvey, survey_exits
from sidestep.evaluation.frontier import FrontierPoint, Scores, frontier_points
from sidestep.files import read_safetensors, write_file
from sidestep.networks.network import DynamicNetwork
from sidestep.plan.format import Plan
from sidestep.progress import through
from sidestep.quantisation.sensitivity import quantise
from sidestep.runs.cascade_model import load_member
from sidestep.runs.latency import Way, measured, version_of, with_all_exits
from sidestep.runs.members import NamedMember, check_classes, data_for, distinct, exportable_member, member_of
from sidestep.runs.quantised import CALIBRATION_IMAGES
from sidestep.runs.run_folder import open_run
from sidestep.runs.schema import as_plain
from sidestep.runs.sections import DATA
from sidestep.targets.export_target import Exportable, plan_of
from sidestep.targets.native_engine import EngineNetwork, engine_of

# Images that candidates are timed on.
_TIMED_IMAGES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """What was found.

    Attributes:
        points: candidates alone and cascades of them.
        texts: what the user typed for every candidate, by name.
        num_images: that they were reported on.
        failed: candidates that could not be loaded or run, with the reason.
        untimed: candidates that the runtime cannot run, with the reason.
    """

    points: list[FrontierPoint]
    texts: dict[str, str]
    num_images: int
    failed: dict[str, str]
    untimed: dict[str, str]


def find_frontier(
    candidates: Sequence[str],
    *,
    data: dict[str, Any],
    scores: Path,
    num_budgets: int = 40,
    triples: bool = True,
    way: Way | None = None,
    on_bytes: bool = False,
) -> Frontier:
    """Return all candidates alone, and all their ordered pairs and triples at many budgets.

    Candidates run once: what they say is kept, and a later call runs new ones alone. One that cannot be run
    is reported, and the others go on.

    Args:
        candidates: as `member_of` takes them.
        data: keys of a recipe's `data:`; images are those of its test split.
        scores: folder in which what candidates say is kept.
        num_budgets: of every pair, and of every network with early exits.
        triples: whether triples are tried.
        way: how candidates are timed, for a cost in milliseconds as well; None times none.
        on_bytes: whether they are run in INT8, in the engine, calibrated on the data's validation split.

    Raises:
        RecipeError: when fewer than two candidates can be run.
    """
    if num_budgets < 2:
        raise RecipeError(f"num_budgets must be at least 2, got {num_budgets}; 40 make a smooth line")
    errors: list[str] = []
    config = DATA.build(data, "data", errors)
    if errors:
        raise RecipeError("; ".join(errors))
    images = _Images(data, on_bytes=on_bytes)
    found: list[Scores] = []
    failed: dict[str, str] = {}
    members: list[NamedMember] = []
    for text in candidates:
        try:
            members.append(member_of(text, config, given=data))
        except SidestepError as error:
            failed[text] = str(error)
    if len(members) < 2:
        raise _too_few(len(members), failed)
    names = [each.name for each in distinct([member.settings for member in members])]
    named = zip(names, members, strict=True)
    for name, member in through(named, "candidates", len(members)):
        try:
            found.append(_scores_of(name, member, images, scores, way))
        except Exception as error:
            meant = understood(error)
            if meant is None:
                raise
            failed[member.text] = str(meant)
    if len(found) < 2:
        raise _too_few(len(found), failed)
    _log.info("searching cascades of %d candidates", len(found))
    points = frontier_points(found, images.labels(), num_budgets=num_budgets, triples=triples)
    texts = {name: member.text for name, member in zip(names, members, strict=True)}
    count, untimed = len(images.labels()), _untimed(found, texts, way)
    return Frontier(points=points, texts=texts, num_images=count, failed=failed, untimed=untimed)


def _untimed(found: Sequence[Scores], texts: dict[str, str], way: Way | None) -> dict[str, str]:
    if way is None:
        return {}
    return {texts[each.name]: f"{way.runtime} cannot run it" for each in found if each.ms is None}


def _too_few(count: int, failed: dict[str, str]) -> RecipeError:
    told = "".join(f"\n  - {text}: {why}" for text, why in failed.items())
    return RecipeError(f"candidates must be two or more that can be run, got {count}{told}")


class _Images:
    """The images that candidates are run on, prepared as each of them asks, and read once for each way.

    Args:
        data: keys of a recipe's `data:`.
        on_bytes: whether candidates run in INT8, for which they are calibrated.
    """

    def __init__(self, data: dict[str, Any], *, on_bytes: bool) -> None:
        self._data = data
        self.on_bytes = on_bytes
        self._sets: dict[str, Data] = {}
        self._calibration: dict[str, list[Tensor]] = {}

    def prepared(self, member: NamedMember) -> Data:
        wanted = member.settings.input
        key = json.dumps(as_plain(wanted))
        if key not in self._sets:
            _log.info("reading the test split at %s", " x ".join(map(str, wanted.size)))
            self._sets[key] = data_for(member, {**self._data, "val_fraction": 0.0}, "test")
        return self._sets[key]

    def calibration(self, member: NamedMember) -> list[Tensor]:
        """Return the first images of the validation split, in batches; none where nothing is calibrated."""
        if not self.on_bytes:
            return []
        key = json.dumps(as_plain(member.settings.input))
        if key not in self._calibration:
            val = data_for(member, self._data, "val").val
            assert val is not None  # data without one are refused when they are read
            batches = islice(val.eval_batches(batch_size=64), CALIBRATION_IMAGES // 64)
            self._calibration[key] = [batch.images for batch in batches]
        return self._calibration[key]

    def labels(self) -> Tensor:
        """Return the (N,) classes, which are the same in every set."""
        first = next(iter(self._sets.values())).test
        assert first is not None  # sets without a test split are refused when they are read
        return torch.cat([batch.labels for batch in first.eval_batches(batch_size=1000)])


def _scores_of(name: str, member: NamedMember, images: _Images, folder: Path, way: Way | None) -> Scores:
    """Return what a candidate says, and takes if it is to be timed, from its file or by running it."""
    data = images.prepared(member)
    check_classes(member, data.class_names)
    calibration = images.calibration(member)
    path = folder / f"{_key(member, data, way, calibration)}.safetensors"
    if path.is_file():
        try:
            return _read(name, path)
        except (CheckpointError, KeyError) as error:
            _log.warning("scores %s are damaged and made again (%s)", path, error)
    _log.info("running %s on %s images", member.text, f"{len(data.test or ()):,}")
    survey = _surveyed(member, data, way, calibration)
    tensors = {"exit_logits": survey.exit_logits, "labels": survey.labels, "macs": survey.macs}
    if survey.ms is not None:
        tensors["ms"] = survey.ms
    write_file(path, save({key: each.contiguous() for key, each in tensors.items()}), what="scores")
    return _read(name, path)


def _surveyed(member: NamedMember, data: Data, way: Way | None, calibration: Sequence[Tensor]) -> ExitSurvey:
    assert data.test is not None  # a test split was asked for
    network: nn.Module = (dynamic := _network(member, len(data.class_names)).eval())
    cost = measure_cost(dynamic, member.settings.input.size)
    export = exportable_member(member, dynamic, cost, data.class_names)
    on_bytes = quantise(plan_of(with_all_exits(export)), calibration).plan if calibration else None
    book = None if way is None else _book(member, export, data.test, way, on_bytes)
    if on_bytes is not None:
        network = EngineNetwork(engine_of(on_bytes.as_bytes()), cost)
    batches = shown_batches(data.test, member.settings.input.size)
    if dynamic.lets_leave:
        return survey_exits(network, batches, cost, book)
    logits, labels, macs, ms = [], [], [], []
    with torch.inference_mode():
        for batch in batches:
            output = network(batch.images)
            logits.append(output.logits.float())
            labels.append(batch.labels)
            macs.append(cost.per_sample(output.decisions).double())
            if book is not None:
                ms.append(book.prices.per_sample(output.decisions).double())
    return ExitSurvey(
        exit_logits=torch.cat(logits).unsqueeze(0).clone(),
        labels=torch.cat(labels).clone(),
        macs=torch.cat(macs).unsqueeze(0).clone(),
        ms=torch.cat(ms).unsqueeze(0).clone() if ms else None,
    )


def _book(
    member: NamedMember, export: Exportable, test: ImageSet, way: Way, on_bytes: Plan | None
) -> LatencyBook | None:
    """Return the latency book of a candidate, or None where the runtime cannot run it."""
    images = next(iter(test.eval_batches(batch_size=max(way.batch_size, _TIMED_IMAGES)))).images
    _log.info("timing %s in %s", member.text, way.runtime)
    named = {"candidate": as_plain(member.settings)}
    try:
        return measured(export, images, way, named, lambda what: on_bytes or plan_of(what))
    except (ExportError, ExecutionError) as error:
        _log.warning("%s is not timed: %s", member.text, error)
        return None


def _network(member: NamedMember, num_classes: int) -> DynamicNetwork:
    """Return a candidate's network with its weights; a run's with all its exits."""
    if member.is_run:
        return open_run(member.text, "best").network
    network = member.settings.build(num_classes)
    load_member(network, member.settings, num_classes)
    return network


def _read(name: str, path: Path) -> Scores:
    tensors, _ = read_safetensors(path)
    survey = ExitSurvey(
        **{key: tensors[key] for key in ("exit_logits", "labels", "macs")}, ms=tensors.get("ms")
    )
    return Scores(
        name=name,
        log_probs=survey.exit_logits[-1].log_softmax(dim=1),
        macs=survey.macs[-1],
        ms=None if survey.ms is None else survey.ms[-1],
        survey=survey if len(survey.exit_logits) > 1 else None,
    )


def _key(member: NamedMember, data: Data, way: Way | None, calibration: Sequence[Tensor]) -> str:
    """Return what a candidate's scores follow from: its settings, weights, the images, and the machine."""
    digest = sha256(json.dumps(as_plain(member.settings), sort_keys=True).encode())
    if member.settings.weights is not None:
        digest.update(Path(member.settings.weights).read_bytes())
    if way is not None:
        place = {"way": asdict(way), "hardware": hardware(), "version": version_of(way.runtime)}
        digest.update(json.dumps(place, sort_keys=True).encode())
    for images in calibration:
        digest.update(images.contiguous().numpy().tobytes())
    assert data.test is not None
    for batch in data.test.eval_batches(batch_size=1000):
        digest.update(batch.labels.numpy().tobytes())
        digest.update(batch.images.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
