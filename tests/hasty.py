"""Timings without patience: every way is run, and what it took means nothing."""

from __future__ import annotations

import pytest

from sidestep.evaluation import bench, price_fit


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Let timings take a round of few images without a pause, as long as `patch` holds."""
    patch.setattr(bench, "_PAUSE_SECONDS", 0.0)
    patch.setattr(bench, "_MIN_ROUNDS", 1)
    patch.setattr(bench, "_TURN_SECONDS", 1e-4)
    for module in (bench, price_fit):
        patch.setattr(module, "SINGLE_IMAGES", 8)
