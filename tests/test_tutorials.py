"""Tutorials that are programs: run in a short form, and shown as pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))


@pytest.mark.parametrize(
    "path",
    [
        # Its networks are the largest.
        pytest.param(
            path, marks=pytest.mark.exhaustive if path.stem == "cheaper_classifier" else pytest.mark.slow
        )
        for path in TUTORIALS
    ],
    ids=lambda path: path.stem,
)
def test_a_tutorial_runs_with_one_epoch(path: Path, tmp_path: Path) -> None:
    program, count = re.subn(r"^EPOCHS = \d+$", "EPOCHS = 1", path.read_text(), flags=re.MULTILINE)
    assert count == 1
    (tmp_path / path.name).write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", path.name],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_shown_as_a_page(path: Path) -> None:
    pytest.importorskip("jupytext")
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    page = __import__("reference_pages").tutorial_page(path)
    sys.path.pop(0)
    assert page.startswith("# ") and "```python\nfrom" in page and "%%" not in page
    index = (path.parent / "index.md").read_text()
    assert f"../made/tutorials/{path.stem}\n" in index
