"""Every method trains as it did when `curves.json` was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.make import CURVES, NAMES, NUM_STEPS, losses_of, recipe_of

GOLDEN: dict[str, list[float]] = json.loads(CURVES.read_text())


def test_every_variant_has_a_curve() -> None:
    assert set(GOLDEN) == set(NAMES)
    assert {len(curve) for curve in GOLDEN.values()} == {NUM_STEPS}


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_of_twenty_steps_are_those_of_before(name: str, tmp_path: Path) -> None:
    found, golden = losses_of(recipe_of(name), tmp_path / "run"), GOLDEN[name]
    largest = max(map(abs, golden))
    # Other processors add in another order, and what that changes grows from step to step.
    assert found[:10] == pytest.approx(golden[:10], rel=0, abs=1e-4 * largest)
    assert found == pytest.approx(golden, rel=0, abs=1e-3 * largest)
