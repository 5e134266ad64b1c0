"""The README: its picture is that of the newest pages, its table says what they say, its links exist."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
import yaml
from PIL import Image

from sidestep.runs.recipe_book import recipe_cards
from tests.paths import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


def imported(folder: str, name: str) -> Any:
    """Return a module of a folder that is no package."""
    sys.path.insert(0, str(ROOT / folder))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


def rows() -> list[list[str]]:
    """Return the cells of the table of methods."""
    found = re.search(r"^\| method \|.*\n\|.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def measured_points() -> set[tuple[str, str]]:
    """Return (percent, percent of the full MACs) of all runs and budgets in results."""
    points = set()
    for path in RESULTS.glob("*/*.json"):
        # Those of surveys are of one network, and of no run.
        for run in json.loads(path.read_text()).get("runs", []):
            for report in run["reports"].values():
                points.add((f"{report['accuracy']:.2%}", f"{report['fraction_of_full']:.1%}"))
    for page in RESULTS.glob("*/*.md"):
        points |= {
            (f"{accuracy}%", f"{fraction}%")
            for accuracy, fraction in re.findall(r"([\d.]+) \([\d.]+\) @ ([\d.]+) %", page.read_text())
        }
    return points


def test_the_picture_is_that_of_the_newest_pages() -> None:
    picture = imported("benchmarks", "picture")
    points = picture.all_points()
    kinds = {point.runtime for row in points.values() for point in row}
    assert kinds == {"PyTorch", "ONNX Runtime", "OpenVINO", "cascade", "skipping"}
    with Image.open(picture.PICTURE) as image:
        drawn = image.info["Description"]
    assert drawn == picture.fingerprint(points), "run `python benchmarks/picture.py`"


def test_badges_say_what_the_project_says() -> None:
    badges = imported("docs/_ext", "badges")
    for name, picture in badges.badges().items():
        assert (ROOT / "docs" / "pictures" / name).read_text() == picture
        assert f"docs/pictures/{name}" in README


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_method_has_its_recipe_page_and_result(row: list[str]) -> None:
    _, _, recipe, page, measured = row
    named = re.fullmatch(r"`(\w+)`", recipe)
    assert recipe.startswith("none") or (named and named[1] in {card.name for card in recipe_cards()})
    link = re.fullmatch(r"\[\w+\]\((docs/methods/\w+\.md)\)", page)
    assert link is not None and (ROOT / link[1]).is_file()
    found = re.match(r"([\d.]+) % at ([\d.]+) %", measured)
    assert measured == "not yet" or (found and (f"{found[1]}%", f"{found[2]}%") in measured_points())


def test_every_method_has_its_row() -> None:
    linked = {re.sub(r".*/(\w+)\.md\)", r"\1", row[3]) for row in rows()}
    pages = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
    assert pages - linked == {"index", "alive"}


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "engine/README.md", "benchmarks/results/README.md"]
)
def test_links_lead_to_files(page: str) -> None:
    """Of the pages that the site does not build; Sphinx checks the others."""
    path = ROOT / page
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_citation_names_the_papers_of_the_table() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    known = {(each["authors"][0]["family-names"], each["year"]) for each in cited}
    named = {
        (paper.split()[0], int(paper[-4:]))
        for _, paper, _, _, _ in rows()
        if paper and "NeurIPS" not in paper
    }
    assert named <= known


def test_what_is_recited_first_fits_a_screen() -> None:
    before = README[: README.index("## Methods")]
    assert before.count("```sh") == 2 and before.count("![") == 4
    assert len(before.splitlines()) <= 45 and len(README.splitlines()) <= 90


def test_hooks_and_wheels_name_what_is_there() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}
    checked = (ROOT / "scripts" / "check").read_text()
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].split()[0] in checked
