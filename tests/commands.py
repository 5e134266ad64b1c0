"""Commands as a user types them, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidestep.cli.main import main


def report(run: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return what `evaluate --json` says of a run."""
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", *options]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refusal(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the sentence with which a command is refused."""
    capsys.readouterr()
    assert main(list(command)) == 2
    return " ".join(capsys.readouterr().err.split())
