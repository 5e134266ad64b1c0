"""The card of a package: its README.md, with a table of results and the model index that the hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from sidestep.evaluation.environment import in_words
from sidestep.hub.package import OWN
from sidestep.methods import METHODS
from sidestep.results.markdown import table

_COUNTED = "Costs are 2 x MACs of convolutions and matrix products, routers included."


def model_card(config: Mapping[str, Any], place: str) -> str:
    """Return the text of a card.

    Args:
        config: content of the package's `config.json`.
        place: where the package is to be had, as commands name it.
    """
    own = config[OWN]
    recipe, report = own["recipe"], own["results"].get("report")
    name = place.rpartition("/")[2].rpartition(":")[2].partition("@")[0]
    lines = [
        *_header(config, name),
        f"# {name}",
        "",
        f"{_method(recipe)}. Network: {recipe['model']['name']}, {len(config['label_names'])} classes.",
        *_results(report, own),
        *_timings(own["results"].get("timings")),
        *_use(place),
        *_training(own),
    ]
    return "\n".join(lines) + "\n"


def _header(config: Mapping[str, Any], name: str) -> list[str]:
    own = config[OWN]
    kind, title, known = dataset_of(own["recipe"])
    report = own["results"].get("report")
    found = [] if report is None else [("accuracy", "Accuracy", report["accuracy"])]
    found += [] if report is None else [("gflops", "GFLOPs per image (2 x MACs)", report["gflops"])]
    data = ModelCardData(
        library_name="sidestep",
        pipeline_tag="image-classification",
        tags=["sidestep", "dynamic-inference", own["recipe"]["method"]["name"]],
        datasets=[kind] if known else None,
        metrics=["accuracy"] if found else None,
        model_name=name if found else None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=kind,
                dataset_name=title,
                dataset_split="test",
                metric_type=metric,
                metric_name=words,
                metric_value=round(float(value), 6),
            )
            for metric, words, value in found
        ]
        or None,
    )
    return ["---", data.to_yaml(), "---", ""]


def dataset_of(recipe: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Return a data set's id, its name for people, and whether the hub has it.

    >>> dataset_of({"data": {"source": "hfds/uoft-cs/cifar10"}})
    ('uoft-cs/cifar10', 'cifar10', True)
    >>> dataset_of({"data": {"source": "hfds/./My photos"}})
    ('my-photos', 'My photos', False)
    """
    source = str(recipe["data"]["source"])
    hub_id = source.removeprefix("hfds/")
    name = hub_id.rstrip("/").rpartition("/")[2]
    if source.startswith("hfds/") and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", hub_id):
        return hub_id, name, True
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images", name, False


def _method(recipe: Mapping[str, Any]) -> str:
    name = recipe["method"]["name"]
    return METHODS[name].summary if name in METHODS else str(name)


def _results(report: Mapping[str, Any] | None, own: Mapping[str, Any]) -> list[str]:
    if report is None:
        return []
    rows = [["test", "its decisions", *_figures(report)]]
    solved = own.get("thresholds")
    if solved is not None:
        figures = _figures({**solved, **_cost(solved["macs"], own)})
        rows.append(["validation", "thresholds of this package", *figures])
    exits, routers = (own["budgets"][name] or {} for name in ("exits", "routers"))
    points = [
        (row["budget_macs"], row["point"]) for row in exits.get("points", ()) if row["kind"] == "budgeted"
    ]
    points += list(zip(routers.get("budgets_macs", ()), routers.get("points", ()), strict=True))
    for budget, point in points:
        words = f"a budget of {2e-9 * budget:.4g} GFLOPs"
        rows.append(["test", words, *_figures({**point, **_cost(point["macs"], own)})])
    lines = table(["split", "decided by", "accuracy", "GFLOPs", "of the full network"], rows)
    return ["", "## Results", "", *lines, "", _COUNTED]


def _cost(macs: float, own: Mapping[str, Any]) -> dict[str, float]:
    return {"gflops": 2e-9 * macs, "fraction_of_full": macs / float(own["cost_book"]["full"])}


def _figures(values: Mapping[str, Any]) -> list[str]:
    share = 100 * float(values["fraction_of_full"])
    return [f"{100 * float(values['accuracy']):.2f} %", f"{float(values['gflops']):.4g}", f"{share:.1f} %"]


def _timings(timings: Mapping[str, Any] | None) -> list[str]:
    if timings is None:
        return []
    rows = [
        [row["runtime"], row["precision"], str(row["batch_size"]), f"{row['ms_per_image']:.3f}"]
        for row in timings["rows"]
    ]
    place = [f"On {in_words(timings['hardware'])}.", ""] if "hardware" in timings else []
    names = ["runtime", "precision", "batch", "ms an image"]
    return ["", "## Milliseconds", "", *place, *table(names, rows)]


def _use(place: str) -> list[str]:
    return [
        "",
        "## Use",
        "",
        "```sh",
        f"sidestep evaluate {place}",
        f"sidestep export {place} --to plan --out network.plan",
        "```",
        "",
        "```python",
        "import sidestep",
        "",
        f'network = sidestep.load("{place}")',
        "```",
        "",
        "Weights are safetensors, and nothing in this package is code.",
    ]


def _training(own: Mapping[str, Any]) -> list[str]:
    environment, results = own["environment"], own["results"]
    recipe = yaml.safe_dump(own["recipe"], sort_keys=False).splitlines()
    where = f" on {in_words(environment['hardware'])}" if "hardware" in environment else ""
    minutes = results.get("minutes")
    took = f"{minutes:.1f} minutes" if minutes else "Made"
    return [
        "",
        "## Training",
        "",
        f"{took}{where}; sidestep {own['version']}, commit {own['commit']}, "
        f"{results['checkpoint']} checkpoint.",
        "",
        "<details><summary>Recipe</summary>",
        "",
        "```yaml",
        *recipe,
        "```",
        "",
        "</details>",
    ]
