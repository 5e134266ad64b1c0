"""Opens image sets as tests look at them: pixels in [0, 1], not normalised, without worker processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.data import Data, DataConfig, ImageSet, load_data
from sidestep.data.sources import SOURCES

PLAIN: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "workers": 0}


def load(source: object, **changes: Any) -> Data:
    splits = changes.pop("splits", ("train", "val", "test"))
    settings = SOURCES[str(source)].settings(root=changes.pop("root")) if "root" in changes else None
    config = DataConfig(source=str(source), settings=settings, **{**PLAIN, **changes})
    return load_data(config, splits=splits)


def pixels(images: ImageSet | None) -> Tensor:
    assert images is not None
    return torch.cat([batch.images for batch in images.eval_batches(batch_size=16)])


def labels(images: ImageSet | None) -> list[int]:
    assert images is not None
    return [int(label) for batch in images.eval_batches(batch_size=16) for label in batch.labels]


def sets(data: Data) -> list[ImageSet | None]:
    return [data.train, data.val, data.test]


def counts(data: Data) -> list[int]:
    return [len(images or []) for images in sets(data)]


def raw(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
