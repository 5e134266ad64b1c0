"""What processes do together, as far as one can show it; several are in test_scale_out."""

import errno

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from sidestep.errors import (
    DataError,
    LoneProcessError,
    LostProcessError,
    OutputError,
    RecipeError,
    TrainingError,
)
from sidestep.training.distributed import (
    Agreement,
    all_succeed,
    mean_sums,
    named_errors,
    synchronize_batch_norm,
)


class OtherNorm(nn.BatchNorm2d):
    """A BatchNorm with a forward pass of its own."""


class Second(Fabric):
    """The second of three processes, without the others."""

    global_rank, world_size, is_global_zero = 1, 3, False  # type: ignore[assignment]


def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def test_one_process_agrees_with_itself() -> None:
    assert Agreement().any(True, False) == (True, False)
    assert mean_sums({"loss": (2.0, 4)}, fabric()) == {"loss": (2.0, 4)}
    assert all_succeed(fabric(), lambda: 3) == 3


def test_an_error_of_a_process_is_that_of_all() -> None:
    def fail() -> None:
        raise DataError("nothing there")

    with pytest.raises(DataError, match="nothing there"):
        all_succeed(fabric(), fail)


def test_a_batch_norm_that_processes_cannot_share_is_refused() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), OtherNorm(2))
    with pytest.raises(RecipeError, match=r"got OtherNorm at 1; train this network in one process"):
        synchronize_batch_norm(network)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer"),
        torch.distributed.DistNetworkError("the store is gone"),
    ],
)
def test_a_broken_connection_is_a_sentence(error: Exception) -> None:
    lost = "process 1 of 3 lost the connection to another one, .* continue with --resume"
    with pytest.raises(LostProcessError, match=lost), named_errors(Second()):
        raise error


def test_errors_of_a_process_alone_bear_its_name() -> None:
    with pytest.raises(LoneProcessError, match="process 1 of 3: no such image"), named_errors(Second()):
        raise DataError("no such image")
    with pytest.raises(TrainingError, match=r"^loss must be finite$"), named_errors(Second()):
        raise TrainingError("loss must be finite")
    with pytest.raises(RuntimeError, match=r"^no such kernel$"), named_errors(Second()):
        raise RuntimeError("no such kernel")
    with pytest.raises(LoneProcessError, match="process 1 of 3: memory must hold"), named_errors(Second()):
        raise RuntimeError("CUDA out of memory")
    with pytest.raises(DataError, match="and one died"), named_errors(fabric()):
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. ")
    with pytest.raises(OutputError, match="x could not be read or written"), named_errors(fabric()):
        raise OSError(errno.ENOSPC, "No space left on device", "x")
    with pytest.raises(DataError, match=r"^no such image$"), named_errors(fabric()):
        raise DataError("no such image")
