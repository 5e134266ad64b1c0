"""Modules of users that register methods, models, sources, criteria or targets of their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from sidestep.errors import UsageError, one_line

# Packages that are installed name their modules here, in an entry point each.
GROUP = "sidestep.plugins"

_imported: dict[str, None] = {}


def import_plugins(names: Iterable[str]) -> None:
    """Import modules by name or by file, each once; what they register can be named from then on.

    Args:
        names: "package.module", or the path of a ".py" file. Both may lie in the working directory.

    Raises:
        UsageError: when a module is not there, or fails.
    """
    for name in names:
        _import(name, name)
        _imported[name] = None


def import_installed_plugins() -> None:
    """Import what installed packages name as their plugins.

    Raises:
        UsageError: when one of them fails.
    """
    for point in entry_points(group=GROUP):
        _import(point.module, f"{point.name} of the entry points {GROUP}")


def imported_plugins() -> tuple[str, ...]:
    """Return the names that `import_plugins` was given, for other processes of the same work."""
    return tuple(_imported)


def _import(name: str, what: str) -> None:
    path = Path(name)
    by_file = path.suffix == ".py"
    folder = str((path.parent if by_file else Path()).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.import_module(path.stem if by_file else name)
    except Exception as error:
        problem = f"{type(error).__name__}: {one_line(error)}"
        if isinstance(error, ModuleNotFoundError) and error.name in (name, path.stem):
            problem = "there is none"
        raise UsageError(
            f"--import must name a module that can be imported, got {what}, and {problem}; give its name or "
            "its .py file"
        ) from error
