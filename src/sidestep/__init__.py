"""Dynamic inference networks whose skipped FLOPs are skipped milliseconds.

>>> import sidestep
>>> sorted(sidestep.__all__)[:3]
['Batch', 'CheckpointError', 'CostModel']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidestep.cost.macs import measure_cost
    from sidestep.errors import (
        CheckpointError,
        DataError,
        ExecutionError,
        ExportError,
        RecipeError,
        SidestepError,
        TrainingError,
    )
    from sidestep.evaluation.report import Report
    from sidestep.execution.execution import cascade, gathered, masked
    from sidestep.networks.attached_exits import attach_exits
    from sidestep.networks.routed import RoutedNetwork
    from sidestep.routing.exit_rule import ExitRule
    from sidestep.routing.relational import RelationalRouter
    from sidestep.routing.router import Router
    from sidestep.runs.evaluate import ExitBudget, calibrate, curve, evaluate
    from sidestep.runs.export import export_run
    from sidestep.runs.recipe import Recipe, load_recipe
    from sidestep.runs.run_folder import load
    from sidestep.runs.timing import bench
    from sidestep.runs.train import train
    from sidestep.runs.wrap import wrap
    from sidestep.types import Batch, CostModel, Decisions, RoutedOutput

# Public names and their homes. They are imported on first use, so that `import sidestep` stays light.
_HOMES = {
    "Batch": "types",
    "CheckpointError": "errors",
    "CostModel": "types",
    "DataError": "errors",
    "Decisions": "types",
    "ExecutionError": "errors",
    "ExitBudget": "runs.evaluate",
    "ExitRule": "routing.exit_rule",
    "ExportError": "errors",
    "Recipe": "runs.recipe",
    "RecipeError": "errors",
    "RelationalRouter": "routing.relational",
    "Report": "evaluation.report",
    "RoutedNetwork": "networks.routed",
    "RoutedOutput": "types",
    "Router": "routing.router",
    "SidestepError": "errors",
    "TrainingError": "errors",
    "attach_exits": "networks.attached_exits",
    "bench": "runs.timing",
    "calibrate": "runs.evaluate",
    "curve": "runs.evaluate",
    "evaluate": "runs.evaluate",
    "export_run": "runs.export",
    "cascade": "execution.execution",
    "gathered": "execution.execution",
    "load": "runs.run_folder",
    "load_recipe": "runs.recipe",
    "masked": "execution.execution",
    "measure_cost": "cost.macs",
    "train": "runs.train",
    "wrap": "runs.wrap",
}

__all__ = [
    "Batch",
    "CheckpointError",
    "CostModel",
    "DataError",
    "Decisions",
    "ExecutionError",
    "ExitBudget",
    "ExitRule",
    "ExportError",
    "Recipe",
    "RecipeError",
    "RelationalRouter",
    "Report",
    "RoutedNetwork",
    "RoutedOutput",
    "Router",
    "SidestepError",
    "TrainingError",
    "attach_exits",
    "bench",
    "calibrate",
    "cascade",
    "curve",
    "evaluate",
    "export_run",
    "gathered",
    "load",
    "load_recipe",
    "masked",
    "measure_cost",
    "train",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sidestep' has no attribute {name!r}")
    return getattr(import_module(f"sidestep.{_HOMES[name]}"), name)
