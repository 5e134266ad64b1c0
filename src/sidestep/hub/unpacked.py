"""Packages unpacked into run folders, which every command takes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from sidestep.errors import OutputError
from sidestep.hub.package import CONFIG, WEIGHTS, Package, read_package
from sidestep.training.checkpoint import Checkpoint, save_checkpoint
from sidestep.training.loop import BEST
from sidestep.training.metrics import METRICS
from sidestep.training.state import QUANTIZED

_PIECE = 2**20
# What `calibrate` has solved, and a training on bytes has left: their names in a package and in a checkpoint.
_SOLVED = {
    "thresholds": "exits",
    "asked": "asked",
    "biases": "biases",
    "frontier": "frontier",
    QUANTIZED: QUANTIZED,
}
_CURVES = {"exits": "exits.json", "routers": "budgets.json"}


def cache_folder() -> Path:
    """Return where packages are unpacked: SIDESTEP_CACHE, or `sidestep` in the cache of the user."""
    if place := os.environ.get("SIDESTEP_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sidestep"


def unpack(folder: Path, name: str) -> Path:
    """Return the run folder that a package stands for, made once for each content.

    What commands keep in it (thresholds, timings, curves) is there the next time, and never in the package.

    Args:
        folder: that holds the package.
        name: of the run folder.

    Raises:
        CheckpointError: when the package is damaged, or none.
        OutputError: when the run folder cannot be written.
    """
    package = read_package(folder)
    run = cache_folder() / "packages" / _digest(folder) / name
    if (run / BEST).is_file():
        return run
    try:
        if run.is_dir():
            shutil.rmtree(run)  # somebody has cleared the cache, and not all of it
        run.parent.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=run.parent.parent) as place:
            made = Path(place) / name
            _write_run(made, package)
            run.parent.mkdir(exist_ok=True)
            try:
                made.rename(run)
            except OSError:
                # Another process was faster.
                if not run.is_dir():
                    raise
    except OSError as error:
        raise OutputError(
            f"package {folder} could not be unpacked into {run} ({error.strerror or error}); name another "
            "place with SIDESTEP_CACHE, or free some space"
        ) from error
    return run


def _write_run(run: Path, package: Package) -> None:
    own, results = package.own, package.own["results"]
    values = {
        "recipe": own["recipe"],
        "class_names": package.config["label_names"],
        "input_size": own["input_size"],
        "preparation": own.get("preparation"),
        "drawn_from": own.get("drawn_from"),
    }
    values |= {key: own[name] for name, key in _SOLVED.items() if own.get(name) is not None}
    run.mkdir()
    tensors = {f"model.{key}": tensor for key, tensor in package.tensors.items()}
    save_checkpoint(run / BEST, Checkpoint(tensors=tensors, values=values))
    (run / "recipe.yaml").write_text(yaml.safe_dump(own["recipe"], sort_keys=False))
    _write_json(run / "environment.json", own["environment"])
    if (report := results.get("report")) is not None:
        _write_json(run / "report.json", {"best": report, "last": report})
    # One row stands for all epochs.
    row = {"step": 0, "train": {}, "seconds": 60 * float(results.get("minutes") or 0.0), "val": None}
    (run / METRICS).write_text(json.dumps(row) + "\n")
    for name, file in _CURVES.items():
        if (curve := own["budgets"].get(name)) is not None:
            _write_json(run / file, curve | {"checkpoint": "best"})
    if results.get("timings") is not None:
        _write_json(run / "bench.json", results["timings"])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _digest(folder: Path) -> str:
    """Return what the content of a package's files is known by."""
    digest = sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:24]
