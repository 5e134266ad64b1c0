"""Run folders: train into one, load from one, evaluate and bench what is in it.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, TensorBoard events, `last.safetensors` and
`best.safetensors`, `environment.json`, after the last epoch `report.json` and `keep_rates.png`, and what
`bench` measured last as `bench.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric

from sidestep.analysis.figures import save_keep_rates
from sidestep.analysis.results import BENCH
from sidestep.backbones.backbone import Backbone
from sidestep.backbones.build import build_backbone
from sidestep.backbones.routed import RoutedNetwork, masked
from sidestep.checkpoint import Checkpoint, load_checkpoint, load_static_weights, load_weights
from sidestep.cost.macs import measure_cost
from sidestep.data import Data, load_data
from sidestep.data.sources import Role
from sidestep.errors import CheckpointError, DataError, RecipeError
from sidestep.evaluation.bench import BenchResult, bench_network
from sidestep.evaluation.environment import describe_environment
from sidestep.evaluation.report import Report, evaluate_network
from sidestep.evaluation.sampled import Sampled
from sidestep.execution.gathered import gathered
from sidestep.layers.unit import Execute
from sidestep.recipe import Recipe, from_dict, load_recipe, method_of
from sidestep.routing.samplers import Noise, is_noisy
from sidestep.training.distributed import synchronize_batch_norm
from sidestep.training.loop import BEST, LAST, Job, fit
from sidestep.training.step import settings_at
from sidestep.types import CostModel

EXECUTIONS: dict[str, Execute] = {"masked": masked, "gathered": gathered}
DECISIONS = ("argmax", "sampled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Where a run trains.

    Args:
        accelerator: "auto", "cpu" or "cuda".
        devices: number of processes, one per device.
        strategy: "auto", or "ddp" for several processes.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"


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
        devices: where; one device by default.

    Raises:
        SidestepError: for anything that cannot work, before a file is written.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    if not resume:
        _check_vacant(folder)
    checkpoint = _resumable(folder, recipe) if resume else None
    devices = devices or Devices()
    fabric = Fabric(
        accelerator=devices.accelerator,
        devices=devices.devices,
        strategy=devices.strategy,
        precision=recipe.training.precision,
    )
    fabric.launch()
    job = _job(recipe, fabric)
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
        (folder / "environment.json").write_text(json.dumps(describe_environment(), indent=1) + "\n")
    fabric.barrier()
    fit(job, folder, fabric, resume=checkpoint)
    if fabric.is_global_zero:
        _conclude(folder, job)
    fabric.barrier()
    return folder


def load(run: Path | str, *, checkpoint: str = "best") -> RoutedNetwork:
    """Return the trained network of a run, in evaluation mode, ready for `network(images)`.

    Args:
        run: a run folder.
        checkpoint: "best" or "last".

    Raises:
        CheckpointError: when the folder holds no such checkpoint, or it is damaged.
    """
    return _open(Path(run), checkpoint).network


def evaluate(
    run: Path | str,
    *,
    execution: str = "masked",
    decisions: str = "argmax",
    seed: int | None = None,
    split: Role = "test",
    checkpoint: str = "best",
    source: str | None = None,
) -> Report:
    """Return the report of a run's network on one of its splits.

    Args:
        run: a run folder.
        execution: "masked" or "gathered".
        decisions: "argmax", or "sampled" to draw them as the released codes of some methods do: with the
            sampler, noise included, that training ended with. Soft ones mix outputs, masked alone.
        seed: of what is drawn, 0 by default; the same seed gives the same report.
        split: "test" or "val".
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: for an evaluation that does not exist, decisions drawn by a method without noise among
            them.
    """
    opened = _open(Path(run), checkpoint)
    execute, sampled = _execution(execution), _sampled(opened.recipe, decisions, seed)
    data = _data(opened, split, source)
    batches = data.test if split == "test" else data.val
    if batches is None:
        raise RecipeError(f"split {split!r} is empty in this run; val_fraction of its recipe is 0")
    return evaluate_network(
        opened.network,
        batches.eval_batches(batch_size=1000),
        opened.cost,
        num_classes=len(opened.values["class_names"]),
        execute=execute,
        execution=execution,
        sampled=sampled,
    )


def bench(
    run: Path | str,
    *,
    batch_sizes: Sequence[int] = (1, 32, 256),
    seconds: float = 10.0,
    checkpoint: str = "best",
    source: str | None = None,
) -> BenchResult:
    """Return measured times of a run's network, masked and gathered, beside its static origin's.

    They are also kept in the run folder, for its results page.

    Args:
        run: a run folder.
        batch_sizes: images per call.
        seconds: time limit of every precision and batch size.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says; real images decide the paths.
    """
    opened = _open(Path(run), checkpoint)
    data = _data(opened, "test", source)
    if data.test is None:
        raise RecipeError("bench needs the test split of the run's data, and there is none")
    images = next(iter(data.test.eval_batches(batch_size=max(batch_sizes)))).images
    result = bench_network(
        opened.network,
        input_size=tuple(opened.values["input_size"]),
        batch_sizes=batch_sizes,
        images=images,
        seconds=seconds,
    )
    (Path(run) / BENCH).write_text(json.dumps(result.as_dict(), indent=1) + "\n")
    return result


def untrained(
    recipe: Recipe, *, num_classes: int, input_size: tuple[int, int] | None = None
) -> RoutedNetwork:
    """Return the network of a recipe with its initial weights, with nothing read or downloaded."""
    torch.manual_seed(recipe.training.seed)
    backbone = build_backbone(replace(recipe.model, pretrained=False), num_classes, input_size)
    method = method_of(recipe)
    return method.network(backbone, method.router(backbone, recipe.settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    recipe: Recipe
    network: RoutedNetwork
    cost: CostModel
    values: dict[str, Any]


def _open(run: Path, name: str) -> _Opened:
    path = run / {"best": BEST, "last": LAST}.get(name, name)
    if not path.is_file():
        raise CheckpointError(f"run {run} must hold {path.name}, and there is none; train it or name another")
    checkpoint = load_checkpoint(path)
    recipe = from_dict(checkpoint.values["recipe"], str(path))
    height, width = checkpoint.values["input_size"]
    network = untrained(recipe, num_classes=len(checkpoint.values["class_names"]), input_size=(height, width))
    load_weights(network, checkpoint.section("model"), f"checkpoint {path}")
    network.eval()
    cost = measure_cost(network, (height, width))
    return _Opened(recipe=recipe, network=network, cost=cost, values=checkpoint.values)


def _job(recipe: Recipe, fabric: Fabric) -> Job:
    method = method_of(recipe)
    data = load_data(
        recipe.data,
        statistics=method.statistics(recipe.settings),
        splits=("train", "val", "test"),
        device=fabric.device,
    )
    if data.train is not None:
        data.train.num_steps(recipe.training.batch_size)  # refuses a batch that is too large
    network = untrained(recipe, num_classes=data.num_classes, input_size=data.input_size)
    teacher = _start_from_static(network, recipe, data)
    cost = measure_cost(network, data.input_size)
    if fabric.world_size > 1:
        synchronize_batch_norm(network)
    return Job(
        network=_placed(network, recipe, fabric),
        teacher=None if teacher is None else _placed(teacher.eval().requires_grad_(False), recipe, fabric),
        method=method,
        settings=recipe.settings,
        cost=cost,
        data=data,
        config=recipe.training,
        values={
            "recipe": recipe.as_dict(),
            "class_names": list(data.class_names),
            "input_size": list(data.input_size),
        },
    )


def _start_from_static(network: RoutedNetwork, recipe: Recipe, data: Data) -> Backbone | None:
    """Load the static origin into the network, and return a copy of it if it is to teach."""
    teaches = recipe.training.distillation.weight > 0
    if recipe.model.init is None:
        if teaches:
            raise RecipeError(
                "distillation needs a teacher: set model.init to the weights of the static network"
            )
        if recipe.model.pretrained:
            trained = build_backbone(recipe.model, data.num_classes, data.input_size)
            network.backbone.load_state_dict(trained.state_dict())
        return None
    load_static_weights(network.backbone, Path(recipe.model.init))
    if not teaches:
        return None
    teacher = build_backbone(recipe.model, data.num_classes, data.input_size)
    load_static_weights(teacher, Path(recipe.model.init))
    return teacher


def _placed(module: Any, recipe: Recipe, fabric: Fabric) -> Any:
    module = module.to(fabric.device)
    return module.to(memory_format=torch.channels_last) if recipe.training.channels_last else module


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


def _execution(name: str) -> Execute:
    if name not in EXECUTIONS:
        raise RecipeError(f"execution must be one of {', '.join(EXECUTIONS)}, got {name!r}")
    return EXECUTIONS[name]


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


def _data(opened: _Opened, split: Role, source: str | None) -> Data:
    """Return a split of the run's data, or of other data that fits the run's network."""
    config = opened.recipe.data if source is None else replace(opened.recipe.data, source=source)
    data = load_data(config, splits=[split])
    trained, found = len(opened.values["class_names"]), data.num_classes
    if trained != found:
        raise DataError(f"source {config.source!r} must have the run's {trained} classes, got {found}")
    if list(data.input_size) != opened.values["input_size"]:
        raise DataError(
            f"images of source {config.source!r} must be {opened.values['input_size']} as in training, "
            f"got {list(data.input_size)}; set data.image_size when training"
        )
    return data


def _conclude(folder: Path, job: Job) -> None:
    """Report best and last checkpoint on the test split, which nothing was chosen on."""
    if job.data.test is None:
        return
    reports = {}
    for name in ("best", "last"):
        opened = _open(folder, name)
        reports[name] = evaluate_network(
            opened.network,
            job.data.test.eval_batches(batch_size=1000),
            opened.cost,
            num_classes=job.data.num_classes,
        ).as_dict()
    (folder / "report.json").write_text(json.dumps(reports, indent=1) + "\n")
    save_keep_rates(folder / "keep_rates.png", reports["best"], list(job.data.class_names))
