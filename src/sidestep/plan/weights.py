"""The weights of a plan, under the names that they have in the network."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from sidestep.errors import ExportError


class Weights:
    """Stores each tensor once.

    Attributes:
        tensors: float32, by name. What the network has no name for is called constant.0 and so on.
    """

    def __init__(self, module: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Hashable, str] = {}
        self._stored: dict[Hashable, str] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self._names.setdefault(_view(tensor), name)

    def knows(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter or a buffer of the network."""
        return _view(tensor) in self._names

    def name_of(self, tensor: Tensor) -> str:
        """Return the name of a parameter or buffer in the network, or an empty one."""
        return self._names.get(_view(tensor), "")

    def store(self, tensor: Tensor, name: str = "") -> str:
        """Return the name under which a tensor is kept.

        Args:
            tensor: whose own name in the network comes first.
            name: for one without.

        Raises:
            ExportError: for numbers that are not finite.
        """
        own = self.name_of(tensor)
        kept = tensor.detach().float().contiguous()
        key = own or name, kept.shape, b"" if own else kept.numpy().tobytes()
        if key in self._stored:
            return self._stored[key]
        name = own or name
        if not kept.isfinite().all():
            raise ExportError(f"{name or 'a constant'} must be finite, and is not; train the network again")
        if not name or name in self.tensors:
            name = f"{name or 'constant'}.{len(self.tensors)}"
        self.tensors[name] = kept
        self._stored[key] = name
        return name


def _view(tensor: Tensor) -> Hashable:
    """Return what two tensors share that show the same memory in the same way."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def finite(tensor: Tensor) -> Tensor:
    """Return logits with +-3e38 for infinities, which neither JSON nor every engine has."""
    return torch.clamp(tensor, -3e38, 3e38)
