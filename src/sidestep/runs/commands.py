"""Run folders: train into one, load from one, evaluate and bench what is in it.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, TensorBoard events, `last.safetensors` and
`best.safetensors`, `environment.json`, after the last epoch `report.json` and, for networks with units,
`keep_rates.png`; `bench` leaves what it measured last as `bench.json`, `curve` `exits.json`, `exits.csv` and
`exits.png`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import yaml
from lightning_fabric import Fabric

from sidestep.data.sources import Role
from sidestep.errors import CheckpointError, ExecutionError, RecipeError
from sidestep.evaluation.bench import BenchResult, bench_network
from sidestep.evaluation.environment import describe_environment
from sidestep.evaluation.exit_curve import ExitCalibration, ExitCurve, ExitSurvey, exit_curve, survey_exits
from sidestep.evaluation.exit_curve import calibrate as solve_exits
from sidestep.evaluation.report import Report, evaluate_network
from sidestep.evaluation.sampled import Sampled
from sidestep.execution.compiled import training_execution
from sidestep.execution.execution import execution_of
from sidestep.networks.exit_network import ExitNetwork
from sidestep.networks.network import DynamicNetwork
from sidestep.results.figures import save_keep_rates
from sidestep.results.kept_curve import save_exit_curve
from sidestep.results.run_result import BENCH
from sidestep.routing.exit_rule import Criterion, ExitRule
from sidestep.routing.samplers import Noise, is_noisy
from sidestep.runs.assemble import Opened, data_of, job_of, open_run
from sidestep.runs.export import engine_of_run, engines_of
from sidestep.runs.recipe import Recipe, from_dict, load_recipe, method_of
from sidestep.targets.native_engine import ENGINE, EnginePrecision, evaluate_engine
from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sidestep.training.devices import Devices
from sidestep.training.distributed import all_succeed, named_errors
from sidestep.training.loop import LAST, Job, fit
from sidestep.training.step import settings_at
from sidestep.types import Batch

DECISIONS = ("argmax", "sampled")
_EXITS = "exits"
# Trainings may share a process: initial weights come from torch's one generator, figures from one pyplot.
_alone = threading.Lock()


def train(
    recipe: Recipe | Path | str,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    devices: Devices | None = None,
) -> Path:
    """Train a recipe into a run folder and return the folder.

    Args:
        recipe: a recipe or the path of one.
        out: the run folder, `runs/<recipe name>` by default.
        resume: go on with the interrupted run in that folder.
        devices: where; one process by default, or those of torchrun.

    Raises:
        SidestepError: for anything that cannot work, before a file is written.
        InterruptedRunError: after an interrupt, in all processes alike.
        LostProcessError: when another process has ended.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    if not resume:
        _check_vacant(folder)
    checkpoint = _resumable(folder, recipe) if resume else None
    devices = devices or Devices()
    with devices.launched(recipe.training.precision) as fabric, named_errors(fabric), ExitStack() as stack:
        with _alone:
            job = all_succeed(fabric, lambda: job_of(recipe, fabric))
            execute = stack.enter_context(
                training_execution(job.network, devices.compile, macs=job.forward_macs, fabric=fabric)
            )
        if fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
            (folder / "environment.json").write_text(json.dumps(describe_environment(), indent=1) + "\n")
        fabric.barrier()
        fit(job, folder, fabric, resume=checkpoint, graph=devices.graph, execute=execute)
        if fabric.is_global_zero:
            with _alone:
                _conclude(folder, job, fabric)
        fabric.barrier()
    return folder


def load(run: Path | str, *, checkpoint: str = "best") -> DynamicNetwork:
    """Return the trained network of a run, in evaluation mode, ready for `network(images)`.

    Args:
        run: a run folder.
        checkpoint: "best" or "last".

    Raises:
        CheckpointError: when the folder holds no such checkpoint, or it is damaged.
    """
    return open_run(Path(run), checkpoint).network


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitBudget:
    """What a network with early exits may cost, and how its thresholds are solved for that.

    Args:
        fraction: largest mean MACs per image, routers included, as a fraction of the full network's.
        gflops: the same in GFLOPs of 2 x MACs, instead.
        criterion: by which images leave: "confidence", "margin", "entropy" or "patience".
        scale: whether the temperatures of the exits are fitted first.
    """

    fraction: float | None = None
    gflops: float | None = None
    criterion: Criterion = "confidence"
    scale: bool = True

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.gflops is None):
            raise RecipeError(
                "budget must be given as a fraction of the full network or in GFLOPs, one of them, got "
                f"{self.fraction} and {self.gflops}"
            )

    def macs(self, opened: Opened) -> float:
        """Return the budget in MACs."""
        if self.fraction is not None:
            return self.fraction * opened.cost.full_macs
        assert self.gflops is not None
        return self.gflops * 1e9 / 2


def evaluate(
    run: Path | str,
    *,
    execution: str = "masked",
    decisions: str = "argmax",
    seed: int | None = None,
    budget: ExitBudget | None = None,
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
        split: "test" or "val".
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.
        precision: of the engine, "auto" by default; other executions keep that of the weights.

    Raises:
        SidestepError: for an evaluation that does not exist, decisions drawn by a method without noise among
            them, or a budget that cannot be met.
    """
    opened = open_run(Path(run), checkpoint)
    sampled = _sampled(opened.recipe, decisions, seed)
    rule = _known_rule(opened) if budget is None else _solved(opened, budget, source).rule
    if execution == ENGINE:
        if sampled is not None:
            raise ExecutionError("the engine knows arg-max decisions alone, got sampled; evaluate masked")
        engine, batches = engine_of_run(opened, rule, precision or "auto"), _batches(opened, split, source)
        num_classes = len(opened.values["class_names"])
        return evaluate_engine(engine, batches, opened.cost, num_classes=num_classes)
    if precision is not None:
        raise ExecutionError(f"precision is the engine's alone, got execution {execution!r}; drop it")
    chosen = execution_of(execution)
    return evaluate_network(
        opened.network,
        _batches(opened, split, source),
        opened.cost,
        num_classes=len(opened.values["class_names"]),
        execution=chosen,
        sampled=sampled,
        rule=rule,
    )


def calibrate(
    run: Path | str, budget: ExitBudget, *, checkpoint: str = "best", source: str | None = None
) -> ExitCalibration:
    """Solve the thresholds of a run's early exits for a budget, keep them in its checkpoint, and return them.

    Args:
        run: a run folder.
        budget: what an image may cost on average.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: for a network without early exits, or a budget that cannot be met; nothing is written
            then.
    """
    opened = open_run(Path(run), checkpoint)
    calibration = _solved(opened, budget, source)
    kept = load_checkpoint(opened.path)
    save_checkpoint(
        opened.path, Checkpoint(tensors=kept.tensors, values=kept.values | {_EXITS: asdict(calibration)})
    )
    return calibration


def curve(
    run: Path | str,
    *,
    criterion: Criterion = "confidence",
    scale: bool = True,
    num_budgets: int = 20,
    checkpoint: str = "best",
    source: str | None = None,
) -> ExitCurve:
    """Return accuracy over cost of a run's early exits on the test split, and keep it in the run folder.

    There it is `exits.json`, which results pages read, `exits.csv` and `exits.png`.

    Args:
        run: a run folder.
        criterion: by which images leave.
        scale: whether the temperatures of the exits are fitted first.
        num_budgets: number of budgets, from the cheapest to the dearest exit.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: for a network without early exits.
    """
    opened = open_run(Path(run), checkpoint)
    found = exit_curve(
        _survey(opened, "val", source),
        _survey(opened, "test", source),
        full_macs=opened.cost.full_macs,
        criterion=criterion,
        scale=scale,
        num_budgets=num_budgets,
    )
    save_exit_curve(Path(run), found, checkpoint)
    return found


def bench(
    run: Path | str,
    *,
    batch_sizes: Sequence[int] = (1, 32, 256),
    seconds: float = 10.0,
    checkpoint: str = "best",
    source: str | None = None,
) -> BenchResult:
    """Return measured times of a run's network, in all its executions, beside its static origin's.

    They are also kept in the run folder, for its results page.

    Args:
        run: a run folder.
        batch_sizes: images per call.
        seconds: time limit of every precision and batch size.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says; real images decide the paths.
    """
    opened = open_run(Path(run), checkpoint)
    data = data_of(opened, "test", source)
    if data.test is None:
        raise RecipeError("bench needs the test split of the run's data, and there is none")
    images = next(iter(data.test.eval_batches(batch_size=max(batch_sizes)))).images
    result = bench_network(
        opened.network,
        input_size=tuple(opened.values["input_size"]),
        batch_sizes=batch_sizes,
        images=images,
        seconds=seconds,
        rule=_known_rule(opened),
        extra=engines_of(opened, _known_rule(opened)),
    )
    (Path(run) / BENCH).write_text(json.dumps(result.as_dict(), indent=1) + "\n")
    return result


def _check_vacant(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise RecipeError(
            f"run folder {folder} must be empty or new, and it is not; "
            "choose another with --out, or go on with --resume"
        )


def _resumable(folder: Path, recipe: Recipe) -> Checkpoint:
    if not (folder / LAST).is_file():
        raise CheckpointError(
            f"run {folder} must hold {LAST} to be resumed, got none; start without --resume"
        )
    checkpoint = load_checkpoint(folder / LAST)
    # Compared as recipes, so that a setting that came later has its default in an older run.
    if from_dict(checkpoint.values["recipe"]).as_dict() != recipe.as_dict():
        raise RecipeError(
            f"run {folder} was started with other settings than recipe {recipe.name!r} has now; "
            f"resume it with its own recipe ({folder / 'recipe.yaml'}) and without overrides"
        )
    return checkpoint


def _batches(opened: Opened, split: Role, source: str | None) -> Iterable[Batch]:
    data = data_of(opened, split, source)
    images = data.test if split == "test" else data.val
    if images is None:
        raise RecipeError(f"split {split!r} is empty in this run; val_fraction of its recipe is 0")
    return images.eval_batches(batch_size=1000)


def _known_rule(opened: Opened) -> ExitRule | None:
    """Return the exit rule that `calibrate` has left in the checkpoint, if it has."""
    known = opened.values.get(_EXITS)
    return None if known is None else ExitCalibration(**known).rule


def _survey(opened: Opened, split: Role, source: str | None) -> ExitSurvey:
    if not isinstance(opened.network, ExitNetwork):
        raise ExecutionError(
            "a budget of exits needs a network with early exits, got one without; train ranet or msdnet, or "
            "set model.exits"
        )
    return survey_exits(opened.network, _batches(opened, split, source), opened.cost)


def _solved(opened: Opened, budget: ExitBudget, source: str | None) -> ExitCalibration:
    """Return the rule that meets a budget on the validation split."""
    survey = _survey(opened, "val", source)
    return solve_exits(survey, budget.macs(opened), criterion=budget.criterion, scale=budget.scale)


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


def _conclude(folder: Path, job: Job, fabric: Fabric) -> None:
    """Report best and last checkpoint on the test split, which nothing was chosen on."""
    if job.data.test is None:
        return
    reports = {}
    for name in ("best", "last"):
        opened = open_run(folder, name)
        reports[name] = evaluate_network(
            opened.network.to(fabric.device),
            job.data.test.eval_batches(batch_size=1000),
            opened.cost,
            num_classes=job.data.num_classes,
        ).as_dict()
    (folder / "report.json").write_text(json.dumps(reports, indent=1) + "\n")
    if reports["best"]["keep_rates"]:
        save_keep_rates(folder / "keep_rates.png", reports["best"], list(job.data.class_names))
