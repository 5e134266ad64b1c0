"""The folder of a network in segments: graphs, shared weights, manifest and runner."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from sidestep.errors import ExportError, SidestepError
from sidestep.files import check_new_folder, whole_folder
from sidestep.plan.format import Plan
from sidestep.plan.from_network import CRITERIA_OF_PLANS
from sidestep.routing.router import Router
from sidestep.targets.export_target import Exportable, card_of, plan_of
from sidestep.targets.freezing import Freezing, check_segments, freeze
from sidestep.targets.map_shapes import Shape, add_shapes, multiply_adds, shapes_of
from sidestep.targets.onnx_graph import SharedWeights, check_onnx
from sidestep.targets.onnx_ops import operations_without_onnx
from sidestep.targets.onnx_segments import branch_model
from sidestep.targets.plain_sums import with_plain_sums
from sidestep.targets.segment_route import component_name, route_of, segment_entry
from sidestep.targets.segments import Branch, Segment, cut
from sidestep.targets.traced_segments import TracedNetwork, trace, traced_onnx
from sidestep.types import Batch

RUNNER = "sidestep_segments.py"
_GRAPHS, _WEIGHTS = "segments", "weights.bin"
WAY_OUT = "choose another with --out"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFormat:
    """How branches are written.

    Attributes:
        suffix: of their files.
        variant: what the manifest says of every branch's file, by its name.
        make: (branch, name, weights of the plan, shapes of all values) -> content of its file.
        traced: (network, name of a branch) -> content of its file, for a network without a plan.
        rest: -> files that all share, by name, when all branches are made.
    """

    suffix: str
    variant: Callable[[str], dict[str, Any]]
    make: Callable[[Branch, str, Mapping[str, Tensor], Mapping[int, Shape]], bytes]
    traced: Callable[[TracedNetwork, str], bytes]
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
        traced=traced_onnx,
        rest=lambda: {_WEIGHTS: bytes(shared.content)} if shared.content else {},
    )
    return write_folder(exportable, path, onnx)


def write_folder(exportable: Exportable, path: Path, form: GraphFormat) -> str:
    """Write a folder of segments in some format and return a few words about it; arguments as above."""
    check_new_folder(path, what="folder", way_out=WAY_OUT, error=ExportError)
    check_cut(exportable)
    plan, freezing = _plan_or_none(exportable), frozen(exportable)
    with whole_folder(path, way_out=WAY_OUT, error=ExportError) as folder:
        (folder / _GRAPHS).mkdir()
        if plan is None:
            components, entries = _write_traced(folder, exportable, freezing, form)
        else:
            components, entries = _write_graphs(folder, plan, cut(plan, freezing.units, freezing.exits), form)
        document = card_of(exportable).as_dict() if plan is None else plan.document
        count = num_units(exportable)
        route = route_of(entries, document, exportable.rule, freezing, exportable.levels, count)
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
    count = len(entries)
    return f"{count} segment{'s' * (count != 1)} in {len(components)} graphs{summary_of(freezing)}"


def _plan_or_none(exportable: Exportable) -> Plan | None:
    """Return the plan of a network, or None where PyTorch's exporter may write one that has no such graphs.

    Raises:
        ExportError: for a network that cannot be written at all.
    """
    network, rule = exportable.network, exportable.rule
    try:
        plan = plan_of(exportable)
        return None if operations_without_onnx(plan) else with_plain_sums(plan)
    except ExportError:
        parts = [] if network.router is None else network.router.modules()
        obstacles = any(isinstance(part, Router) and part.plan_obstacle for part in parts)
        foreign = rule is not None and rule.criterion not in CRITERIA_OF_PLANS
        if exportable.per_image_standardization or obstacles or foreign:
            raise
        return None


def num_units(exportable: Exportable) -> int:
    """Return the number of units that a network decides about."""
    return 0 if exportable.network.router is None else len(exportable.network.units)


def _write_traced(
    folder: Path, exportable: Exportable, freezing: Freezing, form: GraphFormat
) -> tuple[dict[str, object], list[dict[str, Any]]]:
    """Write every branch of a network without a plan; return components and segments of the manifest."""
    traced = trace(exportable.network, exportable.input_size, exportable.rule, freezing)
    components: dict[str, object] = {}
    for name in traced.branches:
        try:
            content = form.traced(traced, name)
        except SidestepError:
            raise
        except Exception as error:  # of many kinds, by what a network is made of
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ExportError(
                f"{name} has no plan, and PyTorch's exporter cannot write it ({reason}); replace that"
            ) from error
        (folder / _GRAPHS / f"{name}{form.suffix}").write_bytes(content)
        components[name] = _component(name, form)
    return components, traced.entries


def _component(name: str, form: GraphFormat) -> dict[str, object]:
    return {"variants": {"cpu": {"variant_directory": _GRAPHS, **form.variant(f"{name}{form.suffix}")}}}


def check_cut(exportable: Exportable) -> None:
    """Return if a network can be cut.

    Raises:
        ExportError: for a network that cannot be cut.
    """
    network, rule = exportable.network, exportable.rule
    check_segments(exportable.num_segments)
    if network.lets_leave and rule is None:
        raise ExportError(
            "segments of a network with early exits need thresholds, and this run has none; "
            "`sidestep calibrate` solves them"
        )


def frozen(exportable: Exportable) -> Freezing:
    """Return what of a network is frozen.

    Raises:
        ExportError: where images are needed to tell, and missing.
    """
    network, rule = exportable.network, exportable.rule
    units, count = num_units(exportable), exportable.num_segments
    if not units and (count is None or network.num_exits <= count):
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
) -> tuple[dict[str, object], list[dict[str, Any]]]:
    """Write every branch of a plan's segments; return components and segments of the manifest."""
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
            components[name] = _component(name, form)
    for file, content in form.rest().items():
        (folder / _GRAPHS / file).write_bytes(content)
    return components, [segment_entry(number, segment, macs) for number, segment in enumerate(segments)]
