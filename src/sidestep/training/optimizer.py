"""The optimiser over blocks and routers, and timm's schedules in steps."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2

from sidestep.errors import RecipeError, first_line
from sidestep.internals import limit_of_shapes_kept
from sidestep.networks.network import DynamicNetwork
from sidestep.training.training_config import WITH_MOMENTUM, OptimizerConfig, Phase

with limit_of_shapes_kept():
    from timm.optim import (  # type: ignore[attr-defined]  # public by its documentation
        create_optimizer_v2,
        get_optimizer_class,
    )

# What an algorithm takes and options are not for: other settings say it, or it is how, not what, is computed.
_SAID = frozenset({"self", "params", "lr", "weight_decay", "momentum", "nesterov", "algo", "adamw_lr"})
_HOW = frozenset(
    {"verbose", "foreach", "fused", "capturable", "maximize", "differentiable", "decoupled_weight_decay"}
)


def build_optimizer(
    network: DynamicNetwork,
    phase: Phase,
    config: OptimizerConfig,
    ranges: Iterable[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters that learn, blocks, routers and exits in groups of their own.

    Args:
        network: whose parameters they are.
        phase: says the learning rate.
        config: says the rest.
        ranges: scales of maps on bytes, a further group that does not decay.
    """
    factors = {"routers": config.router_lr_factor}
    groups = [
        group
        for name, part in network.parts().items()
        for group in _groups(part, phase.lr * factors.get(name, 1.0), config)
    ]
    if scales := list(ranges):
        groups.append({"params": scales, "lr": phase.lr, "weight_decay": 0.0})
    # Where steps are recorded its count of them lies on the device.
    on_gpu = any(parameter.is_cuda for parameter in network.parameters())
    return _optimizer(groups, phase.lr, config, on_gpu=on_gpu)


def check_options(config: OptimizerConfig) -> None:
    """Refuse options that the algorithm does not take, or values that it refuses.

    Raises:
        RecipeError: naming them.
    """
    known = sorted(set(_parameters(config)) - _SAID - _HOW)
    for name in config.options:
        if name not in known:
            raise RecipeError(
                f"training.optimizer.options.{name} must be an option of {config.algorithm}, which are "
                f"{', '.join(known)}; drop it"
            )
    try:
        _optimizer([torch.nn.Parameter(torch.zeros(8, 8))], 0.1, config, on_gpu=False)
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError(
            f"training.optimizer.options must suit {config.algorithm}, got {config.options}: "
            f"{first_line(error)}; correct them, or drop them for timm's"
        ) from error


def can_be_recorded(config: OptimizerConfig) -> bool:
    """Return whether a GPU can repeat its steps as a graph: rates and counts of steps are tensors then."""
    return config.algorithm in ("sgd", "adam", "adamw")


def _optimizer(
    parameters: Iterable[Any], lr: float, config: OptimizerConfig, *, on_gpu: bool
) -> torch.optim.Optimizer:
    values = dict(config.options)
    if config.algorithm in WITH_MOMENTUM:
        values |= {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.algorithm == "sgd":
        # One kernel per tensor instead of three: 5 % of a step on CPU.
        return torch.optim.SGD(parameters, lr=lr, weight_decay=config.weight_decay, fused=True, **values)
    if config.algorithm == "adam":
        return torch.optim.Adam(
            parameters, lr=lr, weight_decay=config.weight_decay, capturable=on_gpu, **values
        )
    if config.algorithm == "adamw":
        values["capturable"] = on_gpu
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        list(parameters),
        opt=config.algorithm,
        lr=lr,
        weight_decay=config.weight_decay,
        filter_bias_and_bn=False,
        **values,
    )
    return optimizer


def _parameters(config: OptimizerConfig) -> Iterable[str]:
    """Return the names of what an algorithm is built with."""
    own = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    made = own.get(config.algorithm) or get_optimizer_class(config.algorithm, bind_defaults=False)
    return inspect.signature(made).parameters


def build_schedule(optimizer: torch.optim.Optimizer, phase: Phase, steps_per_epoch: int) -> Scheduler:
    """Return timm's schedule for a phase; its state is a function of the step, so nothing is saved."""
    if phase.schedule == "triangular":
        rising = round(phase.warmup_epochs * steps_per_epoch)
        return PolyLRScheduler(
            optimizer,
            t_initial=max(1, phase.epochs * steps_per_epoch - rising),
            power=1.0,
            warmup_t=rising,
            warmup_prefix=True,
            t_in_epochs=False,
        )
    kind = {"constant": "multistep", "multistep": "multistep", "cosine": "cosine"}[phase.schedule]
    scheduler: Scheduler | None = create_scheduler_v2(
        optimizer,
        sched=kind,
        num_epochs=phase.epochs,
        decay_milestones=phase.milestones or [phase.epochs + 1],
        decay_rate=0.1,
        min_lr=0.0,
        warmup_lr=0.0,
        warmup_epochs=phase.warmup_epochs,  # type: ignore[arg-type]  # timm multiplies it by the updates
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )[0]
    if scheduler is None:
        raise AssertionError("timm returns a scheduler for every kind named above")
    return scheduler


class TensorRates:
    """Learning rates in tensors, which a recorded step reads whenever it is repeated.

    Schedules write numbers; `write` moves these into the tensors, after every step of the schedule.

    Args:
        optimizer: whose groups have them.
        device: of its parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._groups = optimizer.param_groups
        self._rates = [torch.zeros((), device=device) for _ in self._groups]

    def write(self) -> None:
        """Put what the schedule has written into the tensors, and these into the groups."""
        for group, rate in zip(self._groups, self._rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate


def _groups(module: torch.nn.Module, lr: float, config: OptimizerConfig) -> list[dict[str, Any]]:
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.decayed == "all":
        return [{"params": learning, "lr": lr}]
    # Biases and BatchNorm's parameters are those of one dimension.
    return [
        {"params": [p for p in learning if p.dim() > 1], "lr": lr},
        {"params": [p for p in learning if p.dim() <= 1], "lr": lr, "weight_decay": 0.0},
    ]
