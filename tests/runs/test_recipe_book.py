"""Recipes that come with the package: their headers, and where they are found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep.cli.main import main
from sidestep.errors import RecipeError
from sidestep.runs.recipe_book import recipe_cards, recipe_file
from tests.paths import RECIPES, ROOT

CARDS = recipe_cards()


@pytest.mark.parametrize("card", CARDS, ids=[card.name for card in CARDS])
def test_a_header_says_what_how_good_and_how_long(card: object) -> None:
    from sidestep.runs.recipe_book import RecipeCard

    assert isinstance(card, RecipeCard)
    for text in (card.about, card.expected, card.minutes):
        assert text.endswith(".") and "\n" not in text and "Hours" not in text
    assert "see benchmarks" not in card.expected


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [card["name"] for card in listed] == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert main(["recipes"]) == 0
    assert "rdi_net_resnet110_cifar10" in capsys.readouterr().out


def test_a_file_of_the_same_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_file("quickstart") == recipe_file("quickstart.yaml") == RECIPES / "quickstart.yaml"
    Path("quickstart.yaml").write_text("x")
    assert recipe_file("quickstart.yaml") == Path("quickstart.yaml")
    with pytest.raises(RecipeError, match="is neither"):
        recipe_file("folder/quickstart")


@pytest.mark.slow
def test_an_installed_package_has_them(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert {f"sidestep/recipes/{card.name}.yaml" for card in CARDS} <= set(names)
    assert "sidestep/py.typed" in names
