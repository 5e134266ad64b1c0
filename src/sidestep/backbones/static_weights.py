"""Trained weights of static networks, matched by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sidestep.backbones.weight_files import below, preference, read_weights, without_wrappers
from sidestep.errors import CheckpointError
from sidestep.layers.static_names import StaticNames

# Settings that give a residual network parts of these names, and others none.
_SETTINGS = {".downsample.": "model.shortcut", ".se.": "model.se_ratio", ".bypass.": "model.skip"}


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy the tensors of a run into a module whose names and shapes must match exactly.

    Raises:
        CheckpointError: naming the first difference; the module is untouched then.
    """
    if differing := differences(module.state_dict(), tensors):
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: it {next(iter(differing.values()))}; its "
            "model or method is built otherwise today, so load it with the code that it was trained with"
        )
    module.load_state_dict(tensors)


def load_static_weights(backbone: nn.Module, path: Path, *, new_head: bool = False) -> list[str]:
    """Load trained static weights into a backbone, and return what should be said about it, in sentences.

    The file is safetensors, or a torch file that holds tensors only. Whatever nests and wrappers are around
    the tensors (`state_dict`, `model.`, `module.`, `_orig_mod.`, `net`), the part of the file is taken that
    fits the network whole. If several parts fit, that is the average of weights (`ema`, `teacher`). The names
    of a wrapped network are its own. The classifier's name `linear` is understood, and so are 1x1
    convolutions in the place of linear layers (timm's squeeze-and-excitation). What skipping alone runs
    (model.skip: own) stays as it was made where the file lacks it, as routers do.

    Args:
        backbone: whose weights are replaced.
        path: of the file.
        new_head: leave the classifier as it was made, whatever the file has in its place.

    Raises:
        CheckpointError: when the file is missing, damaged, or of another architecture, or has several
            networks that fit; the backbone is untouched then.
    """
    wanted = _Wanted.of(backbone, new_head=new_head)
    parts = below(read_weights(path))
    least = len(wanted.tensors) - len(wanted.optional)
    read = {start: wanted.renamed(found) for start, found in parts.items() if len(found) >= least}
    fitting = {start: found for start, found in read.items() if not differences(wanted.tensors, found)}
    if not fitting:
        nearest = max((wanted.renamed(found) for found in parts.values()), key=wanted.num_fitting)
        raise CheckpointError(f"static weights {path} {wanted.complaint(nearest)}")
    distinct = _distinct(fitting)
    chosen = _chosen(distinct, path)
    wanted.module.load_state_dict(fitting[chosen])
    return [*_about_parts(distinct, chosen, path), *wanted.about_head(path)]


def differences(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what tensors lack, have too much, or have in another shape, by name in alphabetical order."""
    found = {}
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors:
            found[name] = f"lacks {name}"
        elif name not in own:
            found[name] = f"has {name}, which the network lacks"
        elif own[name].shape != tensors[name].shape:
            theirs, ours = tuple(tensors[name].shape), tuple(own[name].shape)
            found[name] = f"has {name} as {theirs}, the network as {ours}"
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a network wants of a file.

    Attributes:
        module: has the names of static weight files.
        names: translates those of other files, or None.
        tensors: its own, by name.
        optional: names of those that stay as they are where a file lacks them.
        head: names of the classifier's.
        new_head: whether these stay as they are whatever the file has.
    """

    module: nn.Module
    names: StaticNames | None
    tensors: dict[str, Tensor]
    optional: set[str]
    head: set[str]
    new_head: bool

    @classmethod
    def of(cls, backbone: nn.Module, *, new_head: bool) -> _Wanted:
        names = backbone if isinstance(backbone, StaticNames) else None
        module = backbone if names is None else names.origin
        tensors = module.state_dict()
        head = set() if names is None else names.head_names
        if new_head and not head:
            raise CheckpointError(
                f"init_head must be load for a {type(backbone).__name__}, whose classifier has no known name "
                "(`head_names`), got new; let the class say it"
            )
        optional = {name for name in tensors if name.endswith("num_batches_tracked")}
        optional |= (set() if names is None else names.skip_names) | (head if new_head else set())
        return cls(
            module=module, names=names, tensors=tensors, optional=optional, head=head, new_head=new_head
        )

    def renamed(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a part of a file under the names of the network, with what is optional."""
        known = {part for name in self.tensors for part in name.split(".")}
        tensors = {self._own_name(without_wrappers(name, known)): tensor for name, tensor in found.items()}
        if self.new_head:
            # Whatever another classifier is called, it is no part of the rest.
            rest = {name.partition(".")[0] for name in self.tensors.keys() - self.head}
            tensors = {
                name: tensor
                for name, tensor in tensors.items()
                if name.partition(".")[0] in rest and name not in self.head
            }
        for name, own in self.tensors.items():
            if name in self.optional:
                tensors.setdefault(name, own)
            elif name in tensors and tensors[name].shape == (*own.shape, 1, 1):
                tensors[name] = tensors[name].reshape(own.shape)
        return tensors

    def _own_name(self, name: str) -> str:
        if name.startswith("linear.") and "fc.weight" in self.tensors:
            name = "fc." + name.removeprefix("linear.")
        return name if self.names is None else self.names.static_name(name)

    def num_fitting(self, found: Mapping[str, Tensor]) -> int:
        """Return how many tensors fit in name and shape, those that need not be there aside."""
        own = self.tensors.keys() - self.optional
        return sum(name in found and found[name].shape == self.tensors[name].shape for name in own)

    def complaint(self, found: Mapping[str, Tensor]) -> str:
        """Return what is wrong with the part of a file that is nearest, and what can be done about it."""
        differing = differences(self.tensors, found)
        first = next(iter(differing.values()))
        return f"does not fit {type(self.module).__name__}: it {first}; {self._way_out(found, differing)}"

    def _way_out(self, found: Mapping[str, Tensor], differing: Collection[str]) -> str:
        fitting, needed = self.num_fitting(found), len(self.tensors.keys() - self.optional)
        if 2 * fitting < needed:
            return f"it is a file of another network ({fitting} of {needed} tensors fit), check model.name"
        if self.head and self.head.issuperset(differing):
            return "for other classes set model.init_head to new, which starts the classifier anew"
        for part, setting in _SETTINGS.items():
            if all(part in name for name in differing):
                return f"check {setting}"
        return "check model.name and the settings beside it"

    def about_head(self, path: Path) -> list[str]:
        """Return a sentence about a classifier that was not loaded."""
        if not self.new_head:
            return []
        classes = max(len(self.tensors[name]) for name in self.head)
        return [f"the classifier starts anew, with {classes} classes; all else is that of {path}"]


def _chosen(fitting: Sequence[str], path: Path) -> str:
    """Return where in a file the network is that is taken, of several that differ.

    Raises:
        CheckpointError: when that is not decided by their names.
    """
    first = min(fitting, key=preference)
    rivals = [start for start in fitting if preference(start) == preference(first)]
    if len(rivals) > 1:
        raise CheckpointError(
            f"static weights {path} must hold one network that fits, and not several, got "
            f"{', '.join(map(_place, rivals))}; save the one that is meant by itself"
        )
    return first


def _about_parts(fitting: Sequence[str], chosen: str, path: Path) -> list[str]:
    """Return a sentence about other networks in the file that would have fitted."""
    others = [_place(start) for start in fitting if start != chosen]
    if not others:
        return []
    return [f"of the networks in {path} that fit {_place(chosen)} is taken, not {', '.join(others)}"]


def _distinct(found: Mapping[str, dict[str, Tensor]]) -> list[str]:
    """Return the places of networks that differ, each under its shortest name."""
    kept: list[str] = []
    for start in sorted(found, key=len):
        if not any(_same(found[start], found[known]) for known in kept):
            kept.append(start)
    return kept


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(tensor is second[name] or torch.equal(tensor, second[name]) for name, tensor in first.items())


def _place(start: str) -> str:
    return start.removesuffix(".") or "the one at the top"
