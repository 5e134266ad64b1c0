"""What recipes share and where they differ: said once, and complete."""

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidestep.results.page import results_page
from sidestep.results.recipe_tables import departures, shared_settings
from tests.finished_runs import write_run

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1e-5, "a b", "c: d", "1", "null"]),
    st.lists(st.integers(0, 2), max_size=2),
)  # fmt: skip
KEYS = st.sampled_from(["a", "b", "c"])
SETTINGS = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6),
    max_size=3,
)


def rebuilt(common: dict[str, Any], others: dict[str, str]) -> dict[str, Any]:
    """Return the recipe that a reader of a page puts together."""
    recipe = copy.deepcopy(common)
    for name, text in others.items():
        *groups, last = name.split(".")
        place = recipe
        for group in groups:
            place = place[group]
        if text == "absent":
            del place[last]
        else:
            place[last] = yaml.safe_load(text)
    return recipe


@given(recipes=st.lists(SETTINGS, min_size=1, max_size=5))
def test_shared_settings_and_departures_are_the_recipes(recipes: list[dict[str, Any]]) -> None:
    common = shared_settings(recipes)
    assert [rebuilt(common, departures(recipe, common)) for recipe in recipes] == recipes


@given(recipe=SETTINGS, count=st.integers(1, 4))
def test_equal_recipes_have_no_departures(recipe: dict[str, Any], count: int) -> None:
    common = shared_settings([recipe] * count)
    assert common == recipe or departures(recipe, common) == {}


def test_more_than_half_decide_what_is_shared() -> None:
    recipes = [{"lr": 0.1, "seed": 0}, {"lr": 0.1, "seed": 1}, {"lr": 0.2, "seed": 2}, {"lr": 0.1}]
    assert shared_settings(recipes) == {"lr": 0.1}
    assert shared_settings(recipes[1:3]) == {}
    assert departures(recipes[2], {"lr": 0.1}) == {"lr": "0.2", "seed": "2"}


def test_a_group_that_is_not_there_is_named_once() -> None:
    common = {"exits": {"at": [], "width": 64}, "seed": 0}
    assert departures({"seed": 0}, common) == {"exits": "absent"}
    assert departures({"exits": {"at": [3], "width": 64}, "seed": 0}, common) == {"exits.at": "[3]"}
    assert departures({"phase": {"epochs": 1, "lr": 0.1}} | common, common) == {
        "phase": "{epochs: 1, lr: 0.1}"
    }


def section(page: str, title: str) -> list[str]:
    """Return the lines of a section of a page that are not empty."""
    return [line for line in page.split(f"### {title}\n")[1].split("\n#")[0].splitlines() if line]


def test_small_runs_of_a_sweep_share_one_recipe_and_have_a_row_each(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"{target}_{seed}",
            {"method.target": target, "training.seed": seed},
            best={"gflops": target / 10},
        )
        for target in (0.4, 0.6, 0.7, 0.8)
        for seed in (0, 1)
    ]
    page = results_page("Sweep", runs)
    assert len(page.splitlines()) < 80
    assert page.count("init: static.safetensors") == 1 and page.count("dim: 16") == 1
    head, _, first, *others = section(page, "Runs")
    assert head == "| run | recipe | commit | method.target | training.seed |"
    assert first == "| 0.4_0 | rdi_net_resnet32 | abc123 | 0.4 | 0 |"
    assert len(others) == 7 and all(row.endswith((" 0 |", " 1 |")) for row in others)


def test_the_settings_of_every_method_stand_apart(tmp_path: Path) -> None:
    plain = {"method": {"name": "vanilla", "target": 0.5}}
    runs = [
        write_run(tmp_path / "one"),
        write_run(tmp_path / "two", {"method.target": 0.5}),
        write_run(tmp_path / "three", {"training.phases": []} | plain),
        write_run(tmp_path / "static", {"method": {"name": "static"}}),
    ]
    page = results_page("Methods", runs)
    assert "target" not in "".join(section(page, "Settings"))
    rdi_net, vanilla = section(page, "Settings of methods")[2:4]
    assert rdi_net.startswith("rdi_net: {") and "gamma: 0.5" in rdi_net and "target" not in rdi_net
    assert vanilla == "vanilla: {target: 0.5}" and "static: {" not in page
    rows = {row.split(" | ")[0][2:]: row for row in section(page, "Runs")[2:]}
    assert rows["one"].endswith("| method.target 0.6 |") and rows["two"].endswith("| method.target 0.5 |")
    assert rows["three"].endswith("| training.phases [] |")
    assert rows["static"].endswith("| abc123 |  |")


def test_phases_are_told_apart_by_name(tmp_path: Path) -> None:
    phases = [{"name": "joint", "epochs": 2, "paths": "uniform", "lr": 0.1}, {"name": "polish", "epochs": 1}]
    runs = [write_run(tmp_path / name) for name in ("one", "two")]
    page = results_page("Phases", [*runs, write_run(tmp_path / "three", {"training.phases": phases})])
    settings = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert settings["training"]["phases"] == {"joint": {"paths": "uniform", "epochs": 2, "lr": 0.05}}
    row = section(page, "Runs")[-1]
    assert row.endswith("| training.phases.joint.lr 0.1; training.phases.polish {epochs: 1} |")


def test_machines_are_named_once_with_their_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two")]
    environment = runs[1] / "environment.json"
    environment.write_text(environment.read_text().replace("Some CPU", "Other CPU"))
    lines = results_page("Machines", runs).splitlines()
    assert "- one: Some CPU (avx2), 2 cores, 2 threads used, torch 2.x." in lines
    assert "- two: Other CPU (avx2), 2 cores, 2 threads used, torch 2.x." in lines


def test_a_cell_never_ends_its_column(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, {"model.units": f"{name}|x"}) for name in ("one", "two")]
    row = section(results_page("Pipes", runs), "Runs")[-1]
    assert row.endswith(r"| abc123 | two\|x |")
