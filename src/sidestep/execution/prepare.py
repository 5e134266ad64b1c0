"""A network made ready for inference: a frozen copy without BatchNorm, and its cast to bfloat16."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from sidestep.internals import TorchDispatchMode, tree_leaves

Precision = Literal["float32", "bfloat16"]
Network = TypeVar("Network", bound=nn.Module)

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Which BatchNorm folds into which layer, and how. Subclasses may do more than normalise (timm's activate as
# well), so types are compared exactly.
_FUSE: dict[tuple[type[nn.Module], type[nn.Module]], Callable[[Any, Any], Any]] = {
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}


def prepare(network: Network, example: Tensor) -> Network:
    """Return a frozen copy for inference whose outputs are the network's in evaluation mode, up to rounding.

    BatchNorm is folded into the convolution or linear layer before it, parameters learn no more, and
    convolutions work on channels_last maps. A BatchNorm stays where folding it would change the result:
    behind anything else, behind a layer whose output is read elsewhere too, and where either runs twice.

    Args:
        network: left untouched; static networks (without a router) are prepared as well.
        example: (B, 3, H, W) images on the network's device and in its dtype. They are run once, masked,
            which asks every router and executes every unit whatever the decisions are.
    """
    prepared = copy.deepcopy(network).eval().requires_grad_(False)
    trace = _run(prepared, example)
    pairs = trace.pairs()
    for norm, layer in pairs.items():
        fused = _FUSE[type(layer), type(norm)](layer, norm).requires_grad_(False)
        layer.weight, layer.bias = fused.weight, fused.bias
    _remove(prepared, set(pairs), trace.sequences)
    return prepared.to(memory_format=torch.channels_last)


def norms_behind(network: nn.Module, example: Tensor) -> dict[str, str]:
    """Return the names of the BatchNorms that `prepare` folds, by those of the layers that they fold into.

    Args:
        network: in evaluation mode.
        example: as for `prepare`.
    """
    names = {module: name for name, module in network.named_modules()}
    return {names[layer]: names[norm] for norm, layer in _run(network, example).pairs().items()}


def cast(network: Network, precision: Precision) -> Network:
    """Return a copy with all weights in a precision; it wants images in `DTYPES[precision]`.

    Decisions stay exact one-hot rows. In bfloat16 they can differ from those in float32 where a router's
    logits are nearly equal. Cast after `prepare`, so that BatchNorm is folded in float32.
    """
    return copy.deepcopy(network).to(DTYPES[precision])


def _remove(network: nn.Module, folded: set[nn.Module], sequences: set[nn.Module]) -> None:
    """Take modules out; a Sequential around one closes the gap, and becomes what is left if that is one.

    At batch 1 calling a module that does nothing is a part of a router's time that can be seen. Whoever calls
    the parts of a Sequential himself knows them by their numbers, which stay then.
    """
    # From the inside out, so that a Sequential still finds its parts.
    for name, module in reversed(list(network.named_modules(remove_duplicate=False))):
        if type(module) is nn.Sequential and not folded.isdisjoint(module):
            for index in reversed([index for index, part in enumerate(module) if part in folded]):
                if module in sequences:
                    del module[index]
                else:
                    module[index] = nn.Identity().eval()
            if len(module) == 1 and module in sequences:
                network.set_submodule(name, module[0])
        elif module in folded and type(network.get_submodule(name.rpartition(".")[0])) is not nn.Sequential:
            network.set_submodule(name, nn.Identity().eval())


def _run(network: nn.Module, example: Tensor) -> _Trace:
    """Return what is seen while the example runs once."""
    trace = _Trace()
    handles = [h for module in network.modules() for h in trace.watch(module)]
    with torch.inference_mode(), trace:
        network(example)
    for handle in handles:
        handle.remove()
    return trace


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees which layer made the input of a BatchNorm, and how often every layer's output is read.

    Attributes:
        sequences: the Sequentials that are called as a whole.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Outputs and inputs are kept, so that no other tensor gets their id.
        self.made: dict[int, tuple[nn.Module, Tensor]] = {}
        self.inputs: dict[nn.Module, Tensor] = {}
        self.reads: Counter[int] = Counter()
        self.calls: Counter[nn.Module] = Counter()
        self.sequences: set[nn.Module] = set()

    def watch(self, module: nn.Module) -> Sequence[torch.utils.hooks.RemovableHandle]:
        if any(type(module) is layer for layer, _ in _FUSE):
            return [module.register_forward_hook(self._on_layer)]
        if any(type(module) is norm for _, norm in _FUSE):
            return [module.register_forward_pre_hook(self._on_norm)]
        if type(module) is nn.Sequential:
            return [module.register_forward_pre_hook(self._on_sequence)]
        return []

    def _on_sequence(self, sequence: nn.Module, args: Any) -> None:
        self.sequences.add(sequence)

    def _on_layer(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        self.calls[layer] += 1
        self.made[id(output)] = layer, output
        self.reads[id(output)] = 0

    def _on_norm(self, norm: nn.Module, args: tuple[Tensor]) -> None:
        self.calls[norm] += 1
        self.inputs[norm] = args[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.reads.update({id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
        return func(*args, **(kwargs or {}))

    def pairs(self) -> dict[nn.Module, nn.Module]:
        made = {norm: self.made[id(x)] for norm, x in self.inputs.items() if id(x) in self.made}
        return {
            norm: layer
            for norm, (layer, output) in made.items()
            if (type(layer), type(norm)) in _FUSE
            and self.calls[layer] == self.calls[norm] == self.reads[id(output)] == 1
            and norm.running_mean is not None
            # BatchNorm1d over (B, N, L) normalises N, a linear layer maps L.
            and (isinstance(layer, nn.Conv2d) or output.dim() == 2)
        }
