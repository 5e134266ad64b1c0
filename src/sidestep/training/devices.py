"""Where a run trains: in one process, in several that it starts itself, or in those of torchrun or SLURM."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from sidestep.errors import RecipeError, SidestepError

# The command line reads its options here, and does not wait for torch to show them.
if TYPE_CHECKING:
    from lightning_fabric import Fabric

ACCELERATORS = ("auto", "cpu", "cuda")
LOGGERS = ("tensorboard", "wandb", "none")
STRATEGIES = ("auto", "ddp")
# Where there is no GPU: more take turns, and fill the memory.
_PROCESSES_PER_CORE = 4
# Names the process that starts the others of its node, to these.
_STARTER = "SIDESTEP_STARTER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Where a run trains, and how its steps are run there.

    Under torchrun the numbers are torchrun's and need not be given.

    Args:
        accelerator: auto, cpu or cuda.
        devices: processes on every node, one per device (default: 1, or torchrun's).
        strategy: auto, or ddp for several processes.
        num_nodes: nodes, which SLURM has started (default: 1, or torchrun's).
        graph: replay a GPU's steps as CUDA graphs.
        compile: compile units for training (default: where it is known to pay).
        logger: where figures go beside metrics.jsonl: tensorboard, wandb or none.
    """

    accelerator: str = "auto"
    devices: int | None = None
    strategy: str = "auto"
    num_nodes: int | None = None
    graph: bool = True
    compile: bool | None = None
    logger: str = "tensorboard"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("accelerator", self.accelerator, ACCELERATORS),
            ("strategy", self.strategy, STRATEGIES),
            ("logger", self.logger, LOGGERS),
        ):
            if value not in known:
                raise RecipeError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.logger == "wandb" and find_spec("wandb") is None:
            raise RecipeError(
                "logger wandb needs the package wandb, which is not installed; "
                "`pip install sidestep[wandb]`, or choose tensorboard"
            )
        for name, number in (("devices", self.devices), ("num-nodes", self.num_nodes)):
            if number is not None and number < 1:
                raise RecipeError(f"{name} must be at least 1, got {number}; leave it out for one")

    def fabric(self, precision: Literal["32-true", "bf16-mixed"] = "32-true") -> Fabric:
        """Return Fabric for these devices, not launched yet.

        Args:
            precision: of convolutions and matrix products.

        Raises:
            RecipeError: when the devices are not there, or not those that a launcher has started.
        """
        from lightning_fabric import Fabric
        from torch.distributed import is_torchelastic_launched

        under_torchrun = is_torchelastic_launched()
        devices, num_nodes = self._of_torchrun() if under_torchrun else self._asked()
        self._check_devices(devices)
        return Fabric(
            accelerator=self.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy="ddp" if under_torchrun else self.strategy,
            precision=precision,
        )

    @contextmanager
    def launched(self, precision: Literal["32-true", "bf16-mixed"] = "32-true") -> Iterator[Fabric]:
        """Yield Fabric with all its processes running; see `fabric`."""
        fabric = self.fabric(precision)
        starter = os.environ.setdefault(_STARTER, str(os.getpid()))
        if starter == str(os.getppid()):
            _end_with_parent()
        fabric.launch()
        os.environ.pop(_STARTER, None)
        try:
            yield fabric
        except SidestepError:
            _dismiss(fabric)
            raise

    def _of_torchrun(self) -> tuple[int, int]:
        """Return processes per node and nodes as torchrun has started them."""
        total, devices = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if total % devices:
            raise RecipeError(
                f"torchrun must start the same number of processes on every node, got {devices} of {total} "
                "here; set --nproc-per-node to one number everywhere"
            )
        num_nodes = total // devices
        pairs = {"devices": (self.devices, devices), "num-nodes": (self.num_nodes, num_nodes)}
        for name, (asked, found) in pairs.items():
            if asked not in (None, found):
                raise RecipeError(
                    f"{name} must be {found}, which torchrun has started, got {asked}; leave it out"
                )
        return devices, num_nodes

    def _asked(self) -> tuple[int, int]:
        """Return processes per node and nodes as they were asked for, if they can be had."""
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        devices, num_nodes = self.devices or 1, self.num_nodes or 1
        if not SLURMEnvironment.detect():
            if num_nodes > 1:
                raise RecipeError(
                    f"num-nodes must be 1 without a launcher on every node, got {num_nodes}; start with "
                    f"torchrun --nnodes {num_nodes} -m sidestep, or with srun"
                )
        elif (asked := (devices, num_nodes)) != (found := _of_slurm()) and asked != (1, 1):
            raise RecipeError(
                f"devices and num-nodes must be SLURM's {found[0]} tasks per node and {found[1]} nodes, got "
                f"{devices} and {num_nodes}; let srun start one task per process"
            )
        return devices, num_nodes

    def _check_devices(self, devices: int) -> None:
        import torch

        most = _PROCESSES_PER_CORE * (os.cpu_count() or 1)
        if devices > most and (self.accelerator == "cpu" or not torch.cuda.is_available()):
            raise RecipeError(
                f"devices must be at most {most} on the cores of this node, got {devices}; each is a process "
                "that needs its share of them and of the memory"
            )
        if self.accelerator == "cpu":
            return

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.accelerator == "cuda" and not found:
            raise RecipeError("accelerator cuda needs a GPU, and torch finds none; set it to cpu or auto")
        if found and devices > found:
            raise RecipeError(
                f"devices must be at most the node's {found} GPUs, got {devices}; lower it, or set "
                "accelerator to cpu"
            )


def _dismiss(fabric: Fabric) -> None:
    """Let the processes that this one has started end on their own.

    Fabric kills all of them, this one included, when it sees one that has ended with an error. It would
    often come before this one has reported the error that all have in common.
    """
    launcher = getattr(fabric.strategy, "launcher", None)
    getattr(launcher, "procs", []).clear()


def _of_slurm() -> tuple[int, int]:
    """Return SLURM's number of tasks on every node, and of nodes."""
    tasks, per_node = os.environ["SLURM_NTASKS"], os.environ.get("SLURM_NTASKS_PER_NODE")
    if per_node is None and int(tasks) > 1:
        raise RecipeError(f"SLURM must know --ntasks-per-node, got --ntasks={tasks} alone; give srun both")
    return int(per_node or 1), int(os.environ.get("SLURM_NNODES", "1"))


def _end_with_parent() -> None:
    """Let this process end when the one that has started it is gone, whatever it is waiting for then."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
