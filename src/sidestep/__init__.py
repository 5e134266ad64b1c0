"""Dynamic inference networks whose skipped FLOPs are skipped milliseconds.

>>> import sidestep
>>> sorted(sidestep.__all__)[:3]
['ArrayImages', 'Backbone', 'Batch']
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from sidestep.backbones.backbone import Backbone
    from sidestep.cost.macs import measure_cost
    from sidestep.data.sources import SOURCES, DataSource, register_source
    from sidestep.data.split import ArrayImages, Split
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
    from sidestep.files import write_file
    from sidestep.layers.unit import Unit
    from sidestep.losses.budget import cost_loss
    from sidestep.methods import METHODS, Method, register_method
    from sidestep.networks.attached_exits import attach_exits
    from sidestep.networks.models import MODELS, Model, register_model
    from sidestep.networks.routed import RoutedNetwork
    from sidestep.routing.exit_rule import CRITERIA, ExitCriterion, ExitRule, register_criterion
    from sidestep.routing.relational import RelationalRouter
    from sidestep.routing.router import Router
    from sidestep.routing.samplers import GumbelSoftmax
    from sidestep.runs.at_budget import ExitBudget
    from sidestep.runs.candidates import find_frontier
    from sidestep.runs.compose import make_cascade
    from sidestep.runs.evaluate import calibrate, curve, evaluate
    from sidestep.runs.export import export_run
    from sidestep.runs.loaded import load
    from sidestep.runs.make_report import report
    from sidestep.runs.push import push
    from sidestep.runs.recipe import Recipe, load_recipe
    from sidestep.runs.saved import save
    from sidestep.runs.timing import bench
    from sidestep.runs.train import train
    from sidestep.runs.wrap import wrap
    from sidestep.targets import TARGETS, Exportable, ExportTarget, register_target
    from sidestep.types import Batch, CostModel, Decisions, RoutedOutput

# Public names and their homes. They are imported on first use, so that `import sidestep` stays light.
_HOMES = {
    "ArrayImages": "data.split",
    "Backbone": "backbones.backbone",
    "Batch": "types",
    "CRITERIA": "routing.exit_rule",
    "CheckpointError": "errors",
    "CostModel": "types",
    "DataError": "errors",
    "DataSource": "data.sources",
    "Decisions": "types",
    "ExecutionError": "errors",
    "ExitBudget": "runs.at_budget",
    "ExitCriterion": "routing.exit_rule",
    "ExitRule": "routing.exit_rule",
    "ExportError": "errors",
    "ExportTarget": "targets",
    "Exportable": "targets",
    "GumbelSoftmax": "routing.samplers",
    "METHODS": "methods",
    "MODELS": "networks.models",
    "Method": "methods",
    "Model": "networks.models",
    "Recipe": "runs.recipe",
    "RecipeError": "errors",
    "RelationalRouter": "routing.relational",
    "Report": "evaluation.report",
    "RoutedNetwork": "networks.routed",
    "RoutedOutput": "types",
    "Router": "routing.router",
    "SOURCES": "data.sources",
    "SidestepError": "errors",
    "Split": "data.split",
    "TARGETS": "targets",
    "TrainingError": "errors",
    "Unit": "layers.unit",
    "attach_exits": "networks.attached_exits",
    "bench": "runs.timing",
    "calibrate": "runs.evaluate",
    "cascade": "execution.execution",
    "cost_loss": "losses.budget",
    "curve": "runs.evaluate",
    "evaluate": "runs.evaluate",
    "export_run": "runs.export",
    "find_frontier": "runs.candidates",
    "gathered": "execution.execution",
    "load": "runs.loaded",
    "load_recipe": "runs.recipe",
    "make_cascade": "runs.compose",
    "masked": "execution.execution",
    "measure_cost": "cost.macs",
    "push": "runs.push",
    "report": "runs.make_report",
    "register_criterion": "routing.exit_rule",
    "register_method": "methods",
    "register_model": "networks.models",
    "register_source": "data.sources",
    "register_target": "targets",
    "save": "runs.saved",
    "train": "runs.train",
    "wrap": "runs.wrap",
    "write_file": "files",
}

__all__ = [
    "CRITERIA",
    "METHODS",
    "MODELS",
    "SOURCES",
    "TARGETS",
    "ArrayImages",
    "Backbone",
    "Batch",
    "CheckpointError",
    "CostModel",
    "DataError",
    "DataSource",
    "Decisions",
    "ExecutionError",
    "ExitBudget",
    "ExitCriterion",
    "ExitRule",
    "ExportError",
    "ExportTarget",
    "Exportable",
    "GumbelSoftmax",
    "Method",
    "Model",
    "Recipe",
    "RecipeError",
    "RelationalRouter",
    "Report",
    "RoutedNetwork",
    "RoutedOutput",
    "Router",
    "SidestepError",
    "Split",
    "TrainingError",
    "Unit",
    "attach_exits",
    "bench",
    "calibrate",
    "cascade",
    "cost_loss",
    "curve",
    "evaluate",
    "export_run",
    "find_frontier",
    "gathered",
    "load",
    "load_recipe",
    "make_cascade",
    "masked",
    "measure_cost",
    "push",
    "register_criterion",
    "register_method",
    "register_model",
    "register_source",
    "register_target",
    "report",
    "save",
    "train",
    "wrap",
    "write_file",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("sidestep")
    if name not in _HOMES:
        raise AttributeError(f"module 'sidestep' has no attribute {name!r}")
    return getattr(import_module(f"sidestep.{_HOMES[name]}"), name)
