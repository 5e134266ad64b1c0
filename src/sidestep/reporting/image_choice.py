"""Which images a report shows: those of the cheapest, dearest and commonest paths, and others by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sidestep.reporting.image_table import ImageTable
from sidestep.reporting.path_figures import path_names
from sidestep.reporting.shown import Figure, Gallery, ShownRun

_ENDS, _OF_PATHS, _PATHS = 12, 6, 8


def galleries(run: ShownRun) -> list[Gallery]:
    """Return the images of a run with the cheapest and the dearest paths, and typical ones of common paths.

    Of equal cost the most confident come first; typical is an image of the commonest class of its path, of
    which the network is the most certain.
    """
    table = run.table
    if table is None or not table.path_rows().shape[1]:
        return []
    rising = np.lexsort((-table.confidences, table.macs))
    falling = np.lexsort((-table.confidences, -table.macs))
    names = np.array(path_names(table))
    # Where all cost the same none is cheap or dear.
    found = (
        []
        if np.ptp(table.macs) == 0
        else [
            Gallery(title=f"Cheapest paths of {run.name}", ids=rising[:_ENDS].tolist()),
            Gallery(title=f"Dearest paths of {run.name}", ids=falling[:_ENDS].tolist()),
        ]
    )
    for path, count in Counter(names.tolist()).most_common(_PATHS):
        own = np.flatnonzero(names == path)
        label = int(np.bincount(table.labels[own]).argmax())
        typical = own[np.lexsort((-table.confidences[own], table.labels[own] != label))][:_OF_PATHS]
        title = f"Typical of path {path} ({count:,} images, most often {table.class_names[label]})"
        found.append(Gallery(title=title, ids=typical.tolist()))
    return found


def gallery_figure(run: ShownRun, own: Sequence[Gallery]) -> list[Figure]:
    """Return the images of a run's galleries as a figure without a chart; the page shows the pictures."""
    table = run.table
    if table is None or not own:
        return []
    names, classes = path_names(table), table.class_names
    rows = [
        [gallery.title, image, classes[table.labels[image]], classes[table.predictions[image]],
         names[image], 1e-6 * float(table.macs[image])]
        for gallery in own for image in gallery.ids
    ]  # fmt: skip
    return [
        Figure(
            key=f"images-{run.name}",
            section="Images",
            title=f"Images of the cheapest, dearest and commonest paths, {run.name}",
            reading=_reading(run.name, table),
            columns=["which", "image", "class", "answer", "path", "M MACs"],
            rows=rows,
            galleries=tuple(own),
            paper="figure 8",
        )
    ]


def chosen_images(tables: Sequence[ImageTable], shown: Sequence[Gallery], most: int) -> list[int]:
    """Return the numbers of the images that a page holds, rising.

    Those of galleries; of the others every second one is wrong in one of the tables, while there are such.

    Args:
        tables: of the same images.
        shown: galleries of all of them.
        most: how many, those of galleries included.
    """
    taken = list(dict.fromkeys(image for gallery in shown for image in gallery.ids))
    order = np.random.default_rng(0).permutation(len(tables[0].labels))
    wrong = np.any([~table.correct for table in tables], axis=0)
    missed, others = order[wrong[order]].tolist(), order[~wrong[order]].tolist()
    half = max(0, most - len(taken)) // 2
    mixed = [*missed[:half], *others, *missed[half:]]
    return sorted(list(dict.fromkeys([*taken, *mixed]))[: max(most, len(taken))])


def _reading(name: str, table: ImageTable) -> str:
    if np.ptp(table.macs) == 0:
        return f"All images cost {name} the same, {1e-6 * table.macs[0]:.4g} M MACs."
    low, high = np.quantile(table.macs, (0.1, 0.9))
    cheap, dear = table.correct[table.macs <= low], table.correct[table.macs >= high]
    word = "more" if cheap.mean() > dear.mean() else "not more"
    return (
        f"Images of cheap paths are {word} often right in {name}: {cheap.mean():.1%} of the cheapest tenth "
        f"(up to {1e-6 * low:.4g} M MACs) against {dear.mean():.1%} of the dearest (from {1e-6 * high:.4g})."
    )
