"""The private parts of other libraries that this package uses, with reasons; `fused/` alone has more.

Tested with torch 2.11 and 2.14; `tests/test_internals.py` names what an upgrade has moved or changed.

- `torch.utils._pytree`: nests of tensors. torch's own tracing flattens nests by it, so that a nest is the
  same for both; `optree` would have other rules.
- `torch.utils._python_dispatch.TorchDispatchMode`: sees every operation of a forward pass, backward of
  functions too. A hook on modules would miss what functions compute.
- `torch.nn.modules.batchnorm._BatchNorm`: the one base class of BatchNorm in all dimensions.
"""

from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "BatchNorm",
    "TorchDispatchMode",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
]
