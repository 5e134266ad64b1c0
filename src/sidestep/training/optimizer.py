"""The optimiser over blocks and routers, and timm's schedules in steps."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2

from sidestep.networks.network import DynamicNetwork
from sidestep.training.training_config import OptimizerConfig, Phase


def build_optimizer(network: DynamicNetwork, phase: Phase, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters that learn, blocks, routers and exits in groups of their own."""
    factors = {"routers": config.router_lr_factor}
    groups = [
        group
        for name, part in network.parts().items()
        for group in _groups(part, phase.lr * factors.get(name, 1.0), config)
    ]
    if config.algorithm == "adam":
        # Its count of steps lies on the device then, as recording needs it.
        on_gpu = any(parameter.is_cuda for parameter in network.parameters())
        return torch.optim.Adam(groups, lr=phase.lr, weight_decay=config.weight_decay, capturable=on_gpu)
    return torch.optim.SGD(
        groups,
        lr=phase.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        # One kernel per tensor instead of three: 5 % of a step on CPU.
        fused=True,
    )


def build_schedule(optimizer: torch.optim.Optimizer, phase: Phase, steps_per_epoch: int) -> Scheduler:
    """Return timm's schedule for a phase; its state is a function of the step, so nothing is saved."""
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
