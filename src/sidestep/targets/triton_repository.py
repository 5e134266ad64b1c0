"""A model repository for Triton: a model for every graph of a network, and one that calls them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from sidestep.errors import ExportError
from sidestep.files import whole_folder
from sidestep.targets.export_target import Exportable
from sidestep.targets.onnx_graph import check_onnx
from sidestep.targets.onnx_segments import branch_model
from sidestep.targets.segment_folder import RUNNER, WAY_OUT, GraphFormat, write_folder
from sidestep.targets.traced_segments import traced_onnx

_MODEL, _LABELS = "triton_model.py", "labels.txt"
# Most images of a call, of several clients together.
_MOST = 128
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
_Tensor = tuple[str, str, list[int]]


def write_triton(exportable: Exportable, path: Path) -> str:
    """Write a model repository and return a few words about it.

    Args:
        exportable: a network that can be cut.
        path: of a folder that is new or empty.

    Raises:
        ExportError: for a network that cannot be cut, or a folder that holds something.
    """
    check_onnx()
    # Triton takes the name of a model for that of a folder.
    name = re.sub(r"[^A-Za-z0-9_]+", "_", exportable.about.get("recipe", "network"))
    form = GraphFormat(
        suffix=".onnx",
        variant=lambda file: {"executor_info": {"triton": {"model": f"{name}_{Path(file).stem}"}}},
        make=partial(branch_model, shared=None),
        traced=traced_onnx,
        rest=dict,
    )
    with whole_folder(path, way_out=WAY_OUT, error=ExportError) as folder:
        flat = folder / f"{name}.partial"
        said = write_folder(exportable, flat, form)
        for graph in sorted(flat.glob("*/*.onnx")):
            place = _version(folder, f"{name}_{graph.stem}") / "model.onnx"
            graph.replace(place)
            _configure(folder, f"{name}_{graph.stem}", "onnxruntime", *_tensors_of(place))
        here = _version(folder, name)
        for file in ("manifest.json", RUNNER):
            (flat / file).replace(here / file)
        (flat / "segments").rmdir()
        flat.rmdir()
        (here / "model.py").write_bytes(files("sidestep.targets").joinpath(_MODEL).read_bytes())
        route = json.loads((here / "manifest.json").read_bytes())["additional_metadata"]["sidestep"]
        # A class a line.
        names = [" ".join(each.split()) for each in route["classes"]]
        (folder / name / _LABELS).write_text("".join(f"{each}\n" for each in names), encoding="utf-8")
        _configure(folder, name, "python", *_interface(route))
    return f"{said}; model {name!r} calls the others"


def _version(folder: Path, model: str) -> Path:
    version = folder / model / "1"
    version.mkdir(parents=True)
    return version


def _interface(route: dict[str, Any]) -> tuple[list[_Tensor], list[_Tensor]]:
    """Return inputs and outputs of the model that calls the others, without the side of the images."""
    outputs = [
        ("probabilities", "TYPE_FP32", [len(route["classes"])]),
        ("class", "TYPE_INT64", [1]),
        ("exit", "TYPE_INT64", [1]),
        ("macs", "TYPE_FP64", [1]),
    ]
    if route["num_units"]:
        outputs.append(("path", "TYPE_INT64", [route["num_units"]]))
    return [("image", "TYPE_UINT8", [-1, -1, route["input"]["channels"]])], outputs


def _tensors_of(path: Path) -> tuple[list[_Tensor], list[_Tensor]]:
    """Return inputs and outputs of a graph, with an open number of images."""
    import onnx

    graph = onnx.load(path).graph

    def listed(values: Any) -> list[_Tensor]:
        found = []
        for value in values:
            kind = value.type.tensor_type
            datatype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            sides = [side.dim_value or -1 for side in kind.shape.dim]
            found.append((value.name, _TYPES[datatype], sides))
        return found

    return listed(graph.input), listed(graph.output)


def _configure(
    folder: Path,
    model: str,
    backend: str,
    inputs: Sequence[_Tensor],
    outputs: Sequence[_Tensor],
) -> None:
    """Write what Triton reads about a model."""
    whole = backend == "python"
    lines = [f'name: "{model}"', f'backend: "{backend}"', f"max_batch_size: {_MOST if whole else 0}"]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for name, datatype, sides in tensors:
            said = f'name: "{name}" data_type: {datatype} dims: {list(sides)}'
            if whole and name == "probabilities":
                said += f' label_filename: "{_LABELS}"'
            lines.append(f"{kind} [{{ {said} }}]")
    if whole:
        # Requests that wait are answered together; the graphs may run on any device.
        lines += ["dynamic_batching {}", "instance_group [{ kind: KIND_CPU }]"]
    (folder / model / "config.pbtxt").write_text("\n".join(lines) + "\n")
