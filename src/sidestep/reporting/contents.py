"""What a report holds, in its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from altair.utils.schemapi import debug_mode

from sidestep.reporting.class_figures import confusion
from sidestep.reporting.cost_figures import accuracy_cost, cost_book
from sidestep.reporting.exit_figures import budgets, exit_histogram, reliability
from sidestep.reporting.image_choice import galleries, gallery_figure
from sidestep.reporting.path_figures import common_paths, distances, information, keep_map, keep_rates
from sidestep.reporting.provenance import provenance
from sidestep.reporting.shown import Figure, ShownRun
from sidestep.reporting.training_figures import keep_rates_over_time, sweeps, training_curves


def figures_of(runs: Sequence[ShownRun], *, pictured: Sequence[ShownRun]) -> list[Figure]:
    """Return the figures of a report, each where its data are there.

    Args:
        runs: in the order of legends.
        pictured: those of them of which images can be shown.
    """
    # Every chart is checked as a whole when it is written, and not each of its parts before.
    with debug_mode(False):
        return _figures(runs, pictured)


def _figures(runs: Sequence[ShownRun], pictured: Sequence[ShownRun]) -> list[Figure]:
    def each(*makers: Callable[[ShownRun], list[Figure]]) -> list[Figure]:
        return [figure for make in makers for run in runs for figure in make(run)]

    shown = [figure for run in pictured for figure in gallery_figure(run, galleries(run))]
    return [
        *accuracy_cost(runs),
        *keep_rates(runs),
        *each(keep_map),
        *information(runs),
        *each(common_paths, distances),
        *shown,
        *each(exit_histogram, reliability, budgets),
        *training_curves(runs),
        *each(keep_rates_over_time),
        *sweeps(runs),
        *each(cost_book, confusion),
        *provenance(runs),
    ]
