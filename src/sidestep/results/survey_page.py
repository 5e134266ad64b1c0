"""The page of a survey of units: what each is worth, how they can go, and settings to begin with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidestep.evaluation.environment import describe_environment, in_words
from sidestep.evaluation.unit_survey import SurveyOf, Tried, UnitSurvey
from sidestep.files import write_file
from sidestep.results.figure_style import PALETTE, in_style
from sidestep.results.figures import save_figure
from sidestep.results.markdown import check_page, table
from sidestep.routing.share import allocated

# Fractions of the MACs for which settings are given.
_BUDGETS = (0.8, 0.6, 0.4)
_LEAST_SHARE = 0.1
_MOST_PAIRS = 12


def save_survey(out: Path, found: SurveyOf) -> list[Path]:
    """Write the page, its figure (`.png`) and all numbers (`.json`), and return what was written.

    Args:
        out: the page, a `.md` file.
        found: the survey.

    Raises:
        RecipeError: for a page that is no `.md` file.
        OutputError: when a file cannot be written.
    """
    check_page(out)
    figure, data = out.with_suffix(".png"), out.with_suffix(".json")
    environment = describe_environment()
    save_figure(figure, survey_figure(found.survey))
    write_file(data, json.dumps({**asdict(found), "environment": environment}) + "\n", what="survey")
    told = f"On {in_words(environment['hardware'])}, commit {environment['commit']}."
    page = f"{survey_page(found)}\n{told}\n\n![Accuracy over cost]({figure.name})\n"
    write_file(out, page, what="page")
    return [out, figure, data]


def survey_page(found: SurveyOf) -> str:
    """Return the page in markdown."""
    survey, oracle = found.survey, found.survey.oracle
    lines = [
        f"# What the blocks of {found.text} are worth",
        "",
        f"{survey.num_images:,} images of the {found.split} split of {found.source}. Nothing was trained: a "
        "block that is left out does what a skipped one does. All blocks: "
        f"{_percent(survey.whole)} %; ± is the standard error of the difference to that, over the same "
        "images.",
        "",
        "## Without one block",
        "",
        *table(_heads(found), _rows(found)),
        "",
        "## One block less after the other",
        "",
        "Next goes the block that raises the loss least for the MACs that it saves.",
        "",
        *table(["blocks", "of the MACs", "accuracy %", "loss", "path"], map(_step, survey.greedy)),
        "",
        "## Choosing per image",
        "",
        f"The cheapest of {oracle.num_paths:,} tried paths that is right: {100 * oracle.accuracy:.2f} % at "
        f"{oracle.fraction:.1%} of the MACs. No gate reaches that, for with many paths an image is right on "
        "one by chance.",
        "",
        "## To begin with",
        "",
        *_settings(survey),
    ]
    if survey.pairs:
        lines += ["", "## Pairs that need each other", "", *_pairs(survey)]
    return "\n".join(lines) + "\n"


def _heads(found: SurveyOf) -> list[str]:
    timed = [] if found.ms is None else [f"ms ({found.timed})"]
    return ["block", "of the MACs", *timed, "accuracy without %", "loss rises by"]


def _rows(found: SurveyOf) -> list[list[str]]:
    survey = found.survey
    return [
        [
            f"`{survey.names[unit]}`",
            f"{1 - tried.fraction:.1%}",
            *([] if found.ms is None else [f"{found.ms[unit]:.4f}"]),
            _percent(tried),
            f"{tried.loss - survey.whole.loss:+.4f}",
        ]
        for unit, tried in enumerate(survey.without)
    ]


def _percent(tried: Tried) -> str:
    error = "" if all(tried.path) else f" ± {100 * tried.error:.2f}"
    return f"{100 * tried.accuracy:.2f}{error}"


def _step(tried: Tried) -> list[str]:
    return [
        str(tried.path.count(True)),
        f"{tried.fraction:.1%}",
        _percent(tried),
        f"{tried.loss:.3f}",
        f"`{tried.text}`",
    ]


def _settings(survey: UnitSurvey) -> list[str]:
    lines = []
    for budget in _BUDGETS:
        tried = survey.cheapest(budget)
        if tried is not None:
            lines.append(f"- at most {budget:.0%} of the MACs, `fixed_path`: `--method.path={tried.text}`")
        shares = allocated(survey.worth(), budget, _LEAST_SHARE)
        listed = ", ".join(f"{min(float(share), 0.99):.2f}" for share in shares)
        lines.append(
            f"- {budget:.0%} of the blocks by worth, shares (`gate_mode: share`): "
            f"`--method.share.shares=[{listed}]`, or rates that gates begin with: "
            f"`--method.router.initial_rates=[{listed}]`"
        )
    return lines


def _pairs(survey: UnitSurvey) -> list[str]:
    """Return the pairs whose loss is furthest from the sum of both alone."""
    alone = [tried.loss - survey.whole.loss for tried in survey.without]

    def more(tried: Tried) -> float:
        gone = [unit for unit, runs in enumerate(tried.path) if not runs]
        return tried.loss - survey.whole.loss - sum(alone[unit] for unit in gone)

    def row(tried: Tried) -> list[str]:
        gone = [f"`{survey.names[unit]}`" for unit, runs in enumerate(tried.path) if not runs]
        return [
            " and ".join(gone),
            _percent(tried),
            f"{tried.loss - survey.whole.loss:+.3f}",
            f"{more(tried):+.3f}",
        ]

    shown = sorted(survey.pairs, key=more, reverse=True)[:_MOST_PAIRS]
    heads = ["without", "accuracy %", "loss rises by", "beyond both alone"]
    return table(heads, map(row, shown))


def survey_figure(survey: UnitSurvey) -> Figure:
    """Return a figure: what every unit is worth and costs, and accuracy over cost as they go."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    _bars(in_style(top), survey)
    in_style(bottom, xlabel="MACs over those of the whole network", ylabel="top-1 accuracy, %")
    everything = [survey.whole, *survey.greedy]
    bottom.plot(*_places(everything), color=PALETTE[0], marker="o", ms=4, label="one block less each time")
    bottom.scatter(*_places(survey.without), color=PALETTE[4], marker="^", s=18, label="without one block")
    if survey.pairs:
        bottom.scatter(*_places(survey.pairs), color="#999999", s=6, zorder=0, label="without two")
    oracle = survey.oracle
    bottom.scatter(
        [oracle.fraction],
        [100 * oracle.accuracy],
        color="black",
        marker="*",
        s=80,
        label="each image's best path",
    )
    bottom.legend(fontsize=8)
    return figure


def _bars(axes: Axes, survey: UnitSurvey) -> None:
    units = range(len(survey.without))
    lost = [100 * (survey.whole.accuracy - tried.accuracy) for tried in survey.without]
    errors = [100 * tried.error for tried in survey.without]
    axes.bar(units, lost, yerr=errors, color=PALETTE[0], label="points lost without it")
    axes.set(ylabel="points", xticks=list(units))
    axes.set_xticklabels([name.replace("$", r"\$") for name in survey.names], rotation=90, fontsize=7)
    other = axes.twinx()
    saved = [100 * (1 - tried.fraction) for tried in survey.without]
    other.plot(units, saved, color=PALETTE[4], marker="_", linestyle="", ms=12, mew=2, label="MACs saved, %")
    other.set(ylabel="% of the MACs", ylim=(0, 1.3 * max(saved)))
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=8)


def _places(tried: Sequence[Tried]) -> tuple[list[float], list[float]]:
    return [each.fraction for each in tried], [100 * each.accuracy for each in tried]
