"""Reports of runs: one page, or a folder of figures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidestep.data.shared_images import shared_images
from sidestep.errors import CheckpointError, DataError, OutputError, RecipeError, SidestepError
from sidestep.files import check_writable, made_folder, write_file
from sidestep.hub.places import run_folder_of
from sidestep.progress import through
from sidestep.reporting.contents import figures_of
from sidestep.reporting.explorer import explorer_data, slider_data
from sidestep.reporting.figure_folder import write_figures
from sidestep.reporting.image_choice import chosen_images, galleries
from sidestep.reporting.image_table import ImageTable, digest
from sidestep.reporting.page_file import LiveModel, page
from sidestep.reporting.shown import Figure, ShownRun
from sidestep.reporting.sprite import Sprite, make_sprite
from sidestep.results.page_data import runs_in
from sidestep.results.run_result import STUDY, RunResult, read_result
from sidestep.runs.image_tables import IMAGES, image_table
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.runs.shown_pictures import images_of
from sidestep.training.metrics import METRICS, read_metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenReport:
    """What a report has become.

    Attributes:
        files: that were written.
        notes: what could not be shown, a sentence each.
    """

    files: list[Path]
    notes: list[str]


def report(
    runs: Sequence[Path | str],
    out: Path,
    *,
    title: str | None = None,
    images: int = 2000,
    checkpoint: str = "best",
    source: str | None = None,
) -> WrittenReport:
    """Write what runs do with images as one HTML page, or as a folder of figures, and return the files.

    What a run cannot show is said in a sentence, and the rest is still made.

    Args:
        runs: run folders, packages, or folders of sweeps.
        out: a file that ends in .html, or a folder for SVG, PNG, PDF and CSV of every figure.
        title: of the page; by default the names of the runs.
        images: most images that can be looked at one by one.
        checkpoint: "best" or "last".
        source: where the data lie now, if not where the recipes say.

    Raises:
        SidestepError: when no run has anything to show, `source` cannot be read, or nothing can be written.
    """
    as_page = out.suffix.lower() in (".html", ".htm")
    if not as_page and out.is_file():
        raise OutputError(f"out must be a folder or end in .html, got the file {out}; choose another place")
    with made_folder(out.parent if as_page else out, what="folder of the report"):
        if as_page:
            check_writable(out.parent, what="folder of the report")
        found = gather(runs, images=images, checkpoint=checkpoint, source=source)
        if not as_page:
            written = write_figures(out, found.figures(), found.sprite)
            return WrittenReport(files=written, notes=found.notes)
        write_file(out, page_of(found, title), what="report")
    return WrittenReport(files=[out], notes=found.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a report is made from.

    Attributes:
        shown: all that can be shown of runs.
        alike: those of them that saw the images of the first one that has any.
        sprite: small pictures of chosen images, or None where none can be read.
        opened: runs by their names in the report, where they could be opened.
        notes: what could not be shown, a sentence each.
    """

    shown: list[ShownRun]
    alike: list[ShownRun]
    sprite: Sprite | None
    opened: dict[str, OpenedRun]
    notes: list[str]

    def figures(self) -> list[Figure]:
        """Return the figures of the report."""
        return figures_of(self.shown, pictured=[] if self.sprite is None else self.alike)


@shared_images()
def gather(
    runs: Sequence[Path | str],
    *,
    images: int,
    checkpoint: str = "best",
    source: str | None = None,
    originals: bool = False,
) -> Gathered:
    """Return what a report shows of runs; what a run does with every image is computed where it is not kept.

    Args:
        runs: run folders, packages, or folders of sweeps.
        images: most images that can be looked at one by one.
        checkpoint: "best" or "last".
        source: where the data lie now, if not where the recipes say.
        originals: whether the chosen images are also kept in the size in which networks see them.

    Raises:
        SidestepError: when no run has anything to show, or `source` cannot be read.
    """
    check_images(images)
    found = _Found(notes=[], opened={})
    shown = _shown(runs, checkpoint, source, found)
    alike = _of_the_same_images(shown, found.notes)
    sprite = _sprite(alike, found, images, source, originals)
    return Gathered(shown=shown, alike=alike, sprite=sprite, opened=found.opened, notes=found.notes)


def check_images(images: int) -> None:
    """Refuse a number of images that is none.

    Raises:
        RecipeError: for less than 1.
    """
    if images < 1:
        raise RecipeError(f"images must be at least 1, got {images}; 2000 are a page of some megabytes")


def page_of(
    found: Gathered,
    title: str | None,
    *,
    live: Sequence[LiveModel] | None = None,
    explorer: dict[str, Any] | None = None,
) -> str:
    """Return the page of a report.

    Args:
        found: what is shown.
        title: of the page; by default the names of the runs.
        live: the networks that the page's server answers for; None is a page that opens from disk.
        explorer: data of images, if not those of the runs.
    """
    return page(
        title or ", ".join(run.name for run in found.shown),
        found.figures(),
        notes=found.notes,
        explorer=explorer_data(found.alike, found.sprite) if explorer is None else explorer,
        sliders=[slider for run in found.shown if (slider := slider_data(run)) is not None],
        live=live,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is noted on the way: sentences, and opened runs by their names in the report."""

    notes: list[str]
    opened: dict[str, OpenedRun]


def _shown(runs: Sequence[Path | str], checkpoint: str, source: str | None, found: _Found) -> list[ShownRun]:
    """Return what there is of every run; of one that has nothing a sentence is left."""
    shown: list[ShownRun] = []
    folders, first_error = _folders(runs, found.notes)
    for number, folder in enumerate(through(folders, "runs", len(folders)), start=1):
        _log.info("run %d of %d: %s", number, len(folders), folder)
        try:
            known = _of_run(folder, _name(folder, shown), checkpoint, source, found)
        except SidestepError as error:
            first_error = first_error or error
            found.notes.append(f"{error}")
        else:
            shown.append(known)
    if not shown:
        named = ", ".join(map(str, runs))
        raise first_error or CheckpointError(f"runs must be folders of runs or of sweeps, got {named}")
    return shown


def _folders(runs: Sequence[Path | str], notes: list[str]) -> tuple[list[Path], SidestepError | None]:
    """Return the run folders that are meant, those in folders of sweeps among them, and the first error."""
    folders: list[Path] = []
    first_error: SidestepError | None = None
    for run in runs:
        try:
            folder = run_folder_of(run)
            finished = runs_in(folder)
            folders += finished
            if unfinished := _unfinished(folder, finished):
                notes.append(
                    f"{unfinished} of the runs of sweep {run} must be trained to their end to be shown; the "
                    "command that started it goes on with it"
                )
        except SidestepError as error:
            first_error = first_error or error
            notes.append(f"{error}")
    return folders, first_error


def _unfinished(sweep: Path, finished: Sequence[Path]) -> int:
    """Return how many runs of a sweep have begun and not ended; 0 of what is no sweep."""
    if not (sweep / STUDY).is_file():
        return 0
    return len({path.parent for path in sweep.glob(f"*/{METRICS}")} - set(finished))


def _name(folder: Path, shown: Sequence[ShownRun]) -> str:
    taken, name, number = {run.name for run in shown}, folder.resolve().name, 1
    while (unique := name if number == 1 else f"{name} ({number})") in taken:
        number += 1
    return unique


def _of_run(folder: Path, name: str, checkpoint: str, source: str | None, found: _Found) -> ShownRun:
    """Return what there is of a run: what it says of itself, and what it does with images."""
    result, finished = _result(folder)
    try:
        opened = open_run(folder, checkpoint)
    except SidestepError as error:
        if result is None:
            raise finished or error from error
        found.notes.append(f"{error}")
        return ShownRun(name=name, result=result, epochs=read_metrics(folder / METRICS))
    if finished is not None:
        found.notes.append(f"{finished}")
    found.opened[name] = opened
    return ShownRun(
        name=name,
        result=result,
        table=_table(opened, name, source, found.notes),
        epochs=read_metrics(folder / METRICS),
        checkpoint=digest(opened.path),
    )


def _result(folder: Path) -> tuple[RunResult | None, SidestepError | None]:
    try:
        return read_result(folder), None
    except CheckpointError as error:
        return None, error


def _table(opened: OpenedRun, name: str, source: str | None, notes: list[str]) -> ImageTable | None:
    try:
        return image_table(opened, source)
    except SidestepError as error:
        # Who names data wants to see them.
        if source is not None:
            raise
        notes.append(f"images of run {name} are not shown: {error}")
        return None


def _of_the_same_images(shown: Sequence[ShownRun], notes: list[str]) -> list[ShownRun]:
    """Return the runs that saw the images of the first one that has any, and note the others."""
    with_tables = [run for run in shown if run.table is not None]
    alike = []
    for run in with_tables:
        first, own = with_tables[0].table, run.table
        assert first is not None and own is not None
        others = None not in (own.content, first.content) and own.content != first.content
        same_classes = own.class_names == first.class_names and np.array_equal(own.labels, first.labels)
        if same_classes and not others:
            alike.append(run)
        else:
            notes.append(
                f"run {run.name} must have the images of {with_tables[0].name} to be shown beside it image "
                "by image, and has others; make a report of its own"
            )
    return alike


def _sprite(
    alike: Sequence[ShownRun], found: _Found, most: int, source: str | None, originals: bool
) -> Sprite | None:
    """Return small pictures of the images that are shown, or None where none can be read."""
    tables = [run.table for run in alike if run.table is not None]
    if not tables:
        return None
    chosen = chosen_images(tables, [gallery for run in alike for gallery in galleries(run)], most)
    opened = found.opened[alike[0].name]
    try:
        _log.info("making small pictures of %d images", len(chosen))
        pictures = images_of(opened, source)
        if not np.array_equal(pictures.labels.numpy(), tables[0].labels):
            raise DataError(
                f"the test split must be as when {opened.folder / IMAGES} was made, and has other labels; "
                "restore the images, or remove that file"
            )
        return make_sprite(pictures.pixels(chosen), chosen, originals=originals)
    except DataError as error:
        found.notes.append(f"images are not shown: {error}")
        return None
