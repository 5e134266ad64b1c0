"""Small networks exported in segments, and the runner that lies in their folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep.networks.network import DynamicNetwork
from sidestep.routing.exit_rule import ExitRule
from sidestep.targets import Exportable
from sidestep.types import Batch
from tests.plan.networks import SIZE, card_of


def exportable_of(
    network: DynamicNetwork,
    images: Tensor,
    rule: ExitRule | None = None,
    *,
    size: tuple[int, int] = SIZE,
    num_segments: int | None = None,
) -> Exportable:
    """Return a network with validation images whose labels are drawn."""
    card = card_of(network, size)
    with torch.no_grad():
        num_classes = network(images[:1]).logits.shape[1]
    labels = torch.randint(num_classes, (len(images),), generator=torch.Generator().manual_seed(3))

    def validation() -> Iterable[Batch]:
        yield Batch(images=images[:7], labels=labels[:7])
        yield Batch(images=images[7:], labels=labels[7:])

    return Exportable(
        network=network,
        cost=card.cost,
        rule=rule,
        input_size=size,
        preparation=None,
        mean=card.mean,
        std=card.std,
        per_image_standardization=False,
        class_names=tuple(f"class {index}" for index in range(num_classes)),
        about={"recipe": "tiny"},
        validation=validation,
        num_segments=num_segments,
    )


def labels_of(exportable: Exportable) -> Any:
    """Return the labels of the validation images."""
    assert exportable.validation is not None
    return torch.cat([batch.labels for batch in exportable.validation()]).numpy()


def runner(folder: Path, runtime: str = "onnxruntime") -> Any:
    """Return the runner in a folder, with one thread and no pool that other tests would have to share."""
    spec = importlib.util.spec_from_file_location("sidestep_segments", folder / "sidestep_segments.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Segments(runtime=runtime, num_threads=1, share_threads=False)
