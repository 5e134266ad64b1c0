"""Several processes, as a user would start them: they reach what one would, and none waits for the dead."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional

from sidestep.losses.paths import rank_correlation, rank_loss
from sidestep.methods import rdi_net
from sidestep.runs.recipe import from_dict
from sidestep.runs.train import train
from sidestep.training import step as training_step
from sidestep.training.checkpoint import load_checkpoint
from tests.training.test_fit import rows

pytestmark = pytest.mark.slow

SECONDS = 900
CLOSE = 1e-4
# Ten steps an epoch.
RDI_NET: dict[str, Any] = {
    "name": "tiny",
    "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "soft"},
    "model": {"name": "cifar_resnet8", "mix": "branch"},
    "data": {"source": "digits", "image_size": 16, "limit": 330, "crop_padding": 1, "flip": False},
    "training": {"phases": [{"name": "joint", "epochs": 2, "lr": 0.02}], "batch_size": 32},
}
AIG: dict[str, Any] = {**RDI_NET, "method": {"name": "convnet_aig"}}
SHARE: dict[str, Any] = {
    **RDI_NET,
    "method": {**RDI_NET["method"], "gate_mode": "share", "srm": {"alpha": 0}},
}
FIXED: dict[str, Any] = {**RDI_NET, "method": {"name": "fixed_path", "path": "1 0 1"}}
OWN = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# Runs the command line, but one process does something else before a step, or before its data is there.
#
# Without ReLUs: sums in another order move some value across their kink, which changes a gradient by a whole
# pixel. One process with two threads is as far from itself with one thread then, 0.7 after twenty steps.
DRIVER = """
import os, signal, sys
from torch.nn import functional
from sidestep.runs import assemble
from sidestep.cli.main import main
from sidestep.errors import DataError
from sidestep.training import loop
from sidestep.training.step import TrainingStep

def happens(where):
    return os.environ.get("LOCAL_RANK", "0") == "{rank}" and where == "{where}"

def counted(self, *arguments, **options):
    global steps
    steps += 1
    if happens(f"step {{steps}}"):
        {action}
    begin(self, *arguments, **options)

def loaded(*arguments, **options):
    if happens("data"):
        {action}
    return load_data(*arguments, **options)

functional.relu = functional.silu
loop.CHECKPOINT_SECONDS = 0.0
steps, begin, load_data = 0, TrainingStep.begin, assemble.load_data
TrainingStep.begin, assemble.load_data = counted, loaded
sys.exit(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A run of two processes that came to no good end after `step` steps."""

    folder: Path
    returncode: int
    error: str


def start(launcher: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and to that of all processes it has started, which hold its output open."""
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=SECONDS,
        check=False,
    )


def written(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def driver(folder: Path, *, rank: int = 0, where: str = "nowhere", action: str = "pass") -> Path:
    path = folder / "driver.py"
    path.write_text(DRIVER.format(rank=rank, where=where, action=action))
    return path


def two_processes(folder: Path, recipe: dict[str, Any], *arguments: object) -> Path:
    """Return the run that two processes of sidestep's own have made of a recipe."""
    path, out = written(folder, recipe), folder / "run"
    done = start(
        OWN, driver(folder), "train", path, "--out", out, "--accelerator", "cpu", "--devices", 2, *arguments
    )
    assert done.returncode == 0, done.stderr
    return out


def broken(folder: Path, **what: Any) -> Broken:
    """Return what is left when one of two processes does something else, which `driver` takes."""
    path, out = written(folder, RDI_NET), folder / "run"
    done = start(
        OWN, driver(folder, **what), "train", path, "--out", out, "--accelerator", "cpu", "--devices", 2
    )
    return Broken(folder=out, returncode=done.returncode, error=done.stderr)


def steps_done(run: Path) -> int:
    return int(load_checkpoint(run / "last.safetensors").values["position"]["steps_done"])


def numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def assert_close(one: Path, two: Path) -> None:
    """Compare weights, momentum and every number of the metrics."""
    a, b = (load_checkpoint(run / "last.safetensors").tensors for run in (one, two))
    assert a.keys() == b.keys()
    differences = {key: float((a[key].double() - b[key].double()).abs().max()) for key in a}
    weights = [value for key, value in differences.items() if key.startswith("model.")]
    print(f"largest difference: weights {max(weights):.1e}, all {max(differences.values()):.1e}")
    assert max(weights) < CLOSE
    for row, other in zip(rows(one), rows(two), strict=True):
        assert numbers(other["train"]) == pytest.approx(numbers(row["train"]), abs=CLOSE)
        assert numbers(other["val"]) == pytest.approx(numbers(row["val"]), abs=CLOSE)
        assert numbers(other) == numbers(row)


def by_halves(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the mean of a function over the halves of a batch, which two processes see."""

    def halved(paths: Tensor, statistics: Tensor, **settings: Any) -> Tensor:
        halves = zip(paths.chunk(2), statistics.chunk(2), strict=True)
        return torch.stack([function(*half, **settings) for half in halves]).mean()

    return halved


@pytest.fixture(scope="module", autouse=True)
def _as_two_processes() -> Iterator[None]:
    """Let this process compute what the two of a driver do.

    Images are ranked within a process, so one alone has to rank half a batch at a time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "relu", functional.silu)
        patch.setattr(rdi_net, "rank_loss", by_halves(rank_loss))
        patch.setattr(training_step, "rank_correlation", by_halves(rank_correlation))
        yield


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RDI-Net, by one process."""
    return train(from_dict(RDI_NET), tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    """The same by two processes, the second of which is killed before it does its eighth step."""
    action = "os.kill(os.getpid(), signal.SIGKILL)"
    return broken(tmp_path_factory.mktemp("killed"), rank=1, where="step 8", action=action)


@pytest.mark.exhaustive
def test_torchrun_reaches_what_one_process_does(one: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    path = written(tmp_path, RDI_NET)
    done = start(TORCHRUN, driver(tmp_path), "train", path, "--out", out, "--accelerator", "cpu")
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr
    assert done.stdout.count("last checkpoint, test split") == 1
    assert_close(one, out)


def test_batch_statistics_and_rates_are_those_of_the_global_batch(tmp_path: Path) -> None:
    assert_close(train(from_dict(AIG), tmp_path / "one"), two_processes(tmp_path, AIG))


@pytest.mark.exhaustive
def test_no_process_waits_for_gradients_of_units_that_are_never_executed(tmp_path: Path) -> None:
    assert_close(train(from_dict(FIXED), tmp_path / "one"), two_processes(tmp_path, FIXED))


@pytest.mark.exhaustive
def test_processes_that_decide_by_share_execute_as_much_as_one(tmp_path: Path) -> None:
    one, two = train(from_dict(SHARE), tmp_path / "one"), two_processes(tmp_path, SHARE)
    spent = [[row["train"]["fraction"] for row in rows(run)] for run in (one, two)]
    assert spent[0] == pytest.approx(spent[1], rel=1e-6)
    # Each ranks its own images, so they learn alike but not the same.
    assert rows(two)[-1]["train"]["loss"] == pytest.approx(rows(one)[-1]["train"]["loss"], rel=0.1)


def test_a_killed_process_ends_the_run_and_leaves_a_whole_checkpoint(killed: Broken) -> None:
    assert killed.returncode == 1
    assert killed.error.count("process 0 of 2 lost the connection to another one") == 1
    assert "Traceback" not in killed.error
    assert steps_done(killed.folder) == 7


def test_a_killed_run_goes_on_in_two_processes(one: Path, killed: Broken, tmp_path: Path) -> None:
    shutil.copytree(killed.folder, tmp_path / "run")
    assert_close(one, two_processes(tmp_path, RDI_NET, "--resume"))


@pytest.mark.exhaustive
def test_a_killed_run_of_two_processes_goes_on_in_one(one: Path, killed: Broken, tmp_path: Path) -> None:
    shutil.copytree(killed.folder, tmp_path / "run")
    assert_close(one, train(from_dict(RDI_NET), tmp_path / "run", resume=True))


@pytest.mark.exhaustive
def test_processes_end_when_the_first_is_killed(tmp_path: Path) -> None:
    left = broken(tmp_path, rank=0, where="step 8", action="os.kill(os.getpid(), signal.SIGKILL)")
    assert left.returncode == -9
    assert steps_done(left.folder) == 7


@pytest.mark.exhaustive
def test_an_interrupt_of_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    stopped = broken(tmp_path, rank=1, where="step 8", action="signal.raise_signal(signal.SIGTERM)")
    assert stopped.returncode == 130
    assert stopped.error.count("training was interrupted after step 8; ") == 1
    assert steps_done(stopped.folder) == 8


@pytest.mark.exhaustive
def test_an_error_of_one_process_is_told_once_before_anything_is_written(tmp_path: Path) -> None:
    left = broken(tmp_path, rank=1, where="data", action="raise DataError('no images on this node')")
    assert left.returncode == 2
    assert left.error.count("sidestep: no images on this node") == 1
    assert not left.folder.exists()
