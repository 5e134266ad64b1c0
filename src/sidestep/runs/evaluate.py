"""Runs evaluated: one report, thresholds for a budget, accuracy over cost."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from sidestep.cost.latency_book import LatencyBook
from sidestep.data.image_set import eval_batch_size
from sidestep.data.split import Role
from sidestep.errors import ExecutionError, RecipeError
from sidestep.evaluation.bench import ENGINE
from sidestep.evaluation.exit_curve import (
    ExitCalibration,
    ExitCurve,
    ExitSurvey,
    check_curve,
    exit_curve,
    survey_exits,
)
from sidestep.evaluation.exit_curve import calibrate as solve_exits
from sidestep.evaluation.goals import ExitGoal
from sidestep.evaluation.report import Report, evaluate_network
from sidestep.evaluation.sampled import Sampled
from sidestep.execution.execution import EXECUTIONS, masked
from sidestep.files import kept
from sidestep.results.kept_curve import save_exit_curve
from sidestep.routing.exit_rule import CRITERIA
from sidestep.routing.samplers import Noise, is_noisy
from sidestep.runs.export import engine_of_run
from sidestep.runs.latency import book_for
from sidestep.runs.recipe import Recipe, method_of
from sidestep.runs.run_folder import EXITS, OpenedRun, data_of, open_run
from sidestep.runs.run_lock import locked
from sidestep.targets.native_engine import EnginePrecision, evaluate_engine
from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sidestep.training.step import settings_at
from sidestep.types import Batch

DECISIONS = ("argmax", "sampled")
# Images that a network was not trained on.
_SPLITS = ("test", "val")
# Of which an `ExitBudget` has one.
_BUDGETS = ("fraction", "gflops", "ms", "max_drop", "risk")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitBudget:
    """What a network with early exits may cost, and how its thresholds are solved for that.

    Args:
        fraction: largest mean MACs per image, routers included, as a fraction of the full network's.
        gflops: the same in GFLOPs of 2 x MACs, instead.
        ms: largest mean milliseconds per image by a latency book, instead.
        max_drop: largest loss of accuracy against the last exit in points, instead; the cost follows.
        risk: largest probability that an early answer is wrong where the last exit's is right, instead, kept
            with `confidence`.
        confidence: of the risk.
        criterion: by which images leave, see `CRITERIA`: "confidence", "margin", "entropy", "patience" ...
        scale: whether the temperatures of the exits are fitted first.
    """

    fraction: float | None = None
    gflops: float | None = None
    ms: float | None = None
    max_drop: float | None = None
    risk: float | None = None
    confidence: float | None = None
    criterion: str = "confidence"
    scale: bool = True

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _BUDGETS}
        asked = {name: value for name, value in given.items() if value is not None}
        if len(asked) != 1:
            told = ", ".join(f"{name} {value}" for name, value in asked.items()) or "nothing"
            raise RecipeError(
                "budget must be given as a fraction of the full network, in GFLOPs, in ms, as max-drop or as "
                f"risk, one of them, got {told}"
            )
        for name, value in asked.items():
            if not math.isfinite(value):
                raise RecipeError(f"{name.replace('_', '-')} must be finite, got {value}")
        if self.risk is not None and not 0 < self.risk < 1:
            raise RecipeError(f"risk must be in (0, 1), got {self.risk}; 0.01 is one image of a hundred")
        if self.confidence is not None and (self.risk is None or not 0 < self.confidence < 1):
            raise RecipeError(f"confidence must be in (0, 1) and belongs to a risk, got {self.confidence}")
        if self.criterion not in CRITERIA:
            raise CRITERIA.unknown(self.criterion)
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise RecipeError(
                f"budget must be a fraction of the full network's MACs in (0, 1], got {self.fraction}; "
                "budget-gflops takes GFLOPs"
            )
        if self.gflops is not None and not 0 < self.gflops < math.inf:
            raise RecipeError(f"budget-gflops must be above 0 and finite, got {self.gflops}")
        if self.ms is not None and not self.ms > 0:
            raise RecipeError(f"ms must be above 0, got {self.ms}")

    def goal(self, full_macs: float) -> ExitGoal:
        """Return what thresholds are solved for, given the MACs of the full network."""
        if self.risk is not None:
            return ExitGoal(risk=self.risk, confidence=self.confidence or 0.95)
        if self.ms is not None:
            return ExitGoal(ms=self.ms)
        if self.max_drop is not None:
            return ExitGoal(max_drop=self.max_drop)
        gflops = self.gflops
        return ExitGoal(macs=(self.fraction or 0.0) * full_macs if gflops is None else gflops * 1e9 / 2)


def evaluate(
    run: Path | str,
    *,
    execution: str = "masked",
    decisions: str = "argmax",
    seed: int | None = None,
    budget: ExitBudget | None = None,
    book: str | None = None,
    split: Role = "test",
    checkpoint: str = "best",
    source: str | None = None,
    precision: EnginePrecision | None = None,
) -> Report:
    """Return the report of a run's network on one of its splits.

    Images leave a network with early exits where `budget` says, or where `calibrate` has said before, or all
    at the last exit. Thresholds are solved on the validation split.

    Args:
        run: a run folder.
        execution: "masked", "gathered", "cascade" for a network with early exits, or "engine" for a plan in
            the native engine.
        decisions: "argmax", or "sampled" to draw them as the released codes of some methods do: with the
            sampler, noise included, that training ended with. Soft ones mix outputs, masked alone.
        seed: of what is drawn, 0 by default; the same seed gives the same report.
        budget: of a network with early exits.
        book: latency book, as `book_for` takes it, for a budget in milliseconds and for the report.
        split: "test" or "val".
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.
        precision: of the engine, "auto" by default; other executions keep that of the weights.

    Raises:
        SidestepError: for an evaluation that does not exist, decisions drawn by a method without noise among
            them, or a budget that cannot be met.
    """
    if execution not in (known := (*EXECUTIONS, ENGINE)):
        raise RecipeError(f"execution must be one of {', '.join(known)}, got {execution!r}")
    opened = open_run(Path(run), checkpoint)
    sampled = _sampled(opened.recipe, decisions, seed)
    if precision is not None and execution != ENGINE:
        raise ExecutionError(f"precision is the engine's alone, got execution {execution!r}; drop it")
    latency = _latency(opened, budget, book, execution=execution, precision=precision)
    rule = opened.exit_rule if budget is None else solve(opened, budget, source, latency).rule
    if execution == ENGINE:
        if sampled is not None:
            raise ExecutionError("the engine knows arg-max decisions alone, got sampled; evaluate masked")
        engine, batches = engine_of_run(opened, rule, precision or "auto"), _batches(opened, split, source)
        num_classes = len(opened.class_names)
        return evaluate_engine(engine, batches, opened.cost, num_classes=num_classes, latency=latency)
    return evaluate_network(
        opened.network,
        _batches(opened, split, source),
        opened.cost,
        num_classes=len(opened.class_names),
        execution=EXECUTIONS[execution],
        sampled=sampled,
        rule=rule,
        latency=latency,
    )


def calibrate(
    run: Path | str,
    budget: ExitBudget,
    *,
    book: str | None = None,
    checkpoint: str = "best",
    source: str | None = None,
) -> ExitCalibration:
    """Solve the thresholds of a run's early exits for a budget, keep them in its checkpoint, and return them.

    Args:
        run: a run folder.
        budget: what an image may cost on average.
        book: latency book, as `book_for` takes it, for a budget in milliseconds.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: for a network without early exits, or a budget that cannot be met; nothing is written
            then.
    """
    opened = open_run(Path(run), checkpoint)
    with locked(Path(run)):
        latency = _latency(opened, budget, book)
        calibration = solve(opened, budget, source, latency)
        keep_calibration(opened, calibration)
    return calibration


def keep_calibration(opened: OpenedRun, calibration: ExitCalibration) -> None:
    """Keep in a run's checkpoint where images leave."""
    before = load_checkpoint(opened.path)
    values = before.values | {EXITS: asdict(calibration)}
    save_checkpoint(opened.path, Checkpoint(tensors=before.tensors, values=values))


def curve(
    run: Path | str,
    *,
    criterion: str = "confidence",
    scale: bool = True,
    num_budgets: int = 20,
    book: str | None = None,
    checkpoint: str = "best",
    source: str | None = None,
) -> ExitCurve:
    """Return accuracy over cost of a run's early exits on the test split, and keep it in the run folder.

    There it is `exits.json`, which results pages read, `exits.csv` and `exits.png`. Where these cannot be
    written the curve is still returned, with an `UnkeptWarning`.

    Args:
        run: a run folder.
        criterion: by which images leave.
        scale: whether the temperatures of the exits are fitted first.
        num_budgets: number of budgets, from the cheapest to the dearest exit.
        book: latency book, as `book_for` takes it, for a cost in milliseconds as well.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: for a network without early exits.
    """
    check_curve(criterion, num_budgets)
    opened = open_run(Path(run), checkpoint)
    latency = _latency(opened, None, book)
    found = exit_curve(
        _survey(opened, "val", source, latency),
        _survey(opened, "test", source, latency),
        full_macs=opened.cost.full,
        criterion=criterion,
        scale=scale,
        num_budgets=num_budgets,
    )
    with kept():
        save_exit_curve(Path(run), found, checkpoint)
        _log.info("wrote exits.json, exits.csv and exits.png into %s", run)
    return found


def _batches(opened: OpenedRun, split: Role, source: str | None) -> Iterable[Batch]:
    if split not in _SPLITS:
        raise RecipeError(
            f"split must be one of {', '.join(_SPLITS)}, got {split!r}; nothing is chosen on them"
        )
    _log.info("reading split %s of %s", split, opened.recipe.data.source if source is None else source)
    data = data_of(opened, split, source)
    images = data.test if split == "test" else data.val
    if images is None:
        raise RecipeError(f"split {split!r} is empty in this run; val_fraction of its recipe is 0")
    _log.info("running the network on %s images", f"{len(images):,}")
    return images.eval_batches(batch_size=eval_batch_size(opened.input_size))


def _survey(
    opened: OpenedRun, split: Role, source: str | None, latency: LatencyBook | None = None
) -> ExitSurvey:
    if not opened.network.has_early_exits:
        raise ExecutionError(
            "a budget of exits needs a network with early exits, got one without; train ranet or msdnet, or "
            "set model.exits"
        )
    return survey_exits(opened.network, _batches(opened, split, source), opened.cost, latency)


def _latency(
    opened: OpenedRun,
    budget: ExitBudget | None,
    book: str | None,
    *,
    execution: str | None = None,
    precision: EnginePrecision | None = None,
) -> LatencyBook | None:
    """Return the latency book that is asked for, of the runtime that the network is to run in, or None."""
    if book is None and (budget is None or budget.ms is None):
        return None
    if execution is None or EXECUTIONS.get(execution) is masked:
        # Where everything is computed nobody looks for the time that is saved.
        return book_for(opened, book)
    if execution != ENGINE:
        return book_for(opened, book, runtime="pytorch")
    return book_for(opened, book, runtime="engine", precision=None if precision == "auto" else precision)


def solve(
    opened: OpenedRun, budget: ExitBudget, source: str | None, latency: LatencyBook | None = None
) -> ExitCalibration:
    """Return the rule that meets a budget on the validation split."""
    survey = _survey(opened, "val", source, latency)
    return solve_exits(survey, budget.goal(opened.cost.full), criterion=budget.criterion, scale=budget.scale)


def _sampled(recipe: Recipe, decisions: str, seed: int | None) -> Sampled | None:
    """Return what the decisions of an evaluation are drawn from, or None where they are not."""
    if decisions not in DECISIONS:
        raise RecipeError(f"decisions must be one of {', '.join(DECISIONS)}, got {decisions!r}")
    if decisions == "argmax":
        if seed is not None:
            raise RecipeError(
                f"seed has no effect on arg-max decisions, got {seed}; drop it, or set decisions to sampled"
            )
        return None
    if seed is not None and seed < 0:
        raise RecipeError(f"seed must be at least 0, got {seed}")
    method, settings, phases = method_of(recipe), recipe.settings, recipe.training.phases
    settings = settings_at(settings, phases[-1], 1.0) if phases else settings
    sampler = partial(method.noisy_sampler or method.sampler, settings)
    if not is_noisy(sampler(Noise(torch.Generator()))):
        raise RecipeError(
            f"decisions must be argmax where training ended without noise, got {decisions!r} for method "
            f"{method.name}; leave them out"
        )
    return Sampled(sampler=sampler, seed=seed or 0)
