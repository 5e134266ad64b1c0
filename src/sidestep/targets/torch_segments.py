"""Segments as archives of `torch.export`, for AOTInductor, ExecuTorch, and PyTorch itself."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sidestep.plan.format import weights_of
from sidestep.targets.export_target import Exportable
from sidestep.targets.map_shapes import Shape
from sidestep.targets.segment_folder import GraphFormat, write_folder
from sidestep.targets.segments import Branch
from sidestep.targets.torch_ops import run_op
from sidestep.targets.traced_segments import TracedNetwork


class BranchModule(nn.Module):
    """Runs a branch: (B, ...) values that it reads, in order, to a tuple of those that it gives.

    Args:
        branch: to run.
        tensors: weights of the plan.
        shapes: of all values, without the batch.
    """

    def __init__(self, branch: Branch, tensors: Mapping[str, Tensor], shapes: Mapping[int, Shape]) -> None:
        super().__init__()
        self.branch, self.shapes = branch, shapes
        self.names = {
            name: f"weight_{index}"
            for index, name in enumerate(dict.fromkeys(name for op in branch.ops for name in weights_of(op)))
        }
        for name, attribute in self.names.items():
            self.register_buffer(attribute, tensors[name].clone())

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        count = given[0].shape[0]
        values = dict(zip(self.branch.reads, given, strict=True))
        weights = {name: getattr(self, attribute) for name, attribute in self.names.items()}
        for op in self.branch.ops:
            values[op["out"]] = run_op(op, values, weights, self.shapes, count)
        said = [values[held] for held in self.branch.gives.values()]
        # Copies: an archive that gives what it was given, or one thing twice, is refused by some compilers.
        return tuple(each.expand(count, *each.shape[1:]).clone() for each in said)


def branch_archive(
    branch: Branch, name: str, tensors: Mapping[str, Tensor], shapes: Mapping[int, Shape]
) -> bytes:
    """Return the archive of a branch, with an open number of images.

    Args:
        branch: that gives something.
        name: of the component.
        tensors: weights of the plan.
        shapes: of all values.
    """
    example = tuple(torch.zeros(2, *shapes[value]) for value in branch.reads)
    return _archive(BranchModule(branch, tensors, shapes), example)


def _traced_archive(traced: TracedNetwork, name: str) -> bytes:
    """Return the archive of a branch of a network without a plan."""
    module, given, _, _ = traced.branches[name]
    return _archive(module, tuple(each.clone() for each in given))


def _archive(module: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter's own deprecations are none of the user's business.
        warnings.simplefilter("ignore")
        program = torch.export.export(
            module.eval(), example, dynamic_shapes=(tuple({0: batch} for _ in example),)
        )
        content = io.BytesIO()
        torch.export.save(program, content)
    return content.getvalue()


def write_torch(exportable: Exportable, path: Path) -> str:
    """Write a folder of archives and return a few words about it.

    Args:
        exportable: a network that has a plan.
        path: of a folder that is new or empty.

    Raises:
        ExportError: for a network that cannot be cut, or a folder that holds something.
    """
    archives = GraphFormat(
        suffix=".pt2",
        variant=lambda file: {"executor_info": {"torch": {"model_file": file}}},
        make=branch_archive,
        traced=_traced_archive,
        rest=dict,
    )
    return write_folder(exportable, path, archives)
