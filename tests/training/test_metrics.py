"""Metrics read back: rows that were torn are left out, and said."""

import json
import logging
from pathlib import Path

import pytest

from sidestep.training.metrics import METRICS, read_metrics

ROW = {"step": 3, "train": {"loss": 1.0}, "seconds": 2.0}


def test_rows_come_back_and_torn_ones_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_metrics(tmp_path / METRICS) == []
    whole, later = json.dumps(ROW), json.dumps(ROW | {"step": 6})
    lines = [whole, whole[:-9], "", "[1, 2]", '{"step": "3"}', later]
    (tmp_path / METRICS).write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING, logger="sidestep"):
        rows = read_metrics(tmp_path / METRICS)
    assert [row["step"] for row in rows] == [3, 6]
    assert [message.split(" of ")[0] for message in caplog.messages] == ["line 2", "line 4", "line 5"]
