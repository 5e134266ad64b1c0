"""Folders of segments, read with distrust and made ready to run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidestep.errors import ExecutionError
from sidestep.evaluation.rivals import installed
from sidestep.files import read_json
from sidestep.plan.levels import Level
from sidestep.targets.sidestep_segments import Segments

MANIFEST = "manifest.json"
RUNTIMES = ("onnxruntime", "openvino")
_AGAIN = "export the run again"
_MOST_UNITS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSegments:
    """A folder of segments that is ready to run.

    Attributes:
        segments: its runner, all graphs made.
        runtime: "onnxruntime" or "openvino".
        temperatures: of all exits, by which logits are divided; 1 at exits that are left out.
        levels: its budgets, with limits of doubt as thresholds.
        num_threads: that share a batch.
    """

    segments: Segments
    runtime: str
    temperatures: list[float]
    levels: list[Level]
    num_threads: int

    @property
    def route(self) -> dict[str, Any]:
        """Return what the manifest says beside the files."""
        return self.segments.route


def open_segments(folder: Path) -> OpenedSegments:
    """Return the segments in a folder that `sidestep export --to onnx` wrote, in a runtime that is here.

    Nothing in the folder is taken for a program, and no file outside of it is read.

    Raises:
        SidestepError: for a manifest that does not fit docs/segments.md, graphs that no runtime can run, or
            where none is installed.
    """
    path = folder / MANIFEST
    manifest = read_json(path, what="manifest", way_out=_AGAIN)
    try:
        route = manifest["additional_metadata"]["sidestep"]
        _check_version(route)
        _check_files(folder, manifest["components"])
        temperatures = _check_route(route, manifest["components"])
        levels = [_level(entry, len(temperatures)) for entry in route["budgets"]]
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ExecutionError(
            f"manifest {path} must be as docs/segments.md says, and is not ({reason}); {_AGAIN}"
        ) from error
    threads = torch.get_num_threads()
    runtime = next((name for name in RUNTIMES if installed(name)), None)
    if runtime is None:
        raise ExecutionError(
            "onnxruntime or openvino must be installed to run segments; `pip install onnxruntime`"
        )
    return OpenedSegments(
        segments=_ready(folder, runtime, threads),
        runtime=runtime,
        temperatures=temperatures,
        levels=levels,
        num_threads=threads,
    )


def _ready(folder: Path, runtime: str, threads: int) -> Segments:
    """Return a runner that has made all its graphs, and has run images through the longest way."""
    try:
        # ONNX Runtime's shared pool would be that of everything else in the process, too.
        segments = Segments(folder, runtime, threads, share_threads=False)
        for name in segments.components:
            for alone in (False, True):
                segments.graph(name, alone)
        wanted = segments.route["input"]
        images = np.zeros((2, wanted["channels"], *wanted["size"]), np.float32)
        for _, answer in segments.leaving(images, [-3e38] * len(segments.route["limits"])):
            _demand(answer.logits.ndim == 2, "logits must be (N, C)")
    except Exception as error:  # of kinds that runtimes do not name
        reason = " ".join(str(error).split())[:300]
        raise ExecutionError(f"{runtime} cannot run the segments in {folder} ({reason}); {_AGAIN}") from error
    return segments


def _demand(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


def _check_version(route: Any) -> None:
    if route["format"] != 1:
        raise ExecutionError(
            f"format of segments must be 1, got {route['format']!r}; a newer sidestep may know it"
        )


def _check_files(folder: Path, components: Any) -> None:
    """Return if every component has a file in the folder."""
    for name, component in components.items():
        variant = component["variants"]["cpu"]
        if "ort" not in variant["executor_info"]:
            raise ExecutionError(
                f"segments in {folder} must be ONNX graphs to be served, and are archives for others; serve "
                "the run itself, or `sidestep export --to onnx`"
            )
        place = Path(variant["variant_directory"], variant["executor_info"]["ort"]["model_file"])
        inside = not place.is_absolute() and ".." not in place.parts
        _demand(inside and (folder / place).is_file(), f"graph {name!r} must be a file in the folder")


def _check_route(route: Any, components: Any) -> list[float]:
    """Return the temperatures of all exits, if every value is known where it is read."""
    images, num_units = route["input"], route["num_units"]
    shape = (images["channels"], *images["size"])
    _demand(len(shape) == 3 and all(_whole(side, 1, 1 << 20) for side in shape), "input must have a size")
    for name in ("mean", "std"):
        _demand(
            len(images[name]) == shape[0] and all(map(math.isfinite, images[name])), f"{name} per channel"
        )
    _demand(_whole(num_units, 0, _MOST_UNITS), "num_units must be a number")
    _demand(all(isinstance(name, str) for name in [*route["classes"], *route["about"]]), "classes are texts")
    _demand(0 < route["cost"]["full_macs"] < math.inf, "full_macs must be above 0")
    known: set[str] = {"images"}
    options: list[int | None] = [None]
    temperatures = {}
    for number, segment in enumerate(route["segments"]):
        _demand([branch["option"] for branch in segment["branches"]] == options, "a branch for every option")
        for branch in segment["branches"]:
            _check_branch(branch, segment["live"], known, components)
        decision, live = segment["decision"], set(segment["live"])
        kind, index = decision["kind"], decision["index"]
        fixed = [(int(unit), option) for unit, option in segment["fixed_units"].items()]
        _demand(
            all(_whole(unit, 0, num_units - 1) and _whole(option, 0, 99) for unit, option in fixed), "units"
        )
        _demand(decision["value"] in live, f"{decision['value']!r} must be live")
        is_last = number == len(route["segments"]) - 1
        _demand(
            (kind == "end") == is_last and kind in ("choose", "exit", "end"), "the last segment is the end"
        )
        _demand(_whole(index, 0, num_units - 1 if kind == "choose" else _MOST_UNITS), "indices of decisions")
        options = [None]
        if kind == "choose":
            options = list(range(len(route["segments"][number + 1]["branches"])))
            _demand(len(options) > 1, "a choice has several branches")
        else:
            _demand(decision["logits"] in live, f"{decision['logits']!r} must be live")
            _demand(0 < decision["temperature"] < math.inf, "temperatures must be above 0")
            temperatures[index] = float(decision["temperature"])
        known = live if kind == "end" else live - {decision["value"]}
    last = max(temperatures)
    _demand(index == last and len(route["limits"]) == last, "a limit for every exit but the last")
    _demand(all(map(math.isfinite, route["limits"])), "limits must be finite")
    return [temperatures.get(exit, 1.0) for exit in range(last + 1)]


def _check_branch(branch: Any, live: list[str], known: set[str], components: Any) -> None:
    read = {*branch["inputs"], *branch["passes"].values()}
    _demand(read <= known, f"{branch['component']} reads what is not known")
    given = known | set(branch["outputs"]) | set(branch["passes"])
    _demand(set(live) <= given, f"{branch['component']} does not give all that is live")
    _demand(branch["component"] in components or not branch["outputs"], "components must be listed")
    _demand(branch["component"] is None or bool(branch["inputs"]), "graphs read something")
    _demand(0 <= branch["macs"] < math.inf, "macs must be finite")


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _level(entry: Any, num_exits: int) -> Level:
    """Return a budget; where images leave for it is not said in older folders."""
    rates = entry.get("exit_rates", [1 / num_exits] * num_exits)
    numbers = [entry["macs"], entry["accuracy"], *entry["limits"], *rates]
    _demand(all(map(math.isfinite, numbers)) and entry["macs"] > 0, "budgets must be numbers")
    _demand(len(entry["limits"]) == num_exits - 1 and len(rates) == num_exits, "limits of all exits")
    return Level(macs=entry["macs"], accuracy=entry["accuracy"], exit_rates=rates, thresholds=entry["limits"])
