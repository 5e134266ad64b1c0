"""Gates with a dial behind the server: every image has the biases of its own budget, in both runners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml

import sidestep
from sidestep.runs.run_folder import open_run
from sidestep.serve.ladder import DialLadder
from sidestep.serve.served_model import open_models
from sidestep.serve.settings import ServeSettings
from tests.serve.served import DIGITS, app_of, asking, needs_biases, said
from tests.serve.test_app import serving

RECIPE: dict[str, Any] = {
    "method": {"name": "convnet_aig", "target": 0.7, "gate": {"bias": None}},
    "model": {"name": "cifar_resnet8"},
    "data": DIGITS | {"image_size": 8, "val_fraction": 0.3},
    "training": {"phases": [{"name": "joint", "epochs": 1, "lr": 0.05}], "batch_size": 32},
}


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run of gates with its curve."""
    folder = tmp_path_factory.mktemp("gates")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    run = sidestep.train(folder / "tiny.yaml", folder / "run")
    sidestep.calibrate(run, sidestep.ExitBudget(fraction=0.7))
    sidestep.curve(run, num_budgets=4)
    return run


@pytest.mark.parametrize("runner", ["pytorch", pytest.param("engine", marks=needs_biases)])
def test_every_image_has_the_biases_of_its_budget(
    gates: Path, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runner == "pytorch":
        monkeypatch.setattr("sidestep.serve.served_model.engine_installed", lambda: False)
    precision = "auto" if runner == "pytorch" else "float32"
    (model,) = open_models([gates], ServeSettings(precision=precision))
    ladder, opened, network = model.ladder, open_run(gates, "best"), sidestep.load(gates)
    assert isinstance(ladder, DialLadder) and model.runners[0].name == runner
    frontier = opened.frontier
    assert frontier is not None
    assert {rung.macs for rung in ladder.rungs} <= {level.macs for level in frontier.levels}
    images = torch.randn(5, 3, 8, 8)
    app = app_of(gates, precision=precision, deadline_ms=60_000)

    async def talk(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        answers = []
        for rung in ladder.rungs:
            asked = asking(images.flatten().tolist(), "FP32", list(images.shape), budget=rung.budget)
            asked["outputs"] = [{"name": name} for name in ("logits", "path", "macs", "budget")]
            answers.append(said(await client.post("/v2/models/run/infer", json=asked)))
        return answers

    for rung, answer in zip(ladder.rungs, serving(app, talk), strict=True):
        with torch.no_grad():
            wanted = network(images, budget=rung.budget)
        np.testing.assert_allclose(np.reshape(answer["logits"], (5, -1)), wanted.logits, atol=1e-3)
        assert answer["path"] == wanted.decisions.paths().flatten().tolist()
        np.testing.assert_allclose(answer["macs"], opened.cost.per_sample(wanted.decisions), rtol=1e-6)
        assert answer["budget"] == pytest.approx([rung.budget] * 5)


def test_times_are_a_line_between_skipping_and_executing_all(gates: Path) -> None:
    (model,) = open_models([gates], ServeSettings())
    ladder = model.ladder
    ladder.exit_ms[0], ladder.correction = (1.0, 3.0), 1.0
    ladder.rates[0] = 0.75, 0.25
    assert ladder.ms(0) == pytest.approx(1.5)
    # Sixteen images that execute all move the rung towards that, and a batch of twice the time all rungs.
    ladder.learn([0] * 16, [1.0] * 16, 16 * 6.0, full=True)
    assert ladder.correction == pytest.approx(1.2)
    assert ladder.rates[0] == pytest.approx([0.6, 0.4])
