"""Commands about trained networks as they are: cascade, frontier, survey."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console

from sidestep.cli.groups import Exits
from sidestep.cli.options import Only, Overrides
from sidestep.cli.tables import calibration_table, frontier_table, report_table, show, survey_table, tell
from sidestep.errors import typed


def cascade(
    members: list[str],
    *,
    overrides: Overrides,
    out: Path = Path("runs/cascade"),
    exits: Annotated[
        Exits,
        Only(
            *("budget", "budget_gflops", "ms", "book", "max_drop", "risk", "confidence"),
            *("criterion", "no_temperatures"),
        ),
    ],
    calibration: Literal["val", "halves"] = "val",
    combine: Literal["log_probs", "probs", "last"] = "log_probs",
    json: bool = False,
) -> None:
    """Make a run of trained networks, where a dearer one is asked about images a cheaper one is unsure of.

    Nothing is trained. `evaluate`, `curve`, `calibrate`, `bench`, `results` and `export` take the run as any
    other.

    Args:
        members: run folders, packages, timm/NAME, or MODEL=WEIGHTS: cifar_resnet20=weights.safetensors.
        overrides: a key of data: --data.source where images lie, --data.mean and --data.std of weights that
            do not say theirs.
        out: run folder.
        exits: what an image may cost (default: all go to the last member).
        calibration: solve thresholds on the validation split, or on halves of the test split for each other.
        combine: an exit says the mean of (log-)probabilities of all members so far, or what its own says.
        json: print one JSON object and nothing else.
    """
    from sidestep.runs.compose import make_cascade
    from sidestep.runs.recipe import data_values

    exits.check_use()
    made = make_cascade(
        members,
        out,
        data=data_values(overrides),
        budget=exits.exit_budget() if exits.has_budget else None,
        book=exits.book,
        calibration=calibration,
        combine=combine,
    )
    if made.calibration is not None and not json:
        Console().print(calibration_table(made.calibration))
    show(made.report, report_table(made.report, f"{out}: {', then '.join(made.members)} (test split)"), json)
    name = typed(out)
    tell(f"wrote {out}; next: `sidestep curve {name}`, `sidestep calibrate {name} --budget 0.5`", json)


def frontier(
    candidates: list[str],
    *,
    overrides: Overrides,
    out: Path = Path("runs/frontier.md"),
    num_budgets: int = 40,
    no_triples: bool = False,
    runtime: Literal["engine", "pytorch", "onnxruntime", "openvino"] | None = None,
    batch_size: int = 1,
    precision: Literal["float32", "int8"] = "float32",
) -> None:
    """Find the cheapest of some networks, and of all cascades of them, for every accuracy.

    Candidates run once; what they say is kept beside the page, and another call runs new ones alone.

    Args:
        candidates: run folders, packages, timm/NAME, or MODEL=WEIGHTS: cifar_resnet20=some.safetensors.
        overrides: a key of data: --data.source where images lie, --data.mean and --data.std of weights that
            do not say theirs.
        out: markdown file; figure (.png) and points (.json) go beside it.
        num_budgets: of every pair.
        no_triples: try pairs alone.
        runtime: time every candidate in it, for the cheapest in milliseconds as well.
        batch_size: images per call when candidates are timed.
        precision: int8 scores every candidate on bytes, in the engine (docs/quantisation.md).
    """
    from sidestep.evaluation.frontier import front
    from sidestep.files import made_folder
    from sidestep.results.frontier_page import save_frontier
    from sidestep.results.markdown import check_page
    from sidestep.runs.candidates import find_frontier
    from sidestep.runs.latency import BookPrecision, Way
    from sidestep.runs.recipe import data_values

    data = data_values(overrides)
    check_page(out)
    timed: BookPrecision = "int8" if precision == "int8" else "auto"
    way = (
        None if runtime is None else Way(runtime=runtime, precision=timed, batch_size=batch_size, seconds=2.0)
    )
    with made_folder(out.parent, what="folder of the page"):
        found = find_frontier(
            candidates,
            data=data,
            scores=out.with_suffix(".scores"),
            num_budgets=num_budgets,
            triples=not no_triples,
            way=way,
            on_bytes=precision == "int8",
        )
    Console().print(frontier_table(front(found.points)))
    if runtime is not None:
        Console().print(frontier_table(front(found.points, "ms"), "ms"))
    for what, reasons in (("not run", found.failed), ("not timed", found.untimed)):
        for text, why in reasons.items():
            print(f"{what}: {text}: {why}")
    written = save_frontier(
        out,
        found.points,
        texts=found.texts,
        num_images=found.num_images,
        failed=found.failed,
        data=data,
        timed=None if runtime is None else f"{runtime}, {batch_size} images per call",
        precision=precision,
    )
    print(f"wrote {', '.join(map(str, written))}")


def survey(
    model: str,
    *,
    overrides: Overrides,
    out: Path = Path("runs/survey.md"),
    images: int = 1000,
    split: Literal["test", "val"] = "test",
    no_pairs: bool = False,
    paths: int = 0,
    runtime: Literal["engine", "pytorch", "onnxruntime", "openvino"] | None = None,
    batch_size: int = 1,
) -> None:
    """Measure what leaving each block out of a trained network costs and saves, without training.

    Blocks alone, pairs of them, and greedily until none is left; and what choosing per image could win. The
    page has settings with which recipes can begin.

    Args:
        model: run folder, package, MODEL=WEIGHTS such as cifar_resnet20=weights.safetensors, or timm/NAME.
        overrides: a key of data: --data.source where images lie, --data.mean and --data.std of weights that
            do not say theirs; a run has its own.
        out: markdown file; figure (.png) and figures as numbers (.json) go beside it.
        images: how many are run, evenly spread over the split.
        split: part of the data; weights that have learnt an image miss no block on it.
        no_pairs: try no pairs, which take most of the time.
        paths: random paths more for what choosing per image could win.
        runtime: time every block in it.
        batch_size: images per call when blocks are timed.
    """
    from sidestep.files import made_folder
    from sidestep.results.markdown import check_page
    from sidestep.results.survey_page import save_survey
    from sidestep.runs.latency import Way
    from sidestep.runs.recipe import data_values
    from sidestep.runs.survey import survey as survey_of

    data = data_values(overrides)
    check_page(out)
    with made_folder(out.parent, what="folder of the page"):
        found = survey_of(
            model,
            data=data,
            split=split,
            images=images,
            pairs=not no_pairs,
            random_paths=paths,
            way=None if runtime is None else Way(runtime=runtime, batch_size=batch_size, seconds=2.0),
        )
    Console().print(survey_table(found.survey, found.ms))
    print(f"wrote {', '.join(map(str, save_survey(out, found)))}")
