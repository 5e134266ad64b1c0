"""The one training loop: phases, epochs, steps, in plain sight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger

from sidestep.backbones.backbone import Backbone
from sidestep.data import Data, Shard
from sidestep.data.image_set import eval_batch_size
from sidestep.errors import InterruptedRunError, TrainingError
from sidestep.evaluation.report import Report, evaluate_network
from sidestep.execution.execution import Execution, masked
from sidestep.execution.on_bytes import ByteLayout, OnBytes, SimulatedBytes
from sidestep.fused.training_execution import compiled
from sidestep.methods.method import Method
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.budget_router import NUM_BUDGETS, BudgetedRouter
from sidestep.routing.samplers import Noise
from sidestep.training.checkpoint import Checkpoint, save_checkpoint
from sidestep.training.distributed import Agreement, mean_sums
from sidestep.training.epochs import Epochs
from sidestep.training.interrupt import StopFlag, stop_flag
from sidestep.training.log import RunLog
from sidestep.training.meter import Meter, add_sums
from sidestep.training.optimizer import TensorRates, build_optimizer, build_schedule
from sidestep.training.pictures import MOST_PICTURES, pictures_of
from sidestep.training.state import TrainingState, restore_optimizer
from sidestep.training.step import TrainingStep, select_parameters
from sidestep.training.training_config import Phase, TrainingConfig
from sidestep.training.update import EagerUpdate, GraphedUpdate, Update, obstacle, own_stream
from sidestep.types import CostModel

CHECKPOINT_SECONDS = 60.0
LOG_EVERY = 10
LAST, BEST = "last.safetensors", "best.safetensors"

# Optimiser steps that a resumed run has done -> loggers.
MakeLoggers = Callable[[int], Sequence[Logger]]


def no_loggers(steps_done: int) -> Sequence[Logger]:
    """Return no loggers: metrics.jsonl says everything."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is trained, on what, and how.

    Attributes:
        network: with its weights initialised.
        teacher: static origin for distillation, or None.
        method: losses and sampler.
        settings: the method's.
        cost: price list of the network.
        data: splits; without a validation split the last epoch is the best.
        config: phases and the rest.
        values: plain values that go into every checkpoint (the recipe).
        notes: sentences that are said before the first step.
        byte_layout: where a network is to be on bytes in phases that quantize, found on validation images.
    """

    network: DynamicNetwork
    teacher: Backbone | None
    method: Method[Any]
    settings: Any
    cost: CostModel
    data: Data
    config: TrainingConfig
    values: dict[str, Any]
    notes: Sequence[str] = ()
    byte_layout: Callable[[DynamicNetwork], ByteLayout] | None = None

    @property
    def forward_macs(self) -> float:
        """MACs of all forward passes of the training, everything executed; 0 without a training split."""
        if self.data.train is None:
            return 0.0
        budgets = NUM_BUDGETS if isinstance(self.network.router, BudgetedRouter) else 1
        steps = sum(
            self.epochs(phase)
            * Epochs(self.data.train, self.config, phase).num_steps
            * (budgets if phase.paths == "routed" else 1)
            for phase in self.config.phases
        )
        return steps * self.config.batch_size * self.cost.full

    def epochs(self, phase: Phase) -> int:
        """Return how many epochs a phase is trained for."""
        return phase.epochs if self.config.max_steps is None else min(phase.epochs, 1)


def fit(
    job: Job,
    folder: Path,
    fabric: Fabric,
    *,
    resume: Checkpoint | None = None,
    graph: bool = True,
    execution: Execution = masked,
    loggers: MakeLoggers = no_loggers,
) -> None:
    """Train through all phases, and leave last and best checkpoint and the metrics in `folder`.

    Args:
        job: what is trained.
        folder: an existing run folder.
        fabric: launched; says devices, processes and precision.
        resume: the last checkpoint of an interrupted run.
        graph: whether a GPU replays its steps as CUDA graphs, where these can be recorded.
        execution: how the network is run in training, see `fused.training_execution`.
        loggers: who gets the figures beside metrics.jsonl; called in the first process alone.

    Raises:
        TrainingError: when the loss is not finite; the last good checkpoint stays.
        InterruptedRunError: after an interrupt, with a checkpoint of the step before it.
    """
    trainer = _Trainer(job, folder, fabric, graph=graph, execution=execution)
    if resume is not None:
        trainer.state.restore(resume)
    position = trainer.state.position
    active = fabric.is_global_zero
    made = loggers(position.steps_done) if active else []
    with (
        RunLog(folder, resume_step=position.steps_done, active=active, loggers=made) as log,
        stop_flag() as stop,
        own_stream(fabric.device),
    ):
        for note in job.notes if fabric.is_global_zero else ():
            log.say(note)
        if execution is compiled:
            log.say(
                "the first steps take a minute longer, since units are compiled; --compile false avoids it"
            )
        for phase in job.config.phases[position.phase :]:
            if phase.epochs:
                trainer.run_phase(phase, log, stop, resume)
            position.phase, position.epoch = position.phase + 1, 0
            resume = None
    if not job.config.phases:
        trainer.keep_start()


class _Trainer:
    """The running parts of one `fit`."""

    def __init__(self, job: Job, folder: Path, fabric: Fabric, *, graph: bool, execution: Execution) -> None:
        if job.data.train is None:
            raise TrainingError(
                "training needs the training split, got none; load it with splits=('train', ...)"
            )
        self.job, self.folder, self.fabric = job, folder, fabric
        self.train_set = job.data.train
        self.state = TrainingState(job.network, ema_decay=job.config.ema_decay)
        self.meter, self.agreement = Meter(), Agreement()
        self.shard = Shard(fabric.global_rank, fabric.world_size)
        self.saved_at = self.clock = time.monotonic()
        self.on_gpu = fabric.device.type == "cuda"
        self.graph = graph and self.on_gpu
        self.execution = execution
        self.optimizer: torch.optim.Optimizer | None = None

    def keep_start(self) -> None:
        """Save the weights as they are, for a run that trains nothing."""
        self._save(BEST)
        self._save(LAST)

    def run_phase(self, phase: Phase, log: RunLog, stop: StopFlag, resume: Checkpoint | None) -> None:
        """Train one phase from the current position to its end."""
        job, position = self.job, self.state.position
        on_bytes = self._on_bytes(phase, log)
        set_modes = select_parameters(job.network, phase)
        ranges = () if on_bytes is None else on_bytes.parameters()
        self.optimizer = optimizer = build_optimizer(job.network, phase, job.config.optimizer, ranges)
        if resume is not None and (position.epoch or position.step):
            restore_optimizer(optimizer, resume)
        epochs = Epochs(self.train_set, job.config, phase)
        steps = epochs.num_steps
        schedule = build_schedule(optimizer, phase, steps)
        recorded = self.graph and obstacle(phase, self.fabric, job.config.optimizer) is None
        rates = TensorRates(optimizer, self.fabric.device) if recorded else None
        update = self._update(phase, optimizer, log)
        while position.epoch < job.epochs(phase):
            title = f"{phase.name} {position.epoch + 1}/{phase.epochs}"
            log.begin_epoch(title, done=position.step, steps=steps)
            set_modes()
            for batch in epochs.batches(position.epochs_done, start_step=position.step, shard=self.shard):
                done = position.epoch * steps + position.step
                schedule.step_update(done)
                if rates is not None:
                    rates.write()
                progress = done / (phase.epochs * steps)
                log_figures = position.step % LOG_EVERY == 0
                self.meter.add(update(batch, progress=progress, seed=self._seed(), log_figures=log_figures))
                # Whoever reads waits for a GPU; a CPU has nothing to wait for.
                read = log_figures or not self.on_gpu
                self._count(read=read)
                self.state.average()
                log.advance(self._progress() if read else None)
                self._maybe_save(stop.raised)
            self._end_epoch(phase, log, lr=float(optimizer.param_groups[0]["lr"]))

    def _on_bytes(self, phase: Phase, log: RunLog) -> OnBytes | None:
        """Return how a phase runs the network on bytes, with ranges from before where there are some."""
        if phase.quantize is None:
            return None
        if self.state.on_bytes is None:
            assert self.job.byte_layout is not None  # whoever makes a job sees to it
            # Threads add up in their own order, and all processes are to have the same ranges.
            layout = self.fabric.broadcast(self.job.byte_layout(self.state.evaluated))
            self.state.on_bytes = OnBytes(layout)
            log.say(f"phase {phase.name}: {len(layout.weights)} layers are rounded to bytes")
        return self.state.on_bytes.to(self.fabric.device)

    def _update(self, phase: Phase, optimizer: torch.optim.Optimizer, log: RunLog) -> Update:
        """Return how a phase updates the weights."""
        job = self.job
        step = TrainingStep(
            job.network,
            method=job.method,
            settings=job.settings,
            cost=job.cost,
            config=job.config,
            teacher=job.teacher,
            # Passes by hand do not call the modules whose inputs are rounded.
            execution=self.execution if phase.quantize is None else masked,
            on_bytes=self.state.on_bytes,
        )
        generator = torch.Generator(self.fabric.device)
        noise = Noise(generator, rank=self.shard.rank, world_size=self.shard.world_size)
        eager = EagerUpdate(step, optimizer, self.fabric, phase=phase, noise=noise)
        if not self.graph:
            return eager
        reason = obstacle(phase, self.fabric, job.config.optimizer)
        if reason is None:
            return GraphedUpdate(eager, log.say)
        log.say(f"phase {phase.name} runs without a graph: {reason}")
        return eager

    def _seed(self) -> int:
        """Return the seed of a step's draws, the same for one process and for several."""
        key = np.random.SeedSequence([self.job.config.seed, self.state.position.steps_done])
        return int(key.generate_state(1, np.uint64)[0] >> 1)

    def _read(self) -> None:
        """Fetch what the steps have reported, and look whether it is finite."""
        taken = mean_sums(self.meter.take(), self.fabric)
        if not taken:
            return
        add_sums(self.state.position.sums, taken)
        if not math.isfinite(taken["loss"][0]):
            means = {name: total / count for name, (total, count) in taken.items()}
            terms = ", ".join(f"{name} {mean:.3g}" for name, mean in means.items() if name != "loss")
            raise TrainingError(
                f"loss must be finite, got {means['loss']:.3g} at step {self.state.position.steps_done} "
                f"({terms}); {LAST} in the run folder is from before: lower the learning rate or the weight "
                "of that term and start again"
            )

    def _count(self, *, read: bool) -> None:
        position = self.state.position
        position.step += 1
        position.steps_done += 1
        position.seconds += self._lap()
        if read:
            self._read()

    def _lap(self) -> float:
        """Return the seconds since the last call; between runs none pass."""
        before, self.clock = self.clock, time.monotonic()
        return self.clock - before

    def _progress(self) -> str:
        position = self.state.position
        rate = position.step * self.job.config.batch_size / position.seconds
        means = {name: total / count for name, (total, count) in position.sums.items()}
        return (
            f"loss {means['loss']:.3f}  accuracy {means['accuracy']:.1%}  cost {means['fraction']:.1%}  "
            f"{rate:.0f} images/s"
        )

    def _end_epoch(self, phase: Phase, log: RunLog, *, lr: float) -> None:
        self._read()
        position = self.state.position
        row: dict[str, Any] = {"phase": phase.name, "epoch": position.epoch, "step": position.steps_done}
        row["train"] = {name: total / count for name, (total, count) in position.sums.items()} | {
            "lr": lr,
            "images_per_s": position.step * self.job.config.batch_size / position.seconds,
        }
        position.epoch, position.step = position.epoch + 1, 0
        position.epochs_done += 1
        position.sums = {}
        seconds, position.seconds = position.seconds, 0.0
        report = self._validate()
        if report is not None:
            row["val"] = report.as_dict()
        row["seconds"] = seconds + self._lap()
        log.write(row)
        if position.epoch == self.job.epochs(phase):
            self._show(log)
        if self._is_best(report):
            self._save(BEST)
        self._save(LAST)

    def _validate(self) -> Report | None:
        val = self.job.data.val
        if val is None or not self.fabric.is_global_zero:
            return None
        on_bytes, network = self.state.on_bytes, self.state.evaluated
        with self.fabric.autocast():
            return evaluate_network(
                network if on_bytes is None else SimulatedBytes(network, on_bytes),
                val.eval_batches(batch_size=eval_batch_size(self.job.data.input_size)),
                self.job.cost,
                num_classes=self.job.data.num_classes,
            )

    def _show(self, log: RunLog) -> None:
        """Show some validation images at the end of a phase."""
        val = self.job.data.val
        if val is None or not log.shows_pictures:
            return
        network, was_training = self.state.evaluated, self.state.evaluated.training
        names = self.job.data.class_names
        with self.fabric.autocast():
            found = pictures_of(
                network.eval(), val.eval_batches(batch_size=MOST_PICTURES), self.job.cost, names
            )
        network.train(was_training)
        log.show(found, self.state.position.steps_done)

    def _is_best(self, report: Report | None) -> bool:
        """Tell all processes whether this epoch of the last phase is the best within the allowed cost."""
        position, config = self.state.position, self.job.config
        if position.phase != len(config.phases) - 1:
            return False
        score = {"accuracy": 0.0, "excess": 0.0}
        if report is not None:
            allowed = config.max_fraction if config.max_fraction is not None else math.inf
            score = {"accuracy": report.accuracy, "excess": max(0.0, report.fraction_of_full - allowed)}
        score = self.fabric.broadcast(score)
        best = position.best
        if best and (score["excess"], -score["accuracy"]) > (best["excess"], -best["accuracy"]):
            return False
        position.best = score
        return True

    def _maybe_save(self, interrupted: bool) -> None:
        due = time.monotonic() - self.saved_at > CHECKPOINT_SECONDS
        # Clocks and signals are those of one process, and all have to save at the same step.
        interrupted, due = self.agreement.any(interrupted, due)
        if interrupted:
            self._save(LAST)
            raise InterruptedRunError(
                f"training was interrupted after step {self.state.position.steps_done}; "
                "the run folder is whole, continue with --resume"
            )
        if due:
            self._save(LAST)

    def _save(self, name: str) -> None:
        self._read()
        if self.fabric.is_global_zero:
            checkpoint = self.state.checkpoint(self.optimizer, self.job.values)
            if name == BEST:
                kept = {key: t for key, t in checkpoint.tensors.items() if key.startswith("model.")}
                checkpoint = Checkpoint(tensors=kept, values=checkpoint.values)
            save_checkpoint(self.folder / name, checkpoint)
        self.fabric.barrier()
        self.saved_at = time.monotonic()
