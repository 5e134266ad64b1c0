"""The house: rooms as CONTRIBUTING lists them, one name once, sizes, private parts of other libraries."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "src" / "sidestep"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_RESULTS = 400, 60, 60

# A module, class or function that begins with an underscore, of another library.
PRIVATE = re.compile(
    r"^\s*(?:from|import) (?:torch|timm|lightning_fabric)\S*(?:\._| import _)|\btorch\._(?!_)\w+"
)


def rooms() -> dict[str, str]:
    """Return what every room, or module at the top, says of itself in its first line."""
    homes = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    homes = [path for path in homes if path.name not in ("__init__.py", "__main__.py")]
    said = {}
    for path in homes:
        source = (path / "__init__.py" if path.is_dir() else path).read_text()
        said[f"{path.name}/" if path.is_dir() else path.name] = ast.get_docstring(ast.parse(source)) or ""
    return {name: text.partition("\n")[0] for name, text in said.items()}


def test_contributing_lists_the_rooms_as_they_are() -> None:
    rows = re.findall(r"^\| `([\w./]+)` \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert dict(rows) == rooms()


def test_a_file_name_occurs_once() -> None:
    counts = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MOST_LINES
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    long = {node.name: _lines(node) for node in functions if _lines(node) > MOST_LINES_OF_A_FUNCTION}
    assert long == {}


def _lines(function: ast.FunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    documented = isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant)
    last, first = function.end_lineno or 0, function.body[int(documented and len(function.body) > 1)].lineno
    return last - first + 1


def test_private_parts_of_other_libraries_are_used_in_two_files_at_most() -> None:
    users = [path for path in MODULES if any(PRIVATE.search(line) for line in path.read_text().splitlines())]
    assert len(users) <= 2 and PACKAGE / "internals.py" in users


def test_results_keep_the_newest_of_a_kind_alone() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "benchmarks/results"], cwd=ROOT, capture_output=True, text=True
    )
    files = [Path(line) for line in listed.stdout.splitlines()]
    assert len(files) < MOST_RESULTS
    pages = Counter(path.parent for path in files if path.suffix == ".md" and path.name != "README.md")
    assert [str(folder) for folder, count in pages.items() if count > 1] == []
