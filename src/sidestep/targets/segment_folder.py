"""The folder of a network in segments: graphs, shared weights, manifest and runner."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from sidestep.errors import ExportError
from sidestep.plan.format import Plan
from sidestep.routing.exit_rule import ExitRule
from sidestep.targets.export_target import Exportable, plan_of
from sidestep.targets.freezing import Freezing, check_segments, freeze
from sidestep.targets.map_shapes import Shape, add_shapes, multiply_adds, shapes_of
from sidestep.targets.onnx_graph import SharedWeights, check_onnx
from sidestep.targets.onnx_segments import branch_model
from sidestep.targets.segment_route import component_name, route_of
from sidestep.targets.segments import Branch, Segment, cut
from sidestep.types import Batch

RUNNER = "sidestep_segments.py"
_GRAPHS, _WEIGHTS = "segments", "weights.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFormat:
    """How branches are written.

    Attributes:
        suffix: of their files.
        variant: what the manifest says of every branch's file, by its name.
        make: (branch, name, weights of the plan, shapes of all values) -> content of its file.
        rest: -> files that all share, by name, when all branches are made.
    """

    suffix: str
    variant: Callable[[str], dict[str, Any]]
    make: Callable[[Branch, str, Mapping[str, Tensor], Mapping[int, Shape]], bytes]
    rest: Callable[[], dict[str, bytes]]


def write_segments(exportable: Exportable, path: Path) -> str:
    """Write a folder of ONNX segments and return a few words about it.

    Args:
        exportable: a network that has a plan.
        path: of a folder that is new or empty.

    Raises:
        ExportError: for a network that cannot be cut, or a folder that holds something.
    """
    check_onnx()
    shared = SharedWeights(_WEIGHTS)
    onnx = GraphFormat(
        suffix=".onnx",
        variant=lambda file: {
            "ep": "CPUExecutionProvider",
            "device": "cpu",
            "executor_info": {"ort": {"model_file": file}},
        },
        make=partial(branch_model, shared=shared),
        rest=lambda: {_WEIGHTS: bytes(shared.content)},
    )
    return write_folder(exportable, path, onnx)


def write_folder(exportable: Exportable, path: Path, form: GraphFormat) -> str:
    """Write a folder of segments in some format and return a few words about it; arguments as above."""
    check_new(path)
    plan, freezing = prepared(exportable)
    segments = cut(plan, freezing.units, freezing.exits)
    with new_folder(path) as folder:
        components, macs = _write_graphs(folder, plan, segments, form)
        route = route_of(segments, plan.document, exportable.rule, freezing, exportable.levels, macs)
        manifest = {
            "schema_version": "1.0",
            "package_name": exportable.about.get("recipe", "network"),
            "description": "A network in segments, as docs/segments.md of sidestep specifies them.",
            "layout": "portable",
            "components": components,
            "additional_metadata": {"sidestep": route},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")
        (folder / RUNNER).write_bytes(files("sidestep.targets").joinpath(RUNNER).read_bytes())
    count = len(segments)
    return f"{count} segment{'s' * (count != 1)} in {len(components)} graphs{summary_of(freezing)}"


def prepared(exportable: Exportable) -> tuple[Plan, Freezing]:
    """Return what every export in segments begins with: the plan, and what is frozen.

    Raises:
        ExportError: for a network that cannot be cut.
    """
    network, rule = exportable.network, exportable.rule
    check_segments(exportable.num_segments)
    if network.has_early_exits and rule is None:
        raise ExportError(
            "segments of a network with early exits need thresholds, and this run has none; "
            "`sidestep calibrate` solves them"
        )
    plan = plan_of(exportable)
    return plan, _freezing(exportable, plan, rule)


def _freezing(exportable: Exportable, plan: Plan, rule: ExitRule | None) -> Freezing:
    decisions, count = plan.num_units + plan.num_exits, exportable.num_segments
    if not plan.num_units and (count is None or decisions < count):
        return Freezing()
    return freeze(exportable.network, _images(exportable), exportable.cost, rule, count)


def _images(exportable: Exportable) -> Callable[[], Iterable[Batch]]:
    if exportable.validation is None:
        raise ExportError(
            "what freezing costs is measured on images, and there are none; give Exportable.validation"
        )
    return exportable.validation


def summary_of(freezing: Freezing) -> str:
    """Return what freezing costs, as commands say it."""
    if not freezing.num_images:
        return ""
    gone = []
    if freezing.units:
        gone.append(f"{len(freezing.units)} unit{'s' * (len(freezing.units) > 1)}")
    if freezing.exits:
        gone.append(f"{len(freezing.exits)} exit{'s' * (len(freezing.exits) > 1)}")
    if not gone:
        return "; nothing frozen"
    before, after = 100 * freezing.accuracy_before, 100 * freezing.accuracy_after
    return (
        f"; {' and '.join(gone)} frozen: {before:.2f} % right before and {after:.2f} % after, on "
        f"{freezing.num_images:,} validation images, {100 * freezing.agreement:.2f} % with the same class"
    )


def all_shapes(plan: Plan, segments: Sequence[Segment]) -> dict[int, Shape]:
    """Return the shapes of all values of a plan, those of decisions included, without the batch."""
    shapes = shapes_of(plan)
    for segment in segments:
        for branch in segment.branches:
            add_shapes(shapes, branch.ops, plan.tensors)
            shapes |= {new: shapes[old] for new, old in (branch.gives | branch.passes).items()}
    return shapes


def _write_graphs(
    folder: Path, plan: Plan, segments: Sequence[Segment], form: GraphFormat
) -> tuple[dict[str, object], dict[str, int]]:
    """Write every branch, and return the components of the manifest and their multiply-adds."""
    (folder / _GRAPHS).mkdir()
    shapes = all_shapes(plan, segments)
    components: dict[str, object] = {}
    macs: dict[str, int] = {}
    for number, segment in enumerate(segments):
        for branch in segment.branches:
            if not branch.gives:
                continue
            name = component_name(number, segment, branch.option)
            file = f"{name}{form.suffix}"
            (folder / _GRAPHS / file).write_bytes(form.make(branch, name, plan.tensors, shapes))
            macs[name] = sum(multiply_adds(op, shapes, plan.tensors) for op in branch.ops)
            variant = {"variant_directory": _GRAPHS, **form.variant(file)}
            components[name] = {"variants": {"cpu": variant}}
    for file, content in form.rest().items():
        (folder / _GRAPHS / file).write_bytes(content)
    return components, macs


def check_new(path: Path) -> None:
    """Return if a folder can be written.

    Raises:
        ExportError: where something stands already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExportError(
            f"folder {path} must be new or empty, and it is not; choose another with --out, or remove it"
        )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes the one that was asked for when all is written.

    Raises:
        ExportError: where something stands already, or nothing can be written.
    """
    check_new(path)
    try:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
    except OSError as error:
        raise ExportError(
            f"folder {path} could not be made ({error.strerror}); choose another with --out"
        ) from error
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise ExportError(
            f"folder {path} could not be written ({error.strerror}); choose another with --out, or free space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
