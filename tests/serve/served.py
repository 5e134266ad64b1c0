"""Tiny networks that are served in tests, in both runners."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

import sidestep
from sidestep.serve.app import create_app
from sidestep.serve.served_model import open_models
from sidestep.serve.settings import ServeSettings

DIGITS = {"source": "digits", "image_size": 16, "limit": 200, "crop_padding": 1, "flip": False, "workers": 0}
RECIPE: dict[str, Any] = {
    "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"},
    "model": {"name": "cifar_resnet8", "exits": {"at": ["layer1", "layer2"], "width": 8}},
    "data": DIGITS,
    "training": {"phases": [{"name": "joint", "epochs": 1, "lr": 0.1}], "batch_size": 50},
}


def engine_is_new() -> bool:
    """Return whether there is an engine that lets every image leave by thresholds of its own."""
    if importlib.util.find_spec("sidestep_engine") is None:
        return False
    import sidestep_engine

    return hasattr(sidestep_engine.Engine, "room_for")


needs_engine = pytest.mark.skipif(
    not engine_is_new(), reason="SIDESTEP-ENGINE MISSING OR OLD: pip install ./engine"
)


needs_biases = pytest.mark.skipif(
    not (engine_is_new() and hasattr(importlib.import_module("sidestep_engine").Plan, "level_within")),
    reason="SIDESTEP-ENGINE MISSING OR OLD: pip install ./engine",
)


def trained(folder: Path) -> Path:
    """Return the run folder of a network that skips units and leaves at exits, with its curve.

    It has learnt nothing, so the curve's accuracies are made to rise with the budget.
    """
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    run = sidestep.train(folder / "tiny.yaml", folder / "run")
    # Temperatures of a network that knows nothing make all scores equal.
    sidestep.curve(run, num_budgets=5, scale=False)
    record = json.loads((run / "exits.json").read_text())
    for n, row in enumerate(record["points"]):
        row["point"]["accuracy"] = 0.5 + 0.01 * n
    (run / "exits.json").write_text(json.dumps(record))
    return run


def app_of(*sources: Path | str, **settings: Any) -> FastAPI:
    """Return the application of some models."""
    asked = ServeSettings(**settings)
    return create_app(open_models(sources, asked), asked)


def client_of(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    """Return a client of an application in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app, **options), base_url="http://test")


def asking(data: list[Any], datatype: str, shape: list[int], **parameters: Any) -> dict[str, Any]:
    """Return the JSON of a request."""
    tensor = {"name": "image", "datatype": datatype, "shape": shape, "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def said(response: httpx.Response) -> dict[str, Any]:
    """Return the outputs of an answer in JSON by name, and its parameters."""
    assert response.status_code == 200, response.text
    body = response.json()
    return {each["name"]: each["data"] for each in body["outputs"]} | {"parameters": body["parameters"]}
