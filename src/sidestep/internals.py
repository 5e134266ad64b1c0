"""The private parts of other libraries that this package uses, with reasons; `fused/` alone has more.

Tested with torch 2.11 and 2.14; `tests/test_internals.py` names what an upgrade has moved or changed.

- `torch.utils._pytree`: nests of tensors. torch's own tracing flattens nests by it, so that a nest is the
  same for both; `optree` would have other rules.
- `torch.utils._python_dispatch.TorchDispatchMode`: sees every operation of a forward pass, backward of
  functions too. A hook on modules would miss what functions compute.
- `torch.nn.modules.batchnorm._BatchNorm`: the one base class of BatchNorm in all dimensions.
- operators of `torch.ops.aten` that begin with an underscore: traces name them, and no function does.
- `OpOverload._schema`: whether an operation writes into its inputs. A name that ends in an underscore says it
  of most operations, and not of all.
- `torch._dynamo.config.recompile_limit`: timm's optimisers lift it for the whole process when they are
  imported.
- `FlopCounterMode.mod_tracker`: what the counter tracks modules with. It hooks into every module that is run,
  in other threads too, and nothing here asks which module an operation belongs to.
- `VisionTransformer._pos_embed` of timm: the one step of its `forward_features` that is no module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

ADAPTIVE_AVG_POOL2D = torch.ops.aten._adaptive_avg_pool2d
ATTENTION_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BATCH_NORM_INFERENCE = torch.ops.aten._native_batch_norm_legit_no_training
LOG_SOFTMAX = torch.ops.aten._log_softmax
UNSAFE_VIEW = torch.ops.aten._unsafe_view
UPSAMPLE_BICUBIC_AA = torch.ops.aten._upsample_bicubic2d_aa
UPSAMPLE_BILINEAR_AA = torch.ops.aten._upsample_bilinear2d_aa

__all__ = [
    "ADAPTIVE_AVG_POOL2D",
    "ATTENTION_ON_CPU",
    "BATCH_NORM_INFERENCE",
    "LOG_SOFTMAX",
    "UNSAFE_VIEW",
    "UPSAMPLE_BICUBIC_AA",
    "UPSAMPLE_BILINEAR_AA",
    "BatchNorm",
    "TorchDispatchMode",
    "flop_counter",
    "limit_of_shapes_kept",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "with_positions",
    "writes_in_place",
]


@contextmanager
def limit_of_shapes_kept() -> Iterator[None]:
    """Leave the limit of a compiled function's shapes as it was, whatever is imported inside."""
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield


class _NoModules(ModuleTracker):
    """Tracks nothing."""

    def __init__(self) -> None:
        self.parents = {"Global"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of floating-point operations, silent and without hooks into modules."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    return counter


def with_positions(transformer: Any, patches: Tensor) -> Tensor:
    """Return the (B, N, C) tokens of a vision transformer of timm, given the (B, P, C) patches."""
    tokens: Tensor = transformer._pos_embed(patches)
    return tokens


def writes_in_place(operation: Any) -> bool:
    """Return whether an operation of a traced graph writes into a tensor that it is given."""
    schema = getattr(operation, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
