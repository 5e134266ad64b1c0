"""The pages in `benchmarks/results`: few, in the index, and made from the files beside them."""

import json
import re
from pathlib import Path

import pytest

from sidestep.results.page import results_page
from tests.paths import ROOT

KEPT = ROOT / "benchmarks" / "results"
FILES = sorted(KEPT.glob("*/*.json"))
OF_RUNS = [path for path in FILES if "runs" in json.loads(path.read_text())]


@pytest.mark.parametrize("path", OF_RUNS, ids=lambda path: path.parent.name)
def test_a_page_is_what_its_file_makes(path: Path) -> None:
    assert results_page(None, [path]) == path.with_suffix(".md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_page_shows_the_figure_beside_it(path: Path) -> None:
    figure = path.with_suffix(".png")
    assert figure.is_file() and f"]({figure.name})" in path.with_suffix(".md").read_text()


def test_there_are_few_files_named_by_date_and_only_one_page_of_a_topic() -> None:
    files = [path for path in KEPT.rglob("*") if path.is_file()]
    assert FILES and len(files) < 60
    topics: dict[str, list[str]] = {}
    for path in files:
        if path.parent != KEPT:
            assert re.fullmatch(r"\d{4}-\d\d-\d\d\.(md|json|png)", path.name), path
            topics.setdefault(path.parent.name, []).append(path.name)
    assert all(sum(name.endswith(".md") for name in names) == 1 for names in topics.values())


def test_the_index_has_a_line_for_every_page() -> None:
    linked = re.findall(r"^\| \[`(\w+)`\]\(([^)]+)\)", (KEPT / "README.md").read_text(), re.MULTILINE)
    assert sorted(target for _, target in linked) == [
        str(path.relative_to(KEPT)) for path in sorted(KEPT.glob("*/*.md"))
    ]
    assert all(target.startswith(f"{topic}/") for topic, target in linked)
