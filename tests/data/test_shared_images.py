"""Images that trainings have in common: decoded once inside, anew outside, apart where anything differs."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sidestep.data import load as load_module
from sidestep.data import shared_images as shared_images_module
from sidestep.data.data_config import DataConfig
from sidestep.data.load import load_data
from sidestep.data.shared_images import shared_images
from sidestep.data.sources import SOURCES
from sidestep.data.split import Role, Split

CONFIG = DataConfig(source="digits", image_size=16, workers=0, limit=64, val_fraction=0.1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of images that were decoded, one per set."""
    found: list[int] = []
    decode = load_module._decoded

    def counted(part, config):  # type: ignore[no-untyped-def]
        found.append(len(part.indices))
        return decode(part, config)

    monkeypatch.setattr(load_module, "_decoded", counted)
    return found


def test_trainings_of_one_sweep_decode_once(decoded: list[int]) -> None:
    with shared_images():
        one = load_data(CONFIG)
        with shared_images():
            other = load_data(replace(CONFIG, flip=False, mean=(0.4, 0.4, 0.4)))
    assert decoded == [64, 150, 297]
    assert one.train is not None and other.train is not None
    assert torch.equal(one.train.images, other.train.images)  # type: ignore[attr-defined]
    load_data(CONFIG)
    assert decoded == 2 * [64, 150, 297]


def test_splits_are_opened_and_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    opens, looks = SOURCES["digits"].open, shared_images_module.content_of

    def opened(settings: Any, name: str, role: Role) -> Split | None:
        seen.append(role)
        return opens(settings, name, role)

    def looked(split: Split) -> str:
        seen.append("content")
        return looks(split)

    monkeypatch.setitem(SOURCES._items, "digits", replace(SOURCES["digits"], open=opened))
    monkeypatch.setattr(shared_images_module, "content_of", looked)
    with shared_images():
        said = {load_data(replace(CONFIG, limit=limit), splits=("val",)).drawn_from for limit in (64, 32)}
    assert seen == ["train", "content"] and len(said) == 1
    assert {load_data(CONFIG, splits=("val",)).drawn_from} == said and len(seen) == 4


@pytest.mark.parametrize(
    "changes", [{"split_seed": 1}, {"image_size": 24}, {"channels": 1, "mean": [0.5], "std": [0.5]}]
)
def test_other_images_are_decoded_for_themselves(changes: dict[str, object], decoded: list[int]) -> None:
    with shared_images():
        one = load_data(CONFIG, splits=("train",))
        other = load_data(replace(CONFIG, **changes), splits=("train",))  # type: ignore[arg-type]
    assert len(decoded) == 2
    assert one.train is not None and other.train is not None
    pixels = [data.train.images for data in (one, other)]  # type: ignore[union-attr]
    assert pixels[0].shape != pixels[1].shape or not torch.equal(*pixels)
