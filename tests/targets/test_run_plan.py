"""Pictures are prepared in one way by training's evaluation, `evaluate`, the engine and `sidestep run`."""

from __future__ import annotations

import importlib.util
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import sidestep
from sidestep.cli.main import main
from sidestep.data.folders import FolderImages
from sidestep.data.load import open_split
from sidestep.data.memory_set import MemorySet
from sidestep.data.preparation import Preparation, pixels_of_old_plan
from sidestep.errors import DataError, ExecutionError
from sidestep.plan.format import preparation_entry, preparation_in
from sidestep.runs.recipe import from_dict
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run
from sidestep.targets.run_plan import run_plan
from tests.reference.plan import read_plan

RECIPE: dict[str, Any] = {
    "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"},
    "model": {"name": "cifar_resnet8"},
    "training": {"phases": [{"name": "joint", "epochs": 1}], "batch_size": 4, "max_steps": 2},
}
DATA: dict[str, Any] = {"image_size": 24, "workers": 0, "storage": "memory"}
KINDS = ("jpg", "png", "webp", "bmp", "gif", "grey.png", "rgba.png", "palette.png", "turned.jpg", "deep.png")


needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("sidestep_engine") is None,
    reason="SIDESTEP-ENGINE MISSING: pip install ./engine",
)


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def save_every_kind(folder: Path, sizes: list[tuple[int, int]]) -> None:
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for n, kind in enumerate(KINDS):
        image = picture(n, sizes[n % len(sizes)])
        if kind == "grey.png":
            image = image.convert("L")
        elif kind == "rgba.png":
            image.putalpha(100)
        elif kind == "palette.png":
            image = image.convert("P")
        elif kind == "deep.png":
            # Colours of 16 bits, of which Pillow reads the upper 8.
            deep = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).to(torch.uint16) * 257
            write_deep(folder / kind, deep.permute(1, 2, 0).numpy())
            continue
        options = {"transparency": b"\x80\x40"} if kind == "palette.png" else {}
        image.save(folder / f"{n}.{kind}", **(options | ({"exif": exif} if kind == "turned.jpg" else {})))


def write_deep(path: Path, pixels: Any) -> None:
    """Write a PNG with 16 bits for each of three channels, which Pillow cannot."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = pixels.shape
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.fixture(params=["photographs", "one size", "bicubic, grey, wide"])
def run(request: Any, tmp_path: Path, monkeypatch: Any) -> Path:
    """A run on pictures of every kind; the set lies in `set` of the working directory."""
    monkeypatch.chdir(tmp_path)
    sizes = [(30, 30)] if request.param == "one size" else [(30, 30), (36, 60), (50, 28)]
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        save_every_kind(tmp_path / "set" / name, sizes)
    data = DATA | {"source": "set"}
    if request.param.startswith("bicubic"):
        data |= {"interpolation": "bicubic", "crop_share": 0.9, "channels": 1, "image_size": [24, 32]}
    return sidestep.train(from_dict({"name": "tiny", "data": data, **RECIPE}), tmp_path / "run")


def seen_by_evaluate(run: Path) -> tuple[Any, list[Path]]:
    """Return the pixels of the test split that `evaluate` sees, and the files in their order."""
    opened = open_run(run, "best")
    test, split = data_of(opened, "test", None).test, open_split(opened.recipe.data, "test")
    assert isinstance(test, MemorySet) and split is not None and isinstance(split.images, FolderImages)
    return test.images.permute(0, 2, 3, 1).numpy(), list(split.images.paths)


@needs_engine
def test_engine_pytorch_and_command_line_see_the_same_pixels(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sidestep_engine

    calls: list[Any] = []
    ask = sidestep_engine.Engine.__call__
    monkeypatch.setattr(
        sidestep_engine.Engine, "__call__", lambda self, images: (calls.append(images), ask(self, images))[1]
    )
    assert main(["export", str(run)]) == 0
    pixels, paths = seen_by_evaluate(run)
    capsys.readouterr()
    assert main(["run", str(run / "best.plan"), *map(str, paths), "--json", "--precision", "float32"]) == 0
    said = json.loads(capsys.readouterr().out)
    (shown,) = calls
    assert shown.dtype == np.uint8 and np.array_equal(shown, pixels)
    network, batches = sidestep.load(run), data_of(open_run(run, "best"), "test", None).test
    assert batches is not None
    with torch.no_grad():
        (batch,) = batches.eval_batches(batch_size=100)
        best = network(batch.images).logits.softmax(dim=1).max(dim=1)
    assert [one["label"] for one in said] == [("cat", "dog")[index] for index in best.indices]
    np.testing.assert_allclose([one["probability"] for one in said], best.values, atol=1e-4)


def test_the_preparation_is_in_checkpoint_and_plan(run: Path) -> None:
    opened = open_run(run, "best")
    sidestep.export_run(run)
    content = (run / "best.plan").read_bytes()
    assert opened.preparation is not None
    assert preparation_in(content) == opened.preparation
    document = read_plan(run / "best.plan")[0]["input"]
    assert document["preparation"] == preparation_entry(opened.preparation)
    assert document["channels"] == opened.preparation.channels == opened.recipe.data.channels


def test_other_pictures_are_prepared_as_those_of_the_run(run: Path) -> None:
    for name in ("cat", "dog"):
        save_every_kind(Path("other", "test", name), [(40, 40)])
    opened = open_run(run, "best")
    assert data_of(opened, "test", "other").preparation == opened.preparation


def test_a_plan_that_does_not_say_is_run_as_before(tmp_path: Path) -> None:
    image = picture(0, (30, 50))
    expected = np.asarray(ImageOps.fit(image, (20, 16)))
    assert np.array_equal(pixels_of_old_plan(image, (16, 20), 3), expected)


KNOWN = preparation_entry(Preparation(size=(1, 1)))


@pytest.mark.parametrize(
    "entry",
    [{}, [1], *(KNOWN | {key: 2} for key in KNOWN), KNOWN | {"more": 1}, KNOWN | {"antialias": False}],
)
def test_a_preparation_that_is_not_known_is_refused(entry: Any) -> None:
    document = {"input": {"size": [8, 8], "channels": 3, "preparation": entry}}
    header = json.dumps({"__metadata__": {"sidestep_plan": json.dumps(document)}}).encode()
    with pytest.raises(ExecutionError, match=r"input.preparation must be as docs/plan.md says, got"):
        preparation_in(len(header).to_bytes(8, "little") + header)


@needs_engine
def test_grey_of_16_bits_is_refused_by_evaluate_and_run_alike(run: Path) -> None:
    sidestep.export_run(run)
    Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save("set/test/cat/grey16.png")
    sentence = (
        r"grey16.png' must be an image that Pillow can decode, got pixels of mode I;16, which have more"
    )
    with pytest.raises(DataError, match=sentence):
        sidestep.evaluate(run)
    with pytest.raises(DataError, match=sentence):
        run_plan(run / "best.plan", ["set/test/cat/grey16.png"])
