"""Checkpoints of the papers' released codes: what kinds there are, and how one is found in a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sidestep.backbones.weight_files import below, preference, read_weights, without_wrappers
from sidestep.errors import CheckpointError

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A network in a file of a released code.

    Attributes:
        recipe: that comes with sidestep, of which all else is taken.
        changes: keys of that recipe by section, as the file says them.
        tensors: of the network, by our names.
        num_classes: of its classifier.
        unbuilt: names of tensors that the released code has and we do not build where nothing reads them.
    """

    recipe: str
    changes: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]
    num_classes: int
    unbuilt: re.Pattern[str] = field(default=re.compile(r"(?!)"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedCode:
    """A released code.

    Attributes:
        name: as `sidestep import --as` says it.
        title: of its repository.
        mark: a name that only its networks have, as a pattern.
        read: makes the network of a state dict, by the released names; raises CheckpointError, KeyError or
            ValueError for one that is incomplete.
    """

    name: str
    title: str
    mark: re.Pattern[str]
    read: Callable[[State], Found]


def find_network(code: ReleasedCode, path: Path) -> Found:
    """Return the network of a released code in a file that its `torch.save` has left.

    Nests (`state_dict`, `net`) and the names of wrappers (`module.`) around it are passed over. Nothing but
    tensors and plain values is loaded.

    Raises:
        CheckpointError: when the file is missing or damaged, or holds no such network.
    """
    parts = below(read_weights(path))
    unwrapped = {
        start: {without_wrappers(name, set()): t for name, t in part.items()} for start, part in parts.items()
    }
    marked = [start for start, part in unwrapped.items() if any(code.mark.match(name) for name in part)]
    if not marked:
        raise CheckpointError(
            f"weights {path} must be of {code.title} to be imported as {code.name}, and nothing in them has "
            "its names; choose another --as"
        )
    start = min(marked, key=lambda each: (preference(each), len(each)))
    try:
        return code.read(unwrapped[start])
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"weights {path} must hold a whole network of {code.title}, and this one cannot be made out "
            f"({error}); check that the file is not cut short"
        ) from error


def renamed(state: State, rules: Mapping[str, str | Callable[[re.Match[str]], str]]) -> dict[str, Tensor]:
    """Return tensors under the names that the first rule which matches a whole name makes of it.

    Names that no rule matches stay, so that what is left over is told of.

    Args:
        state: tensors by name.
        rules: replacements by pattern; "" leaves a tensor out.
    """
    found = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules.items():
            if match := re.fullmatch(pattern, name):
                new = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
                break
        if new:
            found[new] = tensor
    return found


def counts(state: State, pattern: str) -> list[int]:
    """Return how many second numbers there are for every first one that a pattern finds in names.

    >>> counts({"layer1.0.x": None, "layer1.1.x": None, "layer2.0.x": None}, r"layer(\\d+)\\.(\\d+)\\.")
    [2, 1]
    """
    places = {(int(match[1]), int(match[2])) for name in state if (match := re.match(pattern, name))}
    return [sum(first == each for first, _ in places) for each in sorted({first for first, _ in places})]


def first_unit(blocks: list[int]) -> list[int]:
    """Return the number of units in front of every stage.

    >>> first_unit([3, 4, 6])
    [0, 3, 7]
    """
    return [sum(blocks[:stage]) for stage in range(len(blocks))]


_PHOTO_RESNETS: dict[tuple[int, ...], tuple[str | None, str | None]] = {
    (2, 2, 2, 2): ("resnet18", None),
    (3, 4, 6, 3): ("resnet34", "resnet50"),
    (3, 4, 23, 3): (None, "resnet101"),
    (3, 8, 36, 3): (None, "resnet152"),
}


def resnet_name(blocks: list[int], *, bottleneck: bool) -> str:
    """Return the name of the ResNet with so many blocks in its stages.

    Raises:
        ValueError: for one that we do not have.
    """
    if len(blocks) == 3 and len(set(blocks)) == 1 and not bottleneck:
        return f"cifar_resnet{6 * blocks[0] + 2}"
    name = _PHOTO_RESNETS.get(tuple(blocks), (None, None))[bottleneck]
    if name is None:
        raise ValueError(f"no ResNet here has stages of {', '.join(map(str, blocks))} blocks")
    return name
