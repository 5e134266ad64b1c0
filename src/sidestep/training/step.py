"""One training step as a module: from images to the terms of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.backbones.backbone import Backbone
from sidestep.execution.execution import Execution, masked
from sidestep.execution.on_bytes import OnBytes
from sidestep.losses.distillation import distillation_loss
from sidestep.losses.exit_loss import exit_loss, exit_weights, self_distillation_loss
from sidestep.losses.paths import rank_correlation
from sidestep.methods.method import Method
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.budget_router import AtBudgets, BudgetedRouter, budgets_of_step
from sidestep.routing.router import ConstantRouter, Router
from sidestep.routing.samplers import Categorical, Noise, Sampler, argmax
from sidestep.training.sandwich import copies_of, parts_of, sandwich_terms
from sidestep.training.training_config import Phase, TrainingConfig
from sidestep.types import Batch, CostModel, RoutedOutput


class TrainingStep(nn.Module):
    """Runs a network on a batch as a phase says, and returns the terms of its loss.

    Task loss, distillation and the method's own losses meet here, inside one module, so that a distributed
    wrapper sees a single forward pass.

    Args:
        network: what learns.
        method: which losses and which sampler.
        settings: the method's settings.
        cost: price list of the network.
        config: training settings.
        teacher: static origin for distillation, in evaluation mode, or None.
        execution: how units are run; all of it computed, as losses need it.
        on_bytes: how the network is run as if it were on bytes, or None where it is not.
    """

    def __init__(
        self,
        network: DynamicNetwork,
        *,
        method: Method[Any],
        settings: Any,
        cost: CostModel,
        config: TrainingConfig,
        teacher: Backbone | None = None,
        execution: Execution = masked,
        on_bytes: OnBytes | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.on_bytes = on_bytes
        self.method = method
        self.settings = settings
        self.cost = cost
        self.config = config
        self.execution = execution
        # In a tuple the teacher is no submodule: it is neither trained, nor saved, nor synchronised.
        self._teacher = (teacher,)

    def begin(
        self, phase: Phase, progress: float, noise: Noise, *, log_figures: bool = True, views: int = 1
    ) -> None:
        """Set what the next forward pass stands in; distributed wrappers pass tensors only.

        Args:
            phase: which paths are taken.
            progress: position in the phase, in [0, 1].
            noise: source of all draws of the step.
            log_figures: whether figures are computed that cost time and are only logged.
            views: number of views of every image in the batch.
        """
        self._phase = phase
        self._now = settings_at(self.settings, phase, progress)
        self._noise = noise
        self._log_figures = log_figures
        self._views = views

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        statistics: Tensor | None = None,
        partners: Tensor | None = None,
        share: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weighted terms whose sum is minimised, and figures that are only logged; all scalars.

        Args:
            images: (B, 3, H, W) normalised pixels.
            labels: (B,) classes.
            statistics: (B, S) image statistics or None.
            partners: (B,) classes of the images that these are mixed with, or None.
            share: (B,) share of the own class, or None.
        """
        batch = Batch(
            images=images,
            labels=labels,
            statistics=statistics,
            teacher_logits=self._teach(images),
            views=self._views,
            partners=partners,
            share=share,
        )
        budgets = self._budgets(images.device)
        given = batch if budgets is None else copies_of(batch, len(budgets))
        sampler, router = self._decider(images.device, budgets)
        output = self._run(given.images, sampler=sampler, router=router, execution=self.execution)
        batch = replace(batch, greedy=self._greedy(images, router))
        parts = [(output, batch)] if budgets is None else parts_of(output, batch, budgets)
        figures = {
            "accuracy": (output.logits.argmax(dim=1) == _largest(given)).float().mean(),
            "fraction": self.cost.fraction(output.decisions).mean().detach(),
        }
        if self._phase.paths == "routed" and statistics is not None and self._log_figures:
            paths = [part.decisions.relaxed_execution() for part, _ in parts]
            found = [rank_correlation(each, statistics) for each in paths]
            figures["rank_correlation"] = torch.stack(found).mean()
        return self._losses(parts), figures

    def _run(self, images: Tensor, **how: Any) -> RoutedOutput:
        """Return what the network says, on bytes if it is to."""
        if self.on_bytes is None:
            return self.network(images, **how)  # type: ignore[no-any-return]
        return self.on_bytes.run(self.network, images, **how)  # type: ignore[no-any-return]

    def forget_gradients(self, learners: str) -> None:
        """Leave gradients to the parameters that learn in this step, behind a backward pass.

        Args:
            learners: "routers", or "blocks" for all others.
        """
        for name, part in self.network.parts().items():
            if (name == "routers") != (learners == "routers"):
                for parameter in part.parameters():
                    parameter.grad = None

    def _budgets(self, device: torch.device) -> Tensor | None:
        """Return the (G,) budgets with which the step runs its images, if the routers are given any."""
        own = self.network.router
        if self._phase.paths != "routed" or not isinstance(own, BudgetedRouter):
            return None
        return budgets_of_step(own.low, self._noise, device)

    def _decider(self, device: torch.device, budgets: Tensor | None) -> tuple[Sampler, Router | None]:
        """Return who samples, and who decides instead of the network's own router."""
        if self._phase.paths == "routed":
            own, curriculum = self.network.router, self.method.curriculum
            if isinstance(own, BudgetedRouter) and budgets is not None:
                at = AtBudgets(own, budgets)
                return at.sampler(self._now) or self.method.sampler(self._now, self._noise), at
            router = None if own is None or curriculum is None else curriculum(own, self._now)
            sampler = None if own is None else own.sampler(self._now)
            if sampler is not None:
                return sampler, router
            return self.method.sampler(self._now, self._noise), router
        units, options = self.network.shape_of_choices
        if self._phase.paths == "full":
            last = torch.eye(options, device=device)[-1]
            return argmax, ConstantRouter(last.expand(units, -1))
        per: Literal["batch", "sample"] = "batch" if self._phase.paths == "uniform_batch" else "sample"
        uniform = torch.full((units, options), 1 / options, device=device)
        return Categorical(noise=self._noise, per=per), ConstantRouter(uniform)

    def _greedy(self, images: Tensor, router: Router | None) -> RoutedOutput | None:
        """Return what the network does without noise, if a loss compares with it.

        In evaluation mode, so that the second pass does not move BatchNorm's statistics.
        """
        if self._phase.paths != "routed" or not self.method.wants_greedy:
            return None
        whole, modes = self.network.training, [(part, part.training) for part in self.network.children()]
        self.network.eval()
        with torch.no_grad():
            output = self._run(images, router=router, execution=masked)
        for part, training in modes:
            part.train(training)
        self.network.training = whole
        return output

    def _teach(self, images: Tensor) -> Tensor | None:
        (teacher,) = self._teacher
        if teacher is None:
            return None
        with torch.no_grad():
            logits: Tensor = teacher(images)
        return logits

    def _losses(self, parts: Sequence[tuple[RoutedOutput, Batch]]) -> dict[str, Tensor]:
        """Return the terms of the loss, given what was computed for every budget, the full one first."""
        own = self.network.router
        if len(parts) == 1 or not isinstance(own, BudgetedRouter):
            return self._terms(*parts[0])
        exits = parts[0][0].exit_logits
        weights = [1.0] if exits is None else exit_weights(len(exits), self.config.exits.weighting)
        return sandwich_terms(parts, self._terms, distillation=own.config.distillation, exit_weights=weights)

    def _terms(self, output: RoutedOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss of one budget."""
        losses = self._task_losses(output, batch)
        if self._phase.paths == "routed":
            losses |= self.method.losses(output, batch, self.cost, self._now)
        return losses

    def _task_losses(self, output: RoutedOutput, batch: Batch) -> dict[str, Tensor]:
        logits = output.logits.float()
        losses = self._label_losses(output, batch)
        if batch.teacher_logits is not None:
            distillation = self.config.distillation
            losses["distillation"] = distillation.weight * distillation_loss(
                logits, batch.teacher_logits, temperature=distillation.temperature
            )
        return losses

    def _label_losses(self, output: RoutedOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy, of all exits where there are some, and what they learn from the last."""
        smoothing = self.config.label_smoothing
        if output.exit_logits is None:
            logits = output.logits.float()
            targets = batch.targets(logits.shape[1])
            return {"task": F.cross_entropy(logits, targets, label_smoothing=smoothing)}
        config, exits = self.config.exits, output.exit_logits
        weights = exit_weights(len(exits), config.weighting)
        targets = batch.targets(exits.shape[2])
        losses = {"task": exit_loss(exits, targets, weights, label_smoothing=smoothing)}
        if config.distillation > 0:
            losses["exit_distillation"] = config.distillation * self_distillation_loss(
                exits, weights, temperature=config.temperature
            )
        return losses


def _largest(batch: Batch) -> Tensor:
    """Return the (B,) classes that have the largest share of an image."""
    if batch.partners is None or batch.share is None:
        return batch.labels
    return torch.where(batch.share < 0.5, batch.partners, batch.labels)


def settings_at(settings: Any, phase: Phase, progress: float) -> Any:
    """Return the method's settings at `progress` of a phase."""
    values = dict(phase.settings)
    for name, value in phase.ramped(progress).items():
        outer, _, inner = name.partition(".")
        group = values.get(outer, getattr(settings, outer))
        values[outer] = replace(group, **{inner: value}) if inner else value
    return replace(settings, **values) if values else settings


def select_parameters(network: DynamicNetwork, phase: Phase) -> Callable[[], None]:
    """Let the parameters learn that a phase names, and return what puts the modules into their modes.

    Frozen parts stay in evaluation mode, so that their BatchNorm statistics do not move either. Nor do units
    learn that the router never executes: processes would wait for their gradients.

    Args:
        network: that learns.
        phase: says which parts do, and which paths are taken.
    """
    parts = network.parts()
    for name, part in parts.items():
        part.requires_grad_(phase.train in ("all", name))
    if network.router is not None and phase.paths == "routed":
        for unit in network.router.never:
            network.units[unit].requires_grad_(False)

    def set_modes() -> None:
        for name, part in parts.items():
            part.train(phase.train in ("all", name))

    return set_modes
