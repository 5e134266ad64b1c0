"""The page about extensions is run as it stands: files outside of the package, recipes, programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sidestep
from sidestep.errors import ExportError, RecipeError
from sidestep.registry import Registry
from sidestep.runs.recipe import from_dict
from tests.paths import ROOT

PAGE = ROOT / "docs" / "extending.md"
REGISTRIES: tuple[Registry[Any], ...] = (
    sidestep.METHODS,
    sidestep.MODELS,
    sidestep.SOURCES,
    sidestep.CRITERIA,
    sidestep.TARGETS,
)
SECTIONS = {
    "A backbone", "A data source", "A router", "A loss", "A method", "An exit criterion", "An export target",
}  # fmt: skip


def blocks() -> list[tuple[str | None, str]]:
    """Return the files of the page with their names, and its programs without, in order."""
    found = re.findall(r"^```(python|yaml)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names = [re.match(r"# (\w+\.(?:py|yaml))\n", text) for _, text in found]
    return [(name and name[1], text) for name, (_, text) in zip(names, found, strict=True)]


FILES = {name: text for name, text in blocks() if name is not None}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Return the names that the page's programs leave, run in a folder that has its files."""
    folder = tmp_path_factory.mktemp("page")
    names: dict[str, Any] = {"__name__": "page"}
    known = [list(registry) for registry in REGISTRIES]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for name, text in FILES.items():
            Path(name).write_text(text)
        try:
            for name, text in blocks():
                if name is None:
                    exec(compile(text, str(PAGE), "exec"), names)  # it is our own page
            yield names
        finally:
            for registry, before in zip(REGISTRIES, known, strict=True):
                for name in set(registry) - set(before):
                    registry.remove(name)
            for name in FILES:
                sys.modules.pop(Path(name).stem, None)


def test_the_page_has_a_section_for_each_extension() -> None:
    assert set(re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)) == SECTIONS


@pytest.mark.parametrize(("name", "limit"), [("plain_net.py", 40), ("stripes.py", 20), ("npz.py", 30)])
def test_a_stranger_needs_few_lines(name: str, limit: int) -> None:
    lines = [line for line in FILES[name].splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= limit


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_a_file_imports_nothing_of_the_package_but_its_public_names(name: str) -> None:
    imported = re.findall(r"^(?:from|import) (sidestep\S*)", FILES[name], re.MULTILINE)
    assert imported == ["sidestep"]


def test_a_backbone_is_trained_priced_and_gathered(page: dict[str, Any]) -> None:
    masked, gathered = page["masked"].as_dict(), page["gathered"].as_dict()
    assert len(masked["keep_rates"]) == 6
    for key in ("accuracy", "gflops", "keep_rates"):
        assert gathered[key] == pytest.approx(masked[key], rel=1e-5)
    assert isinstance(page["network"].backbone, page["plain_net"].PlainNet)


def test_a_backbone_becomes_a_plan(page: dict[str, Any]) -> None:
    assert sidestep.export_run(page["run"]).path.is_file()


def test_a_source_is_learnt_from(page: dict[str, Any]) -> None:
    assert page["stripes_report"].accuracy > 0.9


def test_a_router_decides(page: dict[str, Any]) -> None:
    assert page["output"].decisions.weights.shape == (8, 4, 2)
    assert page["macs"].shape == (8,)


def test_a_loss_is_logged_and_ramped(page: dict[str, Any]) -> None:
    (row,) = [json.loads(line) for line in (page["steady_run"] / "metrics.jsonl").read_text().splitlines()]
    assert row["train"]["spread"] > 0


def test_a_method_learns_to_choose(page: dict[str, Any]) -> None:
    report = page["report"].as_dict()
    assert report["accuracy"] > 0.6
    assert 0.3 < report["fraction_of_full"] < 0.97
    kept = np.array(report["keep_rates"])
    assert 0.2 < kept.mean() < 0.97 and kept.min() < 0.9


def test_a_criterion_meets_a_budget(page: dict[str, Any]) -> None:
    assert page["found"].criterion == "ratio"
    assert 0 < page["early"].as_dict()["exit_rates"][0] < 1


def test_a_target_writes_what_can_be_read(page: dict[str, Any]) -> None:
    with np.load(page["written"].path) as file:
        card = json.loads(str(file["card"]))
        assert card["method"] == "variance" and len(card["classes"]) == 10
        assert file["router.norms.5.weight"].shape == (1,)
    assert page["written"].summary.endswith("arrays")
    with pytest.raises(ExportError):
        sidestep.export_run(page["variance_run"])


def test_settings_of_extensions_are_checked_like_all_others(page: dict[str, Any]) -> None:
    values = {
        "method": {"name": "variance", "target": 2},
        "model": {"name": "plain_net", "num_block": 3},
        "data": {"source": "stripes", "num_images": "many"},
        "training": {"phases": [{"name": "joint", "epochs": 1}]},
    }
    with pytest.raises(RecipeError) as caught:
        from_dict(values)
    assert str(caught.value).splitlines()[1:] == [
        "  - method.target must be in (0, 1], got 2.0; 0.6 is usual",
        "  - model.num_block is no setting of model plain_net; did you mean num_blocks?",
        "  - data.num_images must be a whole number, got 'many'",
    ]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_a_name_is_given_once(registry: Registry[Any]) -> None:
    name = next(iter(registry))
    with pytest.raises(RecipeError, match=f"{registry.kind} {re.escape(name)} is there already; choose"):
        registry.add(registry[name])
    with pytest.raises(RecipeError, match=f"{registry.key} must be one of .*, got 'nothing at all'"):
        registry.remove("nothing at all")
