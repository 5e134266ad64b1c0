"""Commands about what there is and what came out: methods, results, report, ledger."""

from __future__ import annotations

import sys
from pathlib import Path

from sidestep.cli.groups import Trained
from sidestep.cli.tables import methods_table, show
from sidestep.errors import UsageError


def methods(*, json: bool = False) -> None:
    """List the methods that recipes can name.

    Args:
        json: print one JSON object and nothing else.
    """
    from sidestep.methods import METHODS

    show({name: method.summary for name, method in METHODS.items()}, methods_table(METHODS), json)


def results(
    runs: list[Path], *, title: str | None = None, out: Path | None = None, published: str | None = None
) -> None:
    """Write a results page from finished runs.

    Args:
        runs: run folders, folders of sweeps, and files (.json) that --out has written.
        title: heading of the page (default: the first file's).
        out: markdown file; figure (.png) and data to make it again (.json) go beside it (default: the page
            on standard output).
        published: draw the papers' points too: cifar10, cifar100 or imagenet.
    """
    from sidestep.results.page import results_page, save_results

    if out is not None:
        written = save_results(out, runs, title=title, published=published)
        print(f"wrote {', '.join(map(str, written))}")
    elif published is None:
        print(results_page(title, runs), end="")
    else:
        raise UsageError(
            f"published has no effect without out, got {published!r}; say with --out where page and figure go"
        )


def report(
    runs: list[Path],
    *,
    out: Path = Path("report.html"),
    title: str | None = None,
    images: int = 2000,
    trained: Trained,
) -> None:
    """Show what runs do with images, as one page that opens anywhere or as figures for papers.

    Args:
        runs: run folders, packages, and folders of sweeps.
        out: page (.html), or a folder for SVG, PNG, PDF and CSV of every figure.
        title: of the page (default: the runs' names).
        images: most images that can be looked at one by one.
        trained: which weights, on which data.
    """
    from sidestep.runs.make_report import report as make

    written = make(
        runs, out, title=title, images=images, checkpoint=trained.checkpoint, source=trained.source
    )
    for note in written.notes:
        print(f"not shown: {note}", file=sys.stderr)
    files = written.files
    print(f"wrote {files[0]}" if len(files) == 1 else f"wrote {len(files)} files into {out}")


def ledger(runs: list[Path], *, dataset: str | None = None, out: Path | None = None) -> None:
    """Compare finished runs with what was published.

    Args:
        runs: run folders, and files (.json) of results pages.
        dataset: cifar10, cifar100 or imagenet (default: all).
        out: markdown file (default: standard output).
    """
    from sidestep.files import write_file
    from sidestep.results.ledger import ledger as compare
    from sidestep.results.ledger import ledger_page
    from sidestep.results.published import published_points

    page = ledger_page(compare(published_points(dataset), runs))
    if out is None:
        print(page, end="")
    else:
        write_file(out, page, what="ledger")
        print(f"wrote {out}")
