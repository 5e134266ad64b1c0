"""Pixels of chosen test images as a run's network sees them; of the other images none is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sidestep.data.data_config import DataConfig
from sidestep.data.decode import Framing, choose_framing
from sidestep.data.load import decoded_chunks, open_split
from sidestep.data.preparation import Preparation
from sidestep.data.split import Split
from sidestep.errors import DataError
from sidestep.progress import through
from sidestep.reporting.image_table import Array
from sidestep.runs.run_data import check_fits
from sidestep.runs.run_folder import OpenedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The images of a test split, not decoded.

    Attributes:
        split: the split.
        framing: how its images become what a network sees.
        config: says where they come from.
    """

    split: Split
    framing: Framing
    config: DataConfig

    @property
    def labels(self) -> Tensor:
        """Return the (N,) classes."""
        return self.split.labels

    def pixels(self, chosen: Sequence[int]) -> Iterator[Array]:
        """Return the (H, W, C) uint8 pixels of chosen images, in their order.

        Raises:
            DataError: at the first of them that cannot be decoded.
        """
        indices = np.array(chosen, dtype=np.int64)
        chunks = decoded_chunks(self.split, self.framing, indices, self.config)
        for chunk in through(chunks, "making small pictures", len(chosen), lambda chunk: len(chunk.labels)):
            yield from chunk.images.permute(0, 2, 3, 1).numpy()


def open_pictures(config: DataConfig, preparation: Preparation | None) -> Pictures:
    """Return the test images of a config.

    Args:
        config: of the data.
        preparation: how a run's images were prepared; None follows the settings.

    Raises:
        DataError: where there are none.
    """
    split = open_split(config, "test")
    if split is None:
        raise DataError(f"source {config.source!r} must have a test split, and has none; name other data")
    return Pictures(split=split, framing=choose_framing(split, config, preparation), config=config)


def images_of(opened: OpenedRun, source: str | None) -> Pictures:
    """Return the test images of a run.

    Args:
        opened: the run.
        source: where the data lie now, if not where the recipe says.

    Raises:
        DataError: for data with other classes, or images of another size.
    """
    config = opened.data_from(source)
    found = open_pictures(config, opened.preparation)
    check_fits(opened, config.source, found.split.class_names, found.framing.size)
    return found
