"""A network with exits that nobody calibrated: in the engine, too, all images stay to the last exit."""

from __future__ import annotations

from pathlib import Path

import pytest

import sidestep
from tests.serve.served import needs_engine


@needs_engine
def test_the_engine_reports_the_last_exit(run: Path) -> None:
    masked, engine = (
        sidestep.evaluate(run, execution=execution, precision=precision)
        for execution, precision in (("masked", None), ("engine", "float32"))
    )
    assert engine.as_dict()["exit_rates"] == masked.as_dict()["exit_rates"] == [0, 0, 1]
    assert engine.as_dict()["fraction_of_full"] == pytest.approx(masked.as_dict()["fraction_of_full"])
