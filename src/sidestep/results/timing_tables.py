"""What `sidestep bench` found of the runs of a page."""

from __future__ import annotations

from collections.abc import Sequence

from sidestep.results.markdown import table
from sidestep.results.run_result import RunResult

_WHAT = """Medians; all runtimes of a run and precision took turns. A cell has one figure per batch size of
its row, in their order."""


def timing_sections(results: Sequence[RunResult]) -> list[str]:
    """Return the lines with the milliseconds of all runtimes, none if no run was timed.

    Args:
        results: of the page, in the order of its rows.
    """
    timings = [timing for result in results for timing in result.timings]
    if not timings:
        return []
    runtimes = list(dict.fromkeys(timing.runtime for timing in timings))
    rows = [
        [result.folder, *cells]
        for result in results
        for precision in dict.fromkeys(timing.precision for timing in result.timings)
        for cells in [_cells(result, precision, runtimes)]
    ]
    lines = table(["run", "precision", "batch", *runtimes], rows)
    return ["", "## Milliseconds an image", "", *_WHAT.splitlines(), "", *lines]


def _cells(result: RunResult, precision: str, runtimes: Sequence[str]) -> list[str]:
    found = {
        (timing.runtime, timing.batch_size): timing.ms_per_image
        for timing in result.timings
        if timing.precision == precision
    }
    sizes = sorted({size for _, size in found})
    cells = []
    for runtime in runtimes:
        figures = [f"{found[runtime, size]:.3f}" if (runtime, size) in found else "-" for size in sizes]
        cells.append("-" if set(figures) == {"-"} else " / ".join(figures))
    return [precision, " / ".join(map(str, sizes)), *cells]
