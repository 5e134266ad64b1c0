"""A network for all budgets is served at those of its curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml

import sidestep
from sidestep.errors import CheckpointError
from sidestep.execution.execution import masked
from sidestep.runs.export import served_budgets
from sidestep.runs.run_folder import open_run
from sidestep.serve import served_model
from tests.serve.served import DIGITS, app_of, asking, needs_engine, said
from tests.serve.test_app import serving

RECIPE: dict[str, Any] = {
    "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard", "budgets": {"low": 0.4}},
    "model": {"name": "cifar_resnet8"},
    "data": DIGITS,
    "training": {"phases": [{"name": "joint", "epochs": 1, "lr": 0.1}], "batch_size": 50},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that has learnt nothing; its curve's costs and accuracies are made to rise."""
    folder = tmp_path_factory.mktemp("budgets")
    (folder / "all.yaml").write_text(yaml.safe_dump(RECIPE))
    run = sidestep.train(folder / "all.yaml", folder / "run")
    sidestep.curve(run, num_budgets=4)
    record = json.loads((run / "budgets.json").read_text())
    for n, point in enumerate(record["points"]):
        point["accuracy"] = 0.5 + 0.01 * n
        point["macs"] = (0.4 + 0.2 * n) * record["full_macs"]
    (run / "budgets.json").write_text(json.dumps(record))
    return run


@pytest.mark.parametrize("runner", [pytest.param("engine", marks=needs_engine), "pytorch"])
def test_every_budget_of_the_curve_is_answered_with_its_routers(
    run: Path, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runner == "pytorch":
        monkeypatch.setattr(served_model, "engine_installed", lambda: False)
    app = app_of(run, precision="float32", deadline_ms=60_000)
    opened, images = open_run(run, "best"), np.random.default_rng(0).normal(size=(12, 3, 16, 16))

    async def talk(client: httpx.AsyncClient) -> list[Any]:
        levels = (await client.get("/v2/models/run")).json()["parameters"]["budgets"]
        answers = []
        for level in levels:
            ask = asking(images.flatten().tolist(), "FP32", [12, 3, 16, 16], budget=level["budget"])
            ask["outputs"] = [{"name": name} for name in ("logits", "path", "macs", "budget")]
            answers.append(said(await client.post("/v2/models/run/infer", json=ask)))
            assert answers[-1]["budget"] == pytest.approx([level["budget"]] * 12)
        return answers

    answers, budgets = serving(app, talk), served_budgets(opened)
    assert len(answers) == len(budgets) == 4
    x = torch.from_numpy(images).float()
    for budget, answer in zip(budgets, answers, strict=True):
        opened.ask(budget.asked)
        with torch.no_grad():
            wanted = opened.network(x, execution=masked)
        np.testing.assert_allclose(np.reshape(answer["logits"], (12, -1)), wanted.logits, atol=1e-4)
        assert answer["path"] == wanted.decisions.paths().flatten().tolist()
        np.testing.assert_allclose(answer["macs"], opened.cost.per_sample(wanted.decisions), rtol=1e-6)


def test_a_curve_that_does_not_fit_is_refused(run: Path) -> None:
    kept = (run / "budgets.json").read_text()
    record = json.loads(kept)
    try:
        for change, words in (
            ({"full_macs": 1.0}, "must be of the run's network"),
            ({"points": [{"asked": 0.1, "accuracy": 0.5, "macs": 1.0}]}, "must be of the run's network"),
            ({"points": [{}]}, "must be what `curve` wrote"),
        ):
            (run / "budgets.json").write_text(json.dumps(record | change))
            with pytest.raises(CheckpointError, match=words):
                served_budgets(open_run(run, "best"))
        (run / "budgets.json").write_text(json.dumps(record | {"checkpoint": "last"}))
        assert served_budgets(open_run(run, "best")) == []
    finally:
        (run / "budgets.json").write_text(kept)


def test_a_package_of_it_has_its_budgets(run: Path, tmp_path: Path) -> None:
    sidestep.push(run, f"local-dir:{tmp_path / 'package'}")
    (model,) = served_model.open_models([f"local-dir:{tmp_path / 'package'}"], served_model.ServeSettings())
    assert model.name == "package" and len(model.runners) == len(model.ladder.rungs) == 4
