"""What a results page is made from: run folders, or the compact file that is kept beside a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidestep.errors import CheckpointError, one_line
from sidestep.files import read_json, write_file
from sidestep.hub.places import run_folder_of
from sidestep.results.kept_curve import KeptCurve, budget_curve_from
from sidestep.results.run_result import REPORT, STUDY, RunResult, Timing, read_result

_TITLE = "Results"
_HEAD = ("title", "figure", "published")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageData:
    """What a results page is made from.

    Attributes:
        title: heading of the page.
        figure: name of the picture beside it, or None.
        published: data set whose published points the picture shows, or None.
        results: of its runs, in the order of the rows.
    """

    title: str
    figure: str | None
    published: str | None
    results: list[RunResult]

    def save(self, path: Path) -> None:
        """Write a compact file: JSON with one field of a run per line, which `page_data` reads back."""
        head = [f' "{key}": {json.dumps(getattr(self, key))},' for key in _HEAD]
        runs = ",\n".join(_written(result) for result in self.results)
        write_file(path, "\n".join(["{", *head, f' "runs": [\n{runs}\n ]', "}"]) + "\n", what="results")


def page_data(sources: Sequence[Path], *, title: str | None = None, published: str | None = None) -> PageData:
    """Return what a page shows of its sources; a run that several of them hold is there once.

    Args:
        sources: finished run folders or packages, folders of sweeps, and compact files (`.json`).
        title: heading of the page; by default that of the first compact file, or "Results".
        published: data set of the picture's published points; by default that of the first compact file.

    Raises:
        CheckpointError: when a run has not been trained to its end, or a file is not what `save` has written.
    """
    results: list[RunResult] = []
    figure = None
    for path in sources:
        if path.suffix == ".json":
            part = _read(path)
            title, published, figure = title or part.title, published or part.published, figure or part.figure
            found = part.results
        else:
            found = [read_result(folder) for folder in runs_in(run_folder_of(path))]
        results += [result for result in found if result not in results]
    return PageData(title=title or _TITLE, figure=figure, published=published, results=results)


def read_results(sources: Sequence[Path]) -> list[RunResult]:
    """Return the results of finished run folders and of compact files, each run once."""
    return page_data(sources).results


def runs_in(path: Path) -> list[Path]:
    """Return the finished runs of a sweep's folder; a run folder itself; nothing for a sweep's record.

    `results sweep/*` names that record too.
    """
    if path.name.startswith(STUDY) and path.is_file():
        return []
    if not (path / STUDY).is_file():
        return [path]
    runs = sorted(folder for folder in path.iterdir() if (folder / REPORT).is_file())
    if not runs:
        raise CheckpointError(
            f"sweep {path} must hold a run that is trained to its end, and has none; the command that "
            "started it goes on with it"
        )
    return runs


def _written(result: RunResult) -> str:
    values = asdict(result) | {"exits": result.exits and result.exits.as_dict()}
    fields = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return f"  {{\n{fields}\n  }}"


def _read(path: Path) -> PageData:
    way_out = "give it run folders, or a file that `sidestep results --out` has written beside a page"
    values = read_json(path, what="results", way_out=way_out)
    try:
        return PageData(
            **{key: values[key] for key in _HEAD}, results=[_result(run) for run in values["runs"]]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"results {path} must be a file that `sidestep results --out` has written beside a page, got "
            f"something else ({one_line(error)}); give it run folders"
        ) from error


def _result(values: dict[str, Any]) -> RunResult:
    return RunResult(
        **values
        | {
            "validation": [(accuracy, fraction) for accuracy, fraction in values["validation"]],
            "timings": [Timing(**row) for row in values["timings"]],
            "exits": values["exits"] and KeptCurve.from_dict(values["exits"]),
            # Pages that were written before there were such networks say nothing of them.
            "budgets": values.get("budgets") and budget_curve_from(values["budgets"]),
        }
    )
