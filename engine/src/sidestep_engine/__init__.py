"""Runs dynamic inference networks on CPUs so that skipped blocks take no time."""

from sidestep_engine._engine import NEWEST_VERSION, PlanError
from sidestep_engine.engine import Engine, Output
from sidestep_engine.plan import Plan, parse_plan, read_plan
from sidestep_engine.processors import available_processors

__all__ = [
    "NEWEST_VERSION",
    "Engine",
    "Output",
    "Plan",
    "PlanError",
    "available_processors",
    "parse_plan",
    "read_plan",
]
__version__ = "0.1.0"
