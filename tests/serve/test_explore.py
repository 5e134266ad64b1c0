"""The explorer: a page whose networks answer, with the budgets of its slider and the images of its report."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from fastapi import FastAPI

import sidestep
from sidestep.cli.main import main
from sidestep.errors import SidestepError
from sidestep.reporting.exit_figures import at_budgets
from sidestep.runs.image_tables import image_table
from sidestep.runs.run_folder import open_run
from sidestep.serve.explore import PATIENT_MS, explore_app
from sidestep.serve.settings import ServeSettings
from tests.browser import AXE, browser, needs_browser
from tests.serve.served import RECIPE, asking, needs_engine, said
from tests.serve.test_app import encoded, pictures, png, serving
from tests.serve.test_process import server

_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def app_of(*sources: Path | str, images: int = 40, source: str | None = None) -> FastAPI:
    settings = ServeSettings(precision="float32", deadline_ms=PATIENT_MS)
    return explore_app(sources, settings, images=images, source=source)


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that knows a little, was not calibrated and has no curve."""
    folder = tmp_path_factory.mktemp("explored")
    phases = [{"name": "joint", "epochs": 8, "lr": 0.05}]
    recipe = RECIPE | {"training": {"phases": phases, "batch_size": 25}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return sidestep.train(folder / "tiny.yaml", folder / "run")


def test_the_page_asks_for_what_evaluate_says_of_every_budget(explored: Path) -> None:
    app, table = app_of(explored), image_table(open_run(explored, "best"))
    points = at_budgets(table)

    async def talk(client: httpx.AsyncClient) -> tuple[dict[str, Any], list[Any]]:
        front = await client.get("/")
        assert "connect-src 'self'" in front.headers["content-security-policy"]
        data = json.loads(_DATA.findall(front.text)[0])
        (model,) = data["live"]
        answers = []
        for budget in model["budgets"][:: len(model["budgets"]) // 4]:
            for image in data["images"]["ids"][:12]:
                given = await client.get(f"/explore/images/{image}")
                shape = json.loads(given.headers["x-image-shape"])
                pixels = np.frombuffer(given.content, np.uint8).reshape(1, *shape)
                asked = asking(pixels.tolist(), "UINT8", list(pixels.shape), budget=budget)
                answers.append((budget, image, said(await client.post("/v2/models/run/infer", json=asked))))
        return data, answers

    data, answers = serving(app, talk)
    (model,) = data["live"]
    assert model["budgets"] == pytest.approx([point.fraction for point in points])
    assert model["accuracies"] == [point.accuracy for point in points]
    assert data["runs"][0]["name"] == "run" and data["specs"]
    left = set()
    for budget, image, answer in answers:
        place = model["budgets"].index(budget)
        exit = int(table.leaving(table.thresholds[place])[image])
        left.add(exit)
        assert answer["exit"] == [exit]
        assert answer["class"] == [table.exit_predictions[exit, image]]
        assert answer["macs"] == pytest.approx([table.exit_macs[exit, image]], rel=1e-6)
    assert len(left) > 1


@needs_engine
def test_a_plan_is_tried_on_images_that_are_named(explored: Path, tmp_path: Path) -> None:
    calibrated = shutil.copytree(explored, tmp_path / "run")
    sidestep.calibrate(calibrated, sidestep.ExitBudget(fraction=0.9, scale=False))
    plan = sidestep.export_run(calibrated, tmp_path / "tiny.plan").path
    bare, shown = app_of(plan), app_of(plan, source="digits", images=10)

    async def talk(client: httpx.AsyncClient) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(_DATA.findall((await client.get("/")).text)[0])
        picture = said(await client.post("/v2/models/tiny/infer", json=asking(encoded(1), "BYTES", [1])))
        assert len(picture["path"]) == 3
        missing = await client.get("/explore/images/100000")
        assert missing.status_code == 404 and "must be one of" in missing.json()["error"]
        return data

    data = serving(bare, talk)
    assert data["images"] is None and data["runs"] == [] and data["live"][0]["exits"] == 3
    data = serving(shown, talk)
    assert len(data["images"]["ids"]) == 10 and len(data["images"]["classes"]) == 10
    with pytest.raises(SidestepError, match="absent"):
        app_of(plan, source="absent")


def test_missing_packages_are_a_sentence(
    explored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("sidestep.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["explore", str(explored)]) == 2
    assert "pip install 'sidestep[serve]'" in capsys.readouterr().err


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_what_a_budget_does(explored: Path, tmp_path: Path) -> None:
    table = image_table(open_run(explored, "best"))
    (tmp_path / "given.png").write_bytes(png(pictures(1)[0]))
    with server(explored, "--images", "30", command="explore") as (_, place), browser() as tab:
        image = json.loads(_DATA.findall(httpx.get(f"http://{place}/").text)[0])["images"]["ids"][3]
        middle = len(table.budgets) // 2
        tab.open(f"http://{place}/#try={image}&budget={100 * table.budgets[middle]:.0f}")
        for budget in (middle, 0, len(table.budgets) - 1):
            tab.value(f"document.getElementById('live-budget').value = {budget}")
            tab.value("document.getElementById('live-budget').dispatchEvent(new Event('input'))")
            tab.until(f"document.documentElement.dataset.answers === '1 at {table.budgets[budget]:g}'")
            exit = int(table.leaving(table.thresholds[budget])[image])
            text = tab.value("document.getElementById('tray').textContent")
            assert f"left at exit {exit + 1} of 3" in text
            assert f"({100 * table.exit_macs[exit, image] / table.full_macs:.1f} % of the full" in text
        tab.drop(tmp_path / "given.png", 200, 200)
        tab.until("document.documentElement.dataset.answers.startsWith('2 at')")
        assert tab.complaints() == []
        assert AXE is None or tab.barriers() == []
