"""Everything that a run needs to go on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sidestep.backbones.static_weights import load_weights
from sidestep.errors import CheckpointError, TrainingError
from sidestep.execution.on_bytes import ByteLayout, OnBytes, byte_layout_from
from sidestep.networks.network import DynamicNetwork
from sidestep.training.checkpoint import Checkpoint

# Where a checkpoint keeps which weights and maps were trained as bytes.
QUANTIZED = "quantized"

# A module, and the name that a tensor has in it.
_Place = tuple[nn.Module, str]


@dataclass(slots=True, kw_only=True)
class Position:
    """Where a run stands: the next thing to do, and what the current epoch has summed up so far."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    steps_done: int = 0
    epochs_done: int = 0
    seconds: float = 0.0
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        return {name: getattr(self, name) for name in self.__slots__}


class WeightAverage(ModelEmaV3):
    """timm's moving average, in which a tensor that has several names moves once in a step.

    timm goes by the names, and would move a weight that n routers share n times. And it asks for the state
    dict in every step, which a GPU would wait for.
    """

    _places: list[tuple[_Place, _Place]] | None = None

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        if self._places is None:
            self._places = list(zip(_saved_once(self.module), _saved_once(model), strict=True))
        # Tensors are looked up anew, for a module may put another one into a buffer's place.
        pairs = [(getattr(*mean), getattr(*now)) for mean, now in self._places]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        move: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move([mean for mean, _ in floats], [now for _, now in floats], 0)
        for mean, now in pairs:
            if not mean.is_floating_point():
                mean.copy_(now)


class TrainingState:
    """The parts of a run that change: weights, their average, the optimiser's momentum, the position.

    Draws need no state: every one is a function of seed and step.

    Args:
        network: what learns.
        ema_decay: decay of the weights' moving average; 0 keeps none.

    Attributes:
        on_bytes: how the network is run as if it were on bytes, in phases in which it is.

    Raises:
        TrainingError: for a network of which a part cannot be saved, before anything is trained.
    """

    def __init__(self, network: DynamicNetwork, *, ema_decay: float) -> None:
        _check_saved(network)
        self.on_bytes: OnBytes | None = None
        self.network = network
        self.ema = WeightAverage(network, decay=ema_decay, use_warmup=True) if ema_decay else None
        self.position = Position()

    @property
    def evaluated(self) -> DynamicNetwork:
        """Return the network that is evaluated and kept: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.module

    def average(self) -> None:
        """Move the average towards the weights, after an optimiser step."""
        if self.ema is not None:
            self.ema.update(self.network, step=self.position.steps_done)

    def checkpoint(self, optimizer: torch.optim.Optimizer | None, values: dict[str, Any]) -> Checkpoint:
        """Return all of it, ready to be written; before the first phase there is no optimiser."""
        tensors = _prefixed("model", self.evaluated)
        if self.ema is not None:
            tensors |= _prefixed("raw", self.network)
        entries = {} if optimizer is None else optimizer.state_dict()["state"]
        for index, entry in entries.items():
            for name, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
        values = values | {"position": self.position.as_dict()}
        if self.on_bytes is not None:
            values[QUANTIZED] = self.on_bytes.layout.as_dict()
        return Checkpoint(tensors=tensors, values=values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put weights, average and position back; the optimiser follows with `restore_optimizer`."""
        load_weights(self.evaluated, checkpoint.section("model"), "the last checkpoint")
        if self.ema is not None:
            load_weights(self.network, checkpoint.section("raw"), "the last checkpoint")
        self.position = Position(**checkpoint.values["position"])
        if (layout := layout_of(checkpoint.values)) is not None:
            self.on_bytes = OnBytes(layout)


def layout_of(values: Mapping[str, Any]) -> ByteLayout | None:
    """Return which weights and maps were trained as bytes, given a checkpoint's values; None if none were.

    Raises:
        CheckpointError: for damaged values.
    """
    known = values.get(QUANTIZED)
    if known is None:
        return None
    try:
        return byte_layout_from(known)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{QUANTIZED} of a checkpoint must be ranges of bytes that a training has written, got others "
            f"({error}); train the phase again"
        ) from error


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put the optimiser's buffers back, for a run that resumes inside a phase."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.section("optimizer").items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # Files hold contiguous tensors, and fused kernels read a buffer in its parameter's memory format.
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _check_saved(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise TrainingError(
                f"{name} must be a tensor to be saved in checkpoints, got a {type(value).__name__}; keep it "
                "in a buffer, or leave it out of the state dict"
            )


def _saved_once(module: nn.Module) -> list[_Place]:
    """Return where the tensors of the state dict are, each once, whatever number of names it has there."""
    saved = module.state_dict().keys()
    named = [*module.named_parameters(), *module.named_buffers()]
    paths = [name.rpartition(".") for name, _ in named if name in saved]
    return [(module.get_submodule(path), name) for path, _, name in paths]


def _prefixed(section: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{section}.{name}": tensor for name, tensor in module.state_dict().items()}
