"""Recipes and checkpoints become networks, data and jobs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.static_weights import load_static_weights
from sidestep.cost.macs import measure_cost
from sidestep.data import Data, Shard, load_data
from sidestep.data.image_set import train_rows
from sidestep.data.mixing import check_pairs
from sidestep.errors import ExportError, RecipeError
from sidestep.execution.on_bytes import ByteLayout
from sidestep.networks.attached_exits import attach_exits
from sidestep.networks.cascade_network import CascadeNetwork
from sidestep.networks.models import build_backbone, build_model
from sidestep.networks.network import DynamicNetwork
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.progress import watched
from sidestep.quantisation.trained import byte_layout
from sidestep.routing.budget_router import BudgetedRouter
from sidestep.routing.seeing_router import sees_exits
from sidestep.routing.share import CLOSING_STEPS, ShareConfig
from sidestep.runs.cascade_model import load_members
from sidestep.runs.published_weights import check_start
from sidestep.runs.recipe import Recipe, method_of, model_of
from sidestep.training.distributed import synchronize_batch_norm
from sidestep.training.loop import Job
from sidestep.training.optimizer import check_options
from sidestep.training.step import settings_at
from sidestep.training.training_config import ExitLossConfig
from sidestep.types import CostModel


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let what layers draw inside follow from a seed, and leave torch's generators as they were.

    Initial weights are drawn on the CPU, whichever device they go to, and dropout where it computes. All
    other draws have generators of their own.

    Args:
        seed: of the draws.
        device: where layers compute; None builds them only.
    """
    gpu = device if device is not None and device.type == "cuda" else None
    with torch.random.fork_rng([] if gpu is None else [gpu]):
        torch.default_generator.manual_seed(seed)
        if gpu is not None:
            torch.cuda.default_generators[gpu.index or 0].manual_seed(seed)
        yield


def untrained(
    recipe: Recipe, *, num_classes: int, input_size: tuple[int, int] | None = None
) -> DynamicNetwork:
    """Return the network of a recipe with its initial weights, with nothing read or downloaded."""
    with seeded(recipe.training.seed):
        return _untrained(recipe, num_classes, input_size)


def _untrained(recipe: Recipe, num_classes: int, input_size: tuple[int, int] | None) -> DynamicNetwork:
    method, exits = method_of(recipe), recipe.model.exits
    built: Any = build_model(recipe.model, num_classes, input_size, recipe.data.channels)
    network = method.network(built, method.router(built, recipe.settings))
    if not exits.at:
        return network
    return attach_exits(network, exits.at, num_classes=num_classes, width=exits.width)


def job_of(recipe: Recipe, fabric: Fabric) -> Job:
    """Return what a recipe trains, with data loaded and the network on the device of this process."""
    method = method_of(recipe)
    check_options(recipe.training.optimizer)
    _check_learnt_shares(recipe)
    data = load_data(
        recipe.data,
        statistics=method.statistics(recipe.settings),
        splits=("train", "val", "test"),
        device=fabric.device,
    )
    if data.train is not None and recipe.training.phases:
        shard = Shard(fabric.global_rank, fabric.world_size)
        # Refuses batches that are too large, or that the processes cannot share.
        train_rows(len(data.train), recipe.training.batch_size, 0, shard, recipe.data.views)
        if recipe.data.augment.mixes:
            check_pairs(recipe.training.batch_size // fabric.world_size)
    with seeded(recipe.training.seed):
        network = _untrained(recipe, data.num_classes, data.input_size)
        _check_exits(network, recipe)
        _check_budgets(network, recipe)
        _check_unlearnt(network, recipe)
        teacher, notes = _start_from_static(network, recipe, data)
    cost = measure_cost(network, data.input_size)
    layout = _byte_layout_of(network, recipe, data, cost)
    if fabric.world_size > 1:
        synchronize_batch_norm(network)
    return Job(
        network=_placed(network, recipe, fabric),
        teacher=None if teacher is None else _placed(teacher.eval().requires_grad_(False), recipe, fabric),
        method=method,
        settings=recipe.settings,
        cost=cost.to(fabric.device),
        data=data,
        config=recipe.training,
        values={
            "recipe": recipe.as_dict(),
            "class_names": list(data.class_names),
            "input_size": list(data.input_size),
            "preparation": data.preparation.as_dict(),
            "drawn_from": data.drawn_from,
        },
        notes=notes,
        byte_layout=layout,
    )


def _byte_layout_of(
    network: DynamicNetwork, recipe: Recipe, data: Data, cost: CostModel
) -> Callable[[DynamicNetwork], ByteLayout] | None:
    """Return what finds where the network is to be on bytes, if a phase trains it so.

    Raises:
        RecipeError: for a network that no plan can express, or without images that ranges are found on.
    """
    phases = [phase for phase in recipe.training.phases if phase.epochs and phase.quantize is not None]
    if not phases:
        return None
    where = f"quantize of phase {phases[0].name!r}"
    if data.val is None or recipe.data.per_image_standardization:
        raise RecipeError(
            f"{where} needs a validation split, on which ranges are found, and images that are all "
            "normalised alike; set data.val_fraction, and no data.per_image_standardization, or drop it"
        )
    config, images = recipe.data, data.val
    card = PlanCard(
        input_size=data.input_size,
        mean=config.mean,
        std=config.std,
        class_names=data.class_names,
        cost=cost,
    )
    try:
        export_plan(_at_one_budget(network), card)
    except ExportError as error:
        raise RecipeError(f"{where} needs a network that INT8 plans can express: {error}") from error

    def layout(trained: DynamicNetwork) -> ByteLayout:
        found = [batch.images.float().cpu() for batch in islice(images.eval_batches(batch_size=64), 8)]
        plain = _at_one_budget(trained).cpu()
        # The training has a bar of its own, and only one can be shown at a time.
        with watched(None):
            whole = byte_layout(plain, card, found)
        # In training these routers are others in every step.
        return whole.without("router.") if isinstance(trained.router, BudgetedRouter) else whole

    return layout


def _at_one_budget(network: DynamicNetwork) -> DynamicNetwork:
    """Return a copy in evaluation mode; routers that are given the budget have the full one."""
    plain = copy.deepcopy(network).eval()
    if isinstance(plain.router, BudgetedRouter):
        plain.router = plain.router.at(1.0)
    return plain


def _check_exits(network: DynamicNetwork, recipe: Recipe) -> None:
    """Refuse settings of exits for a network without, and a static teacher for a network of exits alone."""
    if not network.has_early_exits and recipe.training.exits != ExitLossConfig():
        raise RecipeError(
            "training.exits has no effect on a network without early exits, got settings of its own; drop "
            "it, or set model.exits"
        )
    if not network.has_early_exits and sees_exits(network.router):
        raise RecipeError(
            "method.sees_exits has no effect on a network without early exits, got true; set model.exits"
        )
    if model_of(recipe).dynamic and recipe.training.distillation.weight > 0:
        raise RecipeError(
            f"training.distillation needs a static origin, which {recipe.model.name} has none, got weight "
            f"{recipe.training.distillation.weight}; training.exits.distillation learns from the last exit"
        )


def _check_learnt_shares(recipe: Recipe) -> None:
    """Refuse shares that are to be learnt, and close before any unit has shown what it is worth."""
    share = getattr(recipe.settings, "share", None)
    phases = [phase for phase in recipe.training.phases if phase.epochs and phase.paths == "routed"]
    if not (isinstance(share, ShareConfig) and share.learn and phases):
        return
    closing = settings_at(recipe.settings, phases[0], 0.0).closing
    if closing * CLOSING_STEPS >= 1:
        raise RecipeError(
            f"closing must begin below 1/{CLOSING_STEPS} where shares are learnt, so that all units run and "
            f"show what they are worth, got {closing} in phase {phases[0].name!r}; begin with a phase with "
            "settings: {closing: 0}, or a ramp from 0"
        )


def _check_budgets(network: DynamicNetwork, recipe: Recipe) -> None:
    """Refuse phases that move the budget of a network for all budgets, which training draws."""
    if not isinstance(network.router, BudgetedRouter):
        return
    for phase in recipe.training.phases:
        moved = {"target", "num_units"} & {*phase.settings, *phase.ramps}
        if moved:
            raise RecipeError(
                f"{min(moved)} has no effect in phase {phase.name!r} of a network for all budgets, which are "
                "drawn; drop it, or method.budgets"
            )


def _check_unlearnt(network: DynamicNetwork, recipe: Recipe) -> None:
    """Refuse images that are left to parts of a network that learn nothing."""
    learning = {name for name, part in network.parts().items() if any(True for _ in part.parameters())}
    for phase in recipe.training.phases:
        learner = "routers" if phase.images == "apart" else phase.train
        if phase.images in ("apart", "unlearnt") and learner not in learning:
            raise RecipeError(
                f"images of phase {phase.name!r} must be all or learnt under {recipe.method}, which has no "
                f"{learner} that learn, got {phase.images!r}; change it"
            )


def _start_from_static(
    network: DynamicNetwork, recipe: Recipe, data: Data
) -> tuple[Backbone | None, list[str]]:
    """Load the static origin; return a copy of it if it is to teach, and sentences about what was loaded."""
    teaches = recipe.training.distillation.weight > 0
    if isinstance(network, CascadeNetwork):
        return None, load_members(network, recipe.model.settings.members, data.num_classes)
    blocks = network.parts()["blocks"]
    if recipe.model.init is None:
        if teaches:
            raise RecipeError(
                "distillation needs a teacher: set model.init to the weights of the static network"
            )
        if recipe.model.pretrained:
            trained = build_backbone(recipe.model, data.num_classes, data.input_size, recipe.data.channels)
            blocks.load_state_dict(trained.state_dict())
        return None, []
    new_head = recipe.model.init_head == "new"
    if new_head and teaches:
        raise RecipeError(
            "model.init_head must be load with training.distillation, whose teacher has to know the classes, "
            "got 'new'; set training.distillation.weight to 0, or train the static network first"
        )
    check_start(recipe, Path(recipe.model.init))
    notes = load_static_weights(blocks, Path(recipe.model.init), new_head=new_head)
    if not teaches:
        return None, notes
    teacher = build_backbone(recipe.model, data.num_classes, data.input_size, recipe.data.channels)
    load_static_weights(teacher, Path(recipe.model.init))
    return teacher, notes


def _placed(module: Any, recipe: Recipe, fabric: Fabric) -> Any:
    module = module.to(fabric.device)
    return module.to(memory_format=torch.channels_last) if recipe.training.channels_last else module
