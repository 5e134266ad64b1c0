"""The metrics of a run, one row of JSON per epoch, read back without trust."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
_log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; none where there is no file.

    A row that a kill, a full disk or a power cut has torn is left out, and the log says which.

    Args:
        path: of `metrics.jsonl`.
    """
    rows = []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            _log.warning("line %d of %s is damaged and left out", number, path)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("train"), dict)
    return row if whole and isinstance(row.get("seconds"), int | float) else None
