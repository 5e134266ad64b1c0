"""How a network is trained: phases, optimiser, batch, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from sidestep.errors import RecipeError
from sidestep.losses.exit_loss import ExitWeighting

Algorithm = Literal["sgd", "adam", "adamw", "nadamw", "adopt", "lion", "muon", "adamuon"]
WITH_MOMENTUM = ("sgd", "muon", "adamuon")

# What torch's generators take.
_SEEDS = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """A method setting that moves linearly from `start` to `end` over the first `until` of a phase.

    Args:
        start: value at the begin of the phase.
        end: value from `until` on.
        until: share of the phase in which it moves.
        steps: moves in so many equal steps; None moves with every update, which no GPU can record.
    """

    start: float
    end: float
    until: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.until <= 1.0:
            raise RecipeError(f"until must be in (0, 1], got {self.until}; 1 ramps over the whole phase")
        if self.steps is not None and self.steps < 1:
            raise RecipeError(f"steps must be at least 1, got {self.steps}; drop it for one per update")

    def at(self, progress: float) -> float:
        """Return the value at `progress` in [0, 1] of the phase."""
        moved = min(1.0, progress / self.until)
        if self.steps is not None:
            # A share of 0.3 is not quite three tenths of the way.
            moved = math.floor(moved * self.steps + 1e-6) / self.steps
        return self.start + (self.end - self.start) * moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training with its own optimiser and schedule.

    Args:
        name: how logs call it.
        epochs: its length; 0 leaves the phase out, so that `--training.phases.0.epochs 0` switches a
            warm-up off.
        train: which parameters learn; the others are frozen, their BatchNorm statistics too.
        paths: who decides: the routers ("routed"), a coin per image and unit ("uniform", USW, eq. 14), a
            coin per unit for the whole batch ("uniform_batch"), or nobody ("full", everything executed).
        lr: base learning rate.
        schedule: "constant", "cosine" to zero, "triangular" (straight lines: up in the warm-up, and down to
            zero), or "multistep".
        milestones: epochs of the phase at which "multistep" multiplies the rate by 0.1.
        warmup_epochs: linear warm-up from zero.
        images: which images are trained on: "all"; those that are "learnt" by blocks or those left "unlearnt"
            (`TrainingConfig.unlearnt`); or "apart": steps take turns, in which blocks and exits learn the
            former, and routers the latter.
        settings: method settings that hold in this phase instead of the recipe's, by name.
        ramps: method settings that move during the phase, by name ("target", "alive.shaping").
        quantize: "int8" rounds weights and maps as INT8 plans do, with gradients that pass straight through
            and ranges that learn. Phases behind it have it too.
    """

    name: str
    epochs: int
    train: Literal["all", "blocks", "routers", "exits"] = "all"
    paths: Literal["routed", "uniform", "uniform_batch", "full"] = "routed"
    lr: float = 0.1
    schedule: Literal["constant", "cosine", "triangular", "multistep"] = "constant"
    milestones: list[int] = field(default_factory=list)
    warmup_epochs: float = 0.0
    images: Literal["all", "learnt", "unlearnt", "apart"] = "all"
    settings: dict[str, Any] = field(default_factory=dict)
    ramps: dict[str, Ramp] = field(default_factory=dict)
    quantize: Literal["int8"] | None = None

    def ramped(self, progress: float) -> dict[str, float]:
        """Return the values of the settings that move, by name, at `progress` in [0, 1] of the phase."""
        return {name: ramp.at(progress) for name, ramp in self.ramps.items()}

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise RecipeError(f"epochs must be at least 0, got {self.epochs}; 0 leaves the phase out")
        if self.lr <= 0:
            raise RecipeError(f"lr must be above 0, got {self.lr}; the paper starts at 0.1")
        if bool(self.milestones) != (self.schedule == "multistep"):
            raise RecipeError(
                f"milestones belong to schedule 'multistep' and it needs some, got {self.milestones} "
                f"with {self.schedule!r}"
            )
        # A phase that is switched off keeps its other settings.
        if self.epochs and not 0 <= self.warmup_epochs <= self.epochs:
            raise RecipeError(
                f"warmup_epochs must be between 0 and epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        if self.epochs and self.schedule == "triangular" and self.warmup_epochs == self.epochs:
            raise RecipeError(
                f"warmup_epochs must be below epochs ({self.epochs}) with schedule 'triangular', got "
                f"{self.warmup_epochs}; a quarter of them is usual"
            )
        if self.paths != "routed" and self.train != "blocks":
            raise RecipeError(
                f"paths {self.paths!r} asks no router, so train must be 'blocks', got {self.train!r}"
            )
        if self.images == "apart" and self.train != "all":
            raise RecipeError(
                f"train must be 'all' where blocks and routers learn from images of their own, got "
                f"{self.train!r}; set images to learnt or unlearnt"
            )
        if self.images == "unlearnt" and self.train in ("all", "blocks"):
            raise RecipeError(
                f"train must be 'routers' or 'exits' on images that blocks do not learn, got {self.train!r}; "
                "set images to apart or learnt"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Settings of the optimiser.

    Args:
        algorithm: "sgd" and "adam" (BlockDrop) are torch's, the others those of `timm.optim` with that name:
            "adamw", "nadamw", "adopt", "lion", "muon" and "adamuon", which leave biases,
            BatchNorm and narrow matrices to AdamW.
        momentum: of sgd, muon and adamuon.
        nesterov: Nesterov's form of it.
        weight_decay: coefficient of it, routers included. "sgd", "adam" add it to the gradient, the others
            take it off the weights.
        options: what else the algorithm takes, by name, such as `betas: [0.9, 0.99]` or, for muon,
            `ns_steps: 3`.
        decayed: "all" parameters, or "weights" of convolutions and linear layers alone, without biases and
            BatchNorm.
        router_lr_factor: learning rate of the routers relative to the blocks'.
    """

    algorithm: Algorithm = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    options: dict[str, Any] = field(default_factory=dict)
    decayed: Literal["all", "weights"] = "all"
    router_lr_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.algorithm not in WITH_MOMENTUM and (self.momentum != 0.9 or self.nesterov):
            raise RecipeError(
                f"momentum and nesterov have no effect on {self.algorithm}, got {self.momentum} and "
                f"{self.nesterov}; drop them"
            )
        for name in ("momentum", "weight_decay", "router_lr_factor"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearntConfig:
    """Training images that are left to the gates, and that blocks do not learn.

    A network that knows its training images makes no mistakes on them, and then no image has a reason to be
    treated unlike another. Which phase sees which images is `Phase.images`.

    Args:
        share: of the training split that is left to the gates; 0 leaves none.
        turns: leave other images in every epoch, until all have had their turn; blocks do learn them then,
            but not lately.
        seed: of which images; a static origin that is trained on the rest has the same.
    """

    share: float = 0.0
    turns: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise RecipeError(f"share must be in [0, 1), got {self.share}; 0.1 to 0.2 are usual")
        if self.seed < 0:
            raise RecipeError(f"seed must be at least 0, got {self.seed}")
        if self.share == 0 and (self.turns or self.seed):
            raise RecipeError(
                f"turns and seed have no effect with share 0, got {self.turns} and {self.seed}; set share"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """Learning from the static origin (model.init).

    Args:
        weight: of the distillation loss; 0 switches it off.
        temperature: of both soft-maxes.
    """

    weight: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise RecipeError(f"weight must be at least 0, got {self.weight}; 0 switches distillation off")
        if self.temperature <= 0:
            raise RecipeError(f"temperature must be above 0, got {self.temperature}; 2 to 4 are usual")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitLossConfig:
    """What early exits learn from; networks without exits have no use for it.

    Args:
        weighting: of the exits' losses, see `exit_weights`; the papers weigh all the same.
        distillation: weight of what all exits learn from the last one; 0 switches it off.
        temperature: of both soft-maxes of the distillation.
    """

    weighting: ExitWeighting = "uniform"
    distillation: float = 0.0
    temperature: float = 3.0

    def __post_init__(self) -> None:
        if self.distillation < 0:
            raise RecipeError(f"distillation must be at least 0, got {self.distillation}; 0 switches it off")
        if self.temperature <= 0:
            raise RecipeError(f"temperature must be above 0, got {self.temperature}; 3 is usual")
        if self.temperature != 3.0 and self.distillation == 0:
            raise RecipeError(
                f"temperature has no effect with distillation 0, got {self.temperature}; set distillation"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of the training loop.

    Args:
        phases: one after the other, each with a fresh optimiser. None at all trains nothing: the run holds
            the weights it starts from, with their report.
        batch_size: images per step over all processes.
        seed: of initialisation, order, augmentation and noise.
        precision: "bf16-mixed" runs convolutions and matrix products in bfloat16.
        channels_last: memory format of images and features; the faster one on CPU and GPU.
        label_smoothing: of the task loss.
        optimizer: which one, and its settings.
        distillation: learning from the static origin.
        exits: losses of early exits.
        unlearnt: training images that are left to the gates.
        ema_decay: decay per step of the weights' moving average that is evaluated and kept; 0 is none.
        max_fraction: largest fraction of the static MACs on the validation split with which an epoch can
            become the best one; None lets every epoch of the last phase compete.
        max_steps: stops every phase after so many steps, for trying things out.
    """

    phases: list[Phase]
    batch_size: int = 256
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = True
    label_smoothing: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    exits: ExitLossConfig = field(default_factory=ExitLossConfig)
    unlearnt: UnlearntConfig = field(default_factory=UnlearntConfig)
    ema_decay: float = 0.0
    max_fraction: float | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.phases and self.phases[-1].epochs == 0:
            raise RecipeError("phases must end with one that has epochs, got none; its best epoch is kept")
        if self.batch_size < 2:
            raise RecipeError(f"batch_size must be at least 2, got {self.batch_size}; BatchNorm needs two")
        if not 0 <= self.seed < _SEEDS:
            raise RecipeError(f"seed must be in 0 to 2^63 - 1, got {self.seed}")
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.ema_decay < 1:
            raise RecipeError(f"ema_decay must be in [0, 1), got {self.ema_decay}; 0 keeps no average")
        self._check_unlearnt()
        self._check_quantized()
        if self.max_fraction is not None and self.max_fraction <= 0:
            raise RecipeError(f"max_fraction must be above 0, got {self.max_fraction}")
        if self.max_steps is not None and self.max_steps < 1:
            raise RecipeError(
                f"max_steps must be at least 1, got {self.max_steps}; remove it for whole epochs"
            )

    def _check_quantized(self) -> None:
        lasting = [phase for phase in self.phases if phase.epochs]
        for before, after in pairwise(lasting):
            if before.quantize is not None and after.quantize is None:
                raise RecipeError(
                    f"quantize of phase {after.name!r} must be int8 as in {before.name!r} before it, whose "
                    "ranges it would leave behind, got null; set it, or train without bytes first"
                )

    def _check_unlearnt(self) -> None:
        apart = [phase.name for phase in self.phases if phase.images != "all"]
        if apart and self.unlearnt.share == 0:
            raise RecipeError(
                f"unlearnt.share must be above 0 for phase {apart[0]!r}, whose images are not all, got 0; "
                "0.1 is usual"
            )
        if self.unlearnt.share and not apart:
            raise RecipeError(
                f"unlearnt.share has no effect where all phases train on all images, got "
                f"{self.unlearnt.share}; set images of a phase"
            )
