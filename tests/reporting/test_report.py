"""Reports: they agree with evaluations, keep what they computed, and make what can be made."""

import base64
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sidestep.cli.main import main
from sidestep.data.decode import Decoder
from sidestep.data.memory_set import MemorySet
from sidestep.errors import SidestepError
from sidestep.reporting.contents import figures_of
from sidestep.reporting.exit_figures import at_budgets
from sidestep.reporting.explorer import slider_data
from sidestep.reporting.image_table import ImageTable
from sidestep.reporting.shown import ShownRun
from sidestep.results.run_result import STUDY
from sidestep.runs import image_tables
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.evaluate import calibrate, curve, evaluate
from sidestep.runs.image_tables import IMAGES, image_table
from sidestep.runs.make_report import gather, report
from sidestep.runs.recipe import from_dict
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run
from sidestep.runs.train import train
from tests.browser import AXE, Tab, browser, needs_browser
from tests.training.test_methods_train import tiny

_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a run with routers and exits, and one with exits alone."""
    root = tmp_path_factory.mktemp("runs")
    return [train(tiny(name), root / name.replace(" ", "_")) for name in ("rdi_net with exits", "msdnet")]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Path:
    out = runs[0].parent / "report.html"
    written = report(runs, out, images=60)
    assert written.notes == [] and written.files == [out]
    return out


def test_the_table_of_images_is_what_evaluations_say(runs: list[Path]) -> None:
    for run in runs:
        table, said = image_table(open_run(run, "best")), evaluate(run)
        assert float(table.correct.mean()) == said.accuracy
        assert 2e-9 * float(table.macs.mean()) == pytest.approx(said.gflops)
        assert table.executed.mean(axis=0).tolist() == pytest.approx(said.keep_rates)


def test_budgets_are_those_of_evaluate_to_the_digit(runs: list[Path]) -> None:
    for run in runs:
        points = at_budgets(image_table(open_run(run, "best")))
        assert len(points) > 5
        for point in points[:: len(points) // 3]:
            said = evaluate(run, budget=ExitBudget(fraction=point.fraction))
            assert point.accuracy == said.accuracy
            assert 2e-9 * point.macs == pytest.approx(said.gflops, rel=1e-6)
            assert point.exit_rates == said.exit_rates


def test_the_slider_counts_what_budgets_bring_from_ranks_alone(runs: list[Path]) -> None:
    for run in runs:
        table = image_table(open_run(run, "best"))
        packed = slider_data(ShownRun(name="x", table=table))
        assert packed is not None
        levels = np.frombuffer(base64.b64decode(packed["levels"]), np.uint8).reshape(-1, packed["images"])
        right = np.frombuffer(base64.b64decode(packed["right"]), np.uint8).reshape(-1, packed["images"])
        for place, point in enumerate(at_budgets(table)):
            leaves = [level >= ranks[place] for level, ranks in zip(levels, packed["ranks"], strict=True)]
            exits = np.argmax([*leaves, np.ones(packed["images"], dtype=bool)], axis=0)
            assert right[exits, np.arange(len(exits))].mean() == point.accuracy


def test_tables_are_kept_until_what_they_belong_to_changes(runs: list[Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[1], tmp_path / "run"))
    first = image_table(open_run(run, "best"))
    kept = (run / IMAGES).stat().st_mtime_ns
    assert image_table(open_run(run, "best")).macs.tolist() == first.macs.tolist()
    assert (run / IMAGES).stat().st_mtime_ns == kept
    calibrate(run, ExitBudget(fraction=0.7))
    moved = image_table(open_run(run, "best"))
    assert moved.macs.mean() < first.macs.mean()
    (run / IMAGES).write_bytes((run / IMAGES).read_bytes()[:-20])
    assert image_table(open_run(run, "best")).macs.tolist() == moved.macs.tolist()


def test_trainings_and_evaluations_keep_the_table_that_a_report_would_make(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = train(tiny("convnet_aig"), tmp_path / "gates")
    for run in (*runs, gates):
        by_training = image_table(open_run(run, "best"))
        (run / IMAGES).unlink()
        assert_same_tables(image_table(open_run(run, "best")), by_training)
    (gates / IMAGES).unlink()
    said = evaluate(gates)
    kept = (gates / IMAGES).stat().st_mtime_ns
    # Budgets of gates lie in the checkpoint, and change nothing of what it says.
    curve(gates, num_budgets=2)
    assert evaluate(gates) == said and (gates / IMAGES).stat().st_mtime_ns == kept
    monkeypatch.setattr(image_tables, "_tested", None)
    assert_same_tables(image_table(open_run(gates, "best")), by_training)
    evaluate(gates, checkpoint="last", execution="gathered")
    assert (gates / IMAGES).stat().st_mtime_ns == kept


def test_a_rule_that_is_solved_later_needs_no_pass_through_the_images(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, before in enumerate(runs):
        run = Path(shutil.copytree(before, tmp_path / str(number)))
        calibrate(run, ExitBudget(fraction=0.7))
        with monkeypatch.context() as patch:
            patch.setattr(image_tables, "_tested", None)
            found = image_table(open_run(run, "best"))
        said = evaluate(run)
        assert float(found.correct.mean()) == said.accuracy
        (run / IMAGES).unlink()
        made = image_table(open_run(run, "best"))
        np.testing.assert_allclose(found.macs, made.macs, rtol=1e-6)
        np.testing.assert_allclose(found.confidences, made.confidences, rtol=1e-5)
        alike = replace(found, macs=made.macs, confidences=made.confidences)
        assert_same_tables(alike, made)
        calibrate(run, ExitBudget(fraction=0.7, criterion="margin"))
        assert image_table(open_run(run, "best")).exits.mean() != made.exits.mean()


def assert_same_tables(one: ImageTable, other: ImageTable) -> None:
    for field in fields(ImageTable):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_the_images_that_are_shown_are_decoded_alone_and_unchanged(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = [], Decoder._decode

    def noted(self: Decoder, index: int, seed: Any) -> Any:
        decoded.append(index)
        return decode(self, index, seed)

    test = data_of(open_run(runs[0], "best"), "test", None).test
    assert isinstance(test, MemorySet)
    monkeypatch.setattr(Decoder, "_decode", noted)
    sprite = gather(runs, images=60, originals=True).sprite
    assert sprite is not None and decoded == sprite.ids and len(decoded) < len(test) / 2
    assert (np.stack(sprite.originals) == test.images[sprite.ids].permute(0, 2, 3, 1).numpy()).all()


def test_the_page_asks_no_network_and_has_every_figure_with_sentence_and_table(
    page: Path, runs: list[Path]
) -> None:
    text = page.read_text()
    markup = re.sub("<script.*?</script>", "", text, flags=re.DOTALL)
    assert re.findall(r'\b(?:src|href)="(?!#|data:)', markup) == [] and "default-src 'none'" in text
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    shown = [
        ShownRun(name=run.name, result=None, table=image_table(open_run(run, "best")), epochs=[])
        for run in runs
    ]
    assert len(figures) >= len(figures_of(shown, pictured=shown))
    for figure in figures:
        assert re.search(r'<p class="reading">[^<]{20,}\.</p>', figure), figure[:200]
        assert "<details" in figure and "<td>" in figure
    data = json.loads(next(iter(_DATA.findall(text))))
    assert len(data["images"]["ids"]) >= 60 and data["images"]["ids"] == sorted(set(data["images"]["ids"]))
    assert [run["name"] for run in data["runs"]] == [run.name for run in runs]
    assert all(spec["description"] for spec in data["specs"].values())
    sprite = len(data["images"]["sprite"])
    assert len(text) - sprite < 3e6


def test_a_folder_gets_every_figure_for_papers(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "figures"
    assert main(["report", *map(str, runs[:1]), "--out", str(out), "--images", "20"]) == 0
    names = {path.stem for path in out.glob("*.csv")}
    name = runs[0].name
    wanted = ("accuracy_cost", f"keep_map-{name}", f"paths-{name}", f"budgets-{name}", f"confusion-{name}")
    assert {*wanted, "provenance", "training"} <= names
    for stem in wanted:
        assert (out / f"{stem}.svg").read_text().startswith("<svg")
        assert (out / f"{stem}.pdf").read_bytes()[:4] == b"%PDF"
        assert (out / f"{stem}.png").read_bytes()[1:4] == b"PNG"
    assert (out / f"images-{name}.png").is_file() and len((out / "readings.txt").read_text()) > 500


def test_what_cannot_be_shown_is_a_sentence_and_the_rest_is_made(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = Path(shutil.copytree(runs[1], tmp_path / "unfinished"))
    (unfinished / "report.json").unlink()
    (tmp_path / "empty").mkdir()
    folders = [runs[0], unfinished, tmp_path / "empty", tmp_path / "absent"]
    out = tmp_path / "report.html"
    assert main(["report", *map(str, folders), "--out", str(out), "--images", "20"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not shown: ")]
    assert len(lines) == 3
    assert "report.json is missing" in lines[0] and "is none" in lines[1] and "is none" in lines[2]
    assert "Commonest paths of unfinished" in out.read_text()


def test_the_folder_of_a_sweep_stands_for_its_runs(runs: list[Path], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name in ("one", "two", "under_way"):
        shutil.copytree(runs[1], sweep / name)
    (sweep / "under_way" / "report.json").unlink()
    (sweep / STUDY).touch()
    found = gather([sweep], images=5)
    assert [run.name for run in found.shown] == ["one", "two"]
    assert len(found.notes) == 1 and found.notes[0].startswith(f"1 of the runs of sweep {sweep} must be")
    with pytest.raises(SidestepError, match="must be folders of runs or of sweeps"):
        gather([sweep / STUDY], images=5)


def photographs(root: Path) -> Path:
    """Write a folder of two classes, and return it."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root


def test_damaged_images_and_other_data_leave_the_rest(runs: list[Path], tmp_path: Path) -> None:
    source = photographs(tmp_path / "images")
    recipe = tiny("rdi_net by share").as_dict()
    recipe["data"] = {"source": str(source), "image_size": 16, "workers": 0}
    recipe["training"]["batch_size"] = 8
    run = train(from_dict(recipe, "photographs"), tmp_path / "photographs")
    written = report([runs[0], run], tmp_path / "both.html", images=20)
    assert len(written.notes) == 1 and "must have the images of" in written.notes[0]
    (run / IMAGES).unlink()
    picture = source / "test" / "cat" / "0.png"
    picture.write_bytes(picture.read_bytes()[:40])
    written = report([run], tmp_path / "damaged.html")
    assert len(written.notes) == 1 and "0.png" in written.notes[0]
    text = (tmp_path / "damaged.html").read_text()
    assert "Accuracy over cost" in text and "One image at a time" in text
    with pytest.raises(SidestepError, match=r"0\.png"):
        report([run], tmp_path / "named.html", source=str(source))
    assert not (tmp_path / "named.html").exists()


def test_other_images_with_the_same_labels_are_other_images(tmp_path: Path) -> None:
    recipe, trained = tiny("rdi_net by share").as_dict(), []
    recipe["training"]["batch_size"] = 8
    for name in ("here", "there"):
        source = photographs(tmp_path / name)
        if name == "there":
            shutil.copy(source / "test" / "dog" / "1.png", source / "test" / "cat" / "1.png")
        recipe["data"] = {"source": str(source), "image_size": 16, "workers": 0}
        trained.append(train(from_dict(recipe, name), tmp_path / f"run {name}"))
    written = report(trained, tmp_path / "both.html", images=20)
    assert len(written.notes) == 1 and "must have the images of run here" in written.notes[0]
    before = image_table(open_run(trained[0], "best"))
    shutil.copytree(tmp_path / "there" / "test", tmp_path / "here" / "test", dirs_exist_ok=True)
    now = image_table(open_run(trained[0], "best"))
    assert np.flatnonzero(before.confidences != now.confidences).tolist() == [1]
    (tmp_path / "here").rename(tmp_path / "gone")
    assert image_table(open_run(trained[0], "best")).content == now.content


def test_names_of_users_are_texts_and_no_markup(runs: list[Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[1], tmp_path / "<script>alert(1)<"))
    report([run], tmp_path / "report.html", title="a < b & </script>", images=10)
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text and "<title>a &lt; b &amp; &lt;/script&gt;</title>" in text
    assert len(_DATA.findall(text)) == 1 and json.loads(_DATA.findall(text)[0])["runs"][0]["name"] == run.name


def opened(tab: Tab, address: str, **screen: Any) -> None:
    """Open a page from disk without a network, and wait until its charts are drawn."""
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    tab.call("Network.enable")
    tab.call("Network.emulateNetworkConditions", **offline)
    tab.events.clear()
    tab.open(address, **screen)
    tab.until("document.documentElement.dataset.drawn !== undefined")


@needs_browser
def test_a_browser_draws_everything_and_its_slider_says_what_evaluate_says(
    page: Path, runs: list[Path]
) -> None:
    table = image_table(open_run(runs[1], "best"))
    budget = float(table.budgets[len(table.budgets) // 2])
    data = json.loads(_DATA.findall(page.read_text())[0])
    image = data["images"]["ids"][7]
    with browser() as tab:
        screens = ({"width": 1280}, {"width": 390}, {"width": 1280, "dark": True})
        for number, screen in enumerate(screens):
            # Another query, since the same address with a part behind # is not read anew.
            opened(tab, f"{page.as_uri()}?{number}#image={image}&budget={round(100 * budget)}", **screen)
            seen = tab.value("({...document.documentElement.dataset})")
            assert seen["drawn"] == str(len(data["specs"])) and "errors" not in seen
            assert tab.complaints() == [] and (AXE is None or tab.barriers() == [])
            assert not tab.value("document.documentElement.scrollWidth > innerWidth")
        said = evaluate(runs[1], budget=ExitBudget(fraction=budget))
        wanted = f"budget {100 * budget:.0f} %: {100 * said.accuracy:.2f} % right at {said.gflops:.4f} GFLOPs"
        assert wanted in tab.value("document.getElementById('main').textContent")
        assert seen["image"] == str(image) and tab.value("document.querySelectorAll('#one .blocks').length")


@needs_browser
def test_filters_show_the_images_that_they_name_and_work_by_keyboard(page: Path, runs: list[Path]) -> None:
    data = json.loads(_DATA.findall(page.read_text())[0])
    table, ids = image_table(open_run(runs[0], "best")), data["images"]["ids"]
    with browser() as tab:
        opened(tab, page.as_uri())
        tab.value("document.getElementById('by-run').focus()")
        for key in ("Tab", "ArrowDown", "Tab", "ArrowDown"):  # the first class, and those that are right
            tab.press(key)
        wanted = table.correct[ids] & (table.labels[ids] == 0)
        tab.until(f"document.documentElement.dataset.found === '{int(wanted.sum())}'")
        assert tab.value("document.getElementById('by-answer').value") == "right" and wanted.any()
        for _ in range(3):  # over cost and path to the first image
            tab.press("Tab")
        tab.press("Enter")
        assert tab.value("document.documentElement.dataset.image") == str(np.array(ids)[wanted][0])
