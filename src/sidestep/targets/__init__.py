"""What runs plans or carries them away: the native engine, and networks in segments for other runtimes."""

from __future__ import annotations

from sidestep.registry import Registry
from sidestep.targets.export_target import PLAN, Exportable, ExportTarget
from sidestep.targets.onnx_if import write_onnx_if
from sidestep.targets.segment_folder import write_segments
from sidestep.targets.timm_folder import TIMM
from sidestep.targets.torch_segments import write_torch
from sidestep.targets.triton_repository import write_triton

_ONNX = ExportTarget(
    name="onnx",
    summary="folder of static graphs for ONNX Runtime and OpenVINO, with their runner (docs/segments.md)",
    suffix=".segments",
    write=write_segments,
    takes_segments=True,
)

_ONNX_IF = ExportTarget(
    name="onnx-if",
    summary="one ONNX file that decides with If, for one image at a time (docs/segments.md)",
    suffix=".onnx",
    write=write_onnx_if,
    takes_segments=True,
)

_TORCH = ExportTarget(
    name="torch",
    summary="folder of torch.export archives of segments, for AOTInductor and ExecuTorch (docs/segments.md)",
    suffix=".archives",
    write=write_torch,
    takes_segments=True,
)

_TRITON = ExportTarget(
    name="triton",
    summary="model repository for Triton: segments, and a model that calls them (docs/segments.md)",
    suffix=".triton",
    write=write_triton,
    takes_segments=True,
)

TARGETS: Registry[ExportTarget] = Registry(
    "export target", [PLAN, _ONNX, _ONNX_IF, _TORCH, _TRITON, TIMM], key="to"
)


def register_target(target: ExportTarget) -> None:
    """Let `sidestep export --to` name a target of your own; see docs/extending.md.

    Raises:
        RecipeError: when the name is taken.
    """
    TARGETS.add(target)


__all__ = ["TARGETS", "ExportTarget", "Exportable", "register_target"]
