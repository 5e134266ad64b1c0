"""Small image sets on the disk, and the real ones beside the checkout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import paths

SHARED = paths.SHARED / "data"


def shared(name: str) -> str:
    """Return the folder of a real image set, or skip."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"REAL DATA MISSING: no folder {folder}; see README on ../shared")
    return str(folder)


@pytest.fixture(scope="session")
def cifar10() -> str:
    return f"hfds/{shared('cifar10')}"


@pytest.fixture(scope="session")
def imagenette() -> str:
    return f"hfds/{shared('imagenette-small')}"


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Return a function that makes a random (H, W) image that follows from its seed."""

    def make(seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
        shape = size if mode == "L" else (*size, 3)
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))

    return make


@pytest.fixture
def make_folder(tmp_path: Path, picture: Callable[..., Image.Image]) -> Callable[..., Path]:
    """Return a function that writes <split>/<class>/<n>.png: `count` images for each class of each split."""

    def make(
        splits: Sequence[str] = ("train", "test"),
        *,
        classes: Sequence[str] = ("cat", "dog"),
        count: int = 4,
        sizes: Sequence[tuple[int, int]] = ((12, 12),),
    ) -> Path:
        root = tmp_path / "folder"
        for split_index, split in enumerate(splits):
            for class_index, name in enumerate(classes):
                (root / split / name).mkdir(parents=True)
                for n in range(count):
                    seed = 1000 * split_index + 100 * class_index + n
                    picture(seed, sizes[n % len(sizes)]).save(root / split / name / f"{n}.png")
        return root

    return make


@pytest.fixture
def make_hub(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a set in the layout of a hub dataset, and returns its source."""
    datasets = pytest.importorskip("datasets")

    def make(
        splits: dict[str, tuple[list[object], list[object]]],
        *,
        image_key: str = "image",
        label_key: str = "label",
        classes: Sequence[str] | None = ("cat", "dog"),
        label_type: str = "int64",
    ) -> str:
        kind = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value(label_type)
        features = datasets.Features({image_key: datasets.Image(), label_key: kind})
        root = tmp_path / "hub"
        for split, (images, labels) in splits.items():
            rows = {image_key: images, label_key: labels}
            table = datasets.Dataset.from_dict(rows, features=features)
            (root / "data").mkdir(parents=True, exist_ok=True)
            table.to_parquet(str(root / "data" / f"{split}-00000-of-00001.parquet"))
        return f"hfds/{root}"

    return make
