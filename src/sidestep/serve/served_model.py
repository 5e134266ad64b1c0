"""Networks ready to be served: from run folders, plan files and folders of segments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidestep.data.preparation import Channels
from sidestep.errors import ExecutionError, ExportError, ServeError, typed
from sidestep.hub.places import is_place
from sidestep.plan.format import preparation_in, preparation_of
from sidestep.plan.levels import Level, dial_in, levels_in, on_top_of
from sidestep.routing.dial import DialLevel
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.export import served, served_budgets
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.serve.engine_runner import EngineRunner
from sidestep.serve.ladder import DialLadder, Ladder
from sidestep.serve.runner import Runner
from sidestep.serve.segment_runner import SegmentRunner
from sidestep.serve.settings import ServeSettings
from sidestep.serve.tensor_images import Pictures
from sidestep.serve.torch_runner import TorchRunner
from sidestep.targets.export_target import Exportable, plan_of
from sidestep.targets.native_engine import MISSING, engine_installed, engine_of
from sidestep.targets.read_segments import MANIFEST, open_segments
from sidestep.targets.run_plan import cost_of, read_content
from sidestep.types import CostModel

_UNNAMED = ("best", "last")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A network that is ready to be served.

    Attributes:
        name: by which clients ask for it.
        runners: run it: one, or where its routers are given the budget one for every budget.
        ladder: its budgets, measured here.
        pictures: how images become what it takes.
        class_names: in the order of its scores; may be empty.
        about: what people may want to know.
        fallback: why a run does not run in the engine; None where it does.
    """

    name: str
    runners: Sequence[Runner]
    ladder: Ladder
    pictures: Pictures
    class_names: tuple[str, ...]
    about: dict[str, Any]
    fallback: str | None = None


def open_models(
    sources: Sequence[Path | str],
    settings: ServeSettings,
    exported: Callable[[OpenedRun], Exportable] = served,
) -> list[ServedModel]:
    """Return networks ready to be served, their times measured.

    Args:
        sources: run folders, packages (`hf-hub:org/name`, `local-dir:path`), plan files and folders of
            segments; NAME=PATH gives one another name.
        settings: of the server.
        exported: what is taken of a run, with its budgets.

    Raises:
        SidestepError: for what is none, two of one name, or a budget that a network does not have.
    """
    named = [named_source(source) for source in sources]
    names = [name for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ServeError(f"models must have names of their own, and two are {twice[0]!r}; write NAME=PATH")
    if unaddressed := [name for name in names if "/" in name or name in ("", ".", "..")]:
        raise ServeError(
            f"models must have names that addresses can hold, got {unaddressed[0]!r}; write NAME=PATH with a "
            "name without slashes"
        )
    models = [_open(name, path, settings, exported) for name, path in named]
    for model in models:
        _measure(model)
    return models


def named_source(given: Path | str) -> tuple[str, Path]:
    """Return the name of a model and where it lies."""
    source = str(given)
    name, equals, path = source.partition("=")
    if equals and name and not is_place(source) and not Path(source).exists():
        return name, Path(path)
    place = Path(source)
    if is_place(source):
        return source.partition(":")[2].partition("@")[0].rstrip("/").rpartition("/")[2], place
    if place.is_dir() and not (place / MANIFEST).is_file():
        return place.resolve().name, place
    return (place.resolve().parent.name if place.stem in _UNNAMED else place.stem), place


def is_run(path: Path) -> bool:
    """Return whether what lies there is opened as a run: neither a plan nor a folder of segments."""
    return not path.is_file() and not (path / MANIFEST).is_file()


def _open(
    name: str, path: Path, settings: ServeSettings, exported: Callable[[OpenedRun], Exportable]
) -> ServedModel:
    if is_run(path):
        return _from_run(name, path, settings, exported)
    return (_from_plan if path.is_file() else _from_segments)(name, path, settings)


def _from_plan(name: str, path: Path, settings: ServeSettings) -> ServedModel:
    content = read_content(path)
    engine = engine_of(content, settings.precision)
    plan, cost = engine.plan, cost_of(engine.plan.cost)
    runner, budgets = _in_engine(engine, cost, content)
    ladder = budgets.ladder(runner, cost.full, settings)
    pictures = Pictures(
        preparation_in(content),
        size=plan.size,
        channels=plan.channels,
        max_pixels=1e6 * settings.max_megapixels,
    )
    return ServedModel(
        name=name,
        runners=[runner],
        ladder=ladder,
        pictures=pictures,
        class_names=tuple(plan.classes),
        about=plan.about,
    )


def _from_segments(name: str, path: Path, settings: ServeSettings) -> ServedModel:
    if settings.precision == "bfloat16":
        raise ServeError(
            "precision bfloat16 is the engine's, and segments are float32; serve the run or a plan"
        )
    opened = open_segments(path)
    route, runner = opened.route, SegmentRunner(opened)
    budgets = _Budgets(thresholds=route["limits"], levels=opened.levels)
    ladder = budgets.ladder(runner, route["cost"]["full_macs"], settings)
    pictures = Pictures(
        preparation_of(route["input"]),
        size=tuple(route["input"]["size"]),
        channels=route["input"]["channels"],
        max_pixels=1e6 * settings.max_megapixels,
    )
    return ServedModel(
        name=name,
        runners=[runner],
        ladder=ladder,
        pictures=pictures,
        class_names=tuple(route["classes"]),
        about=route["about"],
    )


def _from_run(
    name: str, path: Path, settings: ServeSettings, exported: Callable[[OpenedRun], Exportable]
) -> ServedModel:
    opened = open_run(path, settings.checkpoint)
    export = exported(opened)
    if export.per_image_standardization:
        raise ServeError(
            f"run {path} must subtract one mean from all images to be served, and subtracts every image's "
            "own; train without data.per_image_standardization"
        )
    if export.network.lets_leave and export.rule is None:
        _log.info(
            "all images leave %s at the last exit; `sidestep curve %s` gives it budgets", name, typed(path)
        )
        export = replace(export, rule=ExitRule(thresholds=[2.0] * (export.network.num_exits - 1)))
    asked = served_budgets(opened)
    if asked:
        made = []
        for budget in asked:
            opened.ask(budget.asked)
            made.append(_runner_of(served(opened), settings))
    else:
        made = [_runner_of(export, settings)]
    runners, (_, budgets, reason) = [each for each, *_ in made], made[-1]
    if reason is not None:
        _log.warning("%s runs in PyTorch: %s", name, reason)
    if asked:
        budgets = replace(budgets, levels=[budget.level for budget in asked], runners=range(len(asked)))
    ladder = budgets.ladder(runners[0], export.cost.full, settings)
    channels: Channels = 1 if export.network.image_channels == 1 else 3
    pictures = Pictures(
        export.preparation,
        size=export.input_size,
        channels=channels,
        max_pixels=1e6 * settings.max_megapixels,
    )
    return ServedModel(
        name=name,
        runners=runners,
        ladder=ladder,
        pictures=pictures,
        class_names=export.class_names,
        about=export.about,
        fallback=reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Budgets:
    """Budgets as a runner takes them.

    Attributes:
        thresholds: (E) of the network with one budget.
        levels: of exits.
        dial: of gates.
        runners: index of what runs each level; None where one runner runs all.
    """

    thresholds: Sequence[float]
    levels: Sequence[Level]
    dial: Sequence[DialLevel] = ()
    runners: Sequence[int] | None = None

    def ladder(self, runner: Runner, full_macs: float, settings: ServeSettings) -> Ladder:
        """Return the ladder of these budgets, as far as a server may use them."""
        share = (settings.min_budget, settings.budget)
        if self.dial:
            return DialLadder(self.dial, full_macs=full_macs, share=share)
        return Ladder(
            self.levels,
            full_macs=full_macs,
            thresholds=self.thresholds,
            num_exits=runner.num_exits,
            share=share,
            runners=self.runners,
        )


def _in_engine(engine: Any, cost: CostModel, content: bytes) -> tuple[Runner, _Budgets]:
    """Return what runs the plan of an engine, and its budgets."""
    thresholds = [step["exit"]["threshold"] for step in engine.plan.steps if "exit" in step]
    budgets = _Budgets(thresholds=thresholds, levels=levels_in(content), dial=dial_in(content))
    return EngineRunner(engine, cost, by_dial=bool(budgets.dial)), budgets


def _runner_of(export: Exportable, settings: ServeSettings) -> tuple[Runner, _Budgets, str | None]:
    """Return what runs a network, its budgets as that takes them, and why it is not the engine."""
    reason = None if engine_installed() else MISSING
    if reason is None:
        try:
            content = plan_of(export).as_bytes()
            engine = engine_of(content, settings.precision)
            return *_in_engine(engine, export.cost, content), None
        except ExportError as error:
            reason = f"{error}"
        except ExecutionError as error:
            if settings.precision != "auto":
                raise
            reason = f"{error}"
    if settings.precision == "bfloat16":
        raise ServeError(f"precision bfloat16 is the engine's, and the network runs in PyTorch: {reason}")
    rule = export.rule
    runner = TorchRunner(
        export.network,
        export.cost,
        rule,
        input_size=export.input_size,
        mean=export.mean,
        std=export.std,
    )
    budgets = _Budgets(
        thresholds=[] if rule is None else list(rule.thresholds),
        levels=export.levels,
        dial=on_top_of(export.network.router, export.dial),
    )
    return runner, budgets, reason


def _measure(model: ServedModel) -> None:
    """Measure how long a network takes with every budget."""
    (height, width), channels = model.pictures.size, model.pictures.channels
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    model.ladder.measure(model.runners, noise)
    runner = model.runners[0]
    cheapest, dearest = (model.ladder.ms(rung) for rung in (model.ladder.bottom, model.ladder.top))
    _log.info(
        "%s: %s budgets, %.3g to %.3g ms an image, in %s (%s, %s threads)",
        model.name,
        model.ladder.top - model.ladder.bottom + 1,
        cheapest,
        dearest,
        runner.name,
        runner.precision,
        runner.num_threads,
    )
