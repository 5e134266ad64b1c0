"""The files in `deploy/`: what they say is what the server knows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidestep.cli.main import commands
from sidestep.cli.parse import arguments_of
from sidestep.serve.app import create_app
from sidestep.serve.served_model import ServedModel
from sidestep.serve.settings import ServeSettings
from sidestep.serve.telemetry import Meters
from tests.paths import ROOT

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def resources() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kserve.yaml").read_text()))


def test_the_container_of_kserve_starts_the_server(
    resources: list[dict[str, Any]], models: list[ServedModel]
) -> None:
    (container,) = resources[0]["spec"]["predictor"]["containers"]
    values = arguments_of(commands()["serve"], container["args"])
    assert values["host"] == "0.0.0.0"
    (port,) = container["ports"]
    assert port["containerPort"] == values["port"]
    # The pod is given longer than the server takes at most.
    assert resources[0]["spec"]["predictor"]["terminationGracePeriodSeconds"] > values["limits"].drain_seconds
    paths = create_app(models, ServeSettings()).openapi()["paths"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("readiness", "liveness", "startup")]
    assert all(probe["path"] in paths and probe["port"] == values["port"] for probe in probes)
    annotations = resources[0]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in paths
    assert annotations["prometheus.io/port"] == str(values["port"])


def test_autoscaling_asks_for_metrics_that_there_are(resources: list[dict[str, Any]]) -> None:
    query = resources[1]["spec"]["triggers"][0]["metadata"]["query"]
    meters = Meters()
    meters.budgets.labels("a").observe(0.5)
    page = meters.page().decode()
    asked = set(re.findall(r"sidestep_\w+", query))
    assert asked == {"sidestep_budget_count", "sidestep_budget_sum"}
    assert all(f"\n{name}{{" in page for name in asked)


def test_the_image_starts_the_server_as_its_own_user() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    entry, command = (
        json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", text, re.MULTILINE)
    )
    assert entry == ["sidestep", "serve"]
    values = arguments_of(commands()["serve"], command)
    assert f"EXPOSE {values['port']}" in text and re.search(r"^USER 1000$", text, re.MULTILINE)


def test_the_file_for_ray_is_short() -> None:
    assert len((DEPLOY / "ray_serve.py").read_text().splitlines()) <= 30


@pytest.mark.slow
def test_ray_serves_a_run(run: Path) -> None:
    pytest.importorskip("ray", reason="RAY MISSING: pip install 'ray[serve]'")
    code = (
        "import httpx, ray_serve\n"
        "from ray import serve\n"
        "from tests.serve.served import asking\n"
        "serve.run(ray_serve.server)\n"
        "ask = asking([0] * 768, 'UINT8', [1, 16, 16, 3])\n"
        "answer = httpx.post('http://127.0.0.1:8000/v2/models/run/infer', json=ask, timeout=60)\n"
        "assert answer.status_code == 200 and answer.json()['model_name'] == 'run', answer.text\n"
        "serve.shutdown()\n"
    )
    place = os.pathsep.join([str(DEPLOY), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"SIDESTEP_MODELS": str(run), "PYTHONPATH": place, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
