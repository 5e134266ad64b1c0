"""The server in one process: what it answers is what the network says, in the engine and in PyTorch."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image

import sidestep
from sidestep.data.preparation import pixels_of
from sidestep.errors import ServeError
from sidestep.execution.execution import masked
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.export import served
from sidestep.runs.run_folder import open_run
from sidestep.serve import served_model
from sidestep.serve.app import create_app
from sidestep.serve.served_model import ServedModel, open_models
from sidestep.serve.settings import ServeSettings
from tests.serve.served import app_of, asking, client_of, needs_engine, said

INFER = "/v2/models/run/infer"


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (20, 16 + n, 3), dtype=np.uint8)) for n in range(count)]


def png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def encoded(count: int) -> list[str]:
    return [base64.b64encode(png(picture)).decode() for picture in pictures(count)]


def serving(app: FastAPI, talk: Callable[[httpx.AsyncClient], Awaitable[Any]], **options: Any) -> Any:
    """Return what a conversation with an application returns."""

    async def all_of_it() -> Any:
        async with app.router.lifespan_context(app), client_of(app, **options) as client:
            return await talk(client)

    return asyncio.run(all_of_it())


@pytest.fixture(params=[pytest.param("engine", marks=needs_engine), "pytorch"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        monkeypatch.setattr(served_model, "engine_installed", lambda: False)
    name: str = request.param
    return name


def test_answers_are_those_of_masked_execution_at_every_budget(run: Path, runner: str) -> None:
    app = app_of(run, precision="float32", deadline_ms=60_000)
    opened = open_run(run, "best")
    export = served(opened)
    assert export.rule is not None and opened.preparation is not None
    pixels = np.stack([pixels_of(picture, opened.preparation) for picture in pictures(6)])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (export.mean, export.std))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std

    async def talk(client: httpx.AsyncClient) -> list[Any]:
        metadata = (await client.get("/v2/models/run")).json()
        assert metadata["platform"] == f"sidestep_{runner}"
        assert (metadata["parameters"]["fallback"] is None) == (runner == "engine")
        answers = []
        for level in metadata["parameters"]["budgets"]:
            asked = asking(encoded(6), "BYTES", [6], budget=level["budget"])
            asked["outputs"] = [
                {"name": name} for name in ("logits", "exit", "path", "macs", "budget", "label")
            ]
            answers.append(said(await client.post(INFER, json=asked)))
            same = asking(pixels.tolist(), "UINT8", list(pixels.shape), budget=level["budget"])
            floats = asking(images.flatten().tolist(), "FP32", list(images.shape), budget=level["budget"])
            for other in (same, floats):
                again = said(await client.post(INFER, json=other | {"outputs": asked["outputs"]}))
                np.testing.assert_allclose(again["logits"], answers[-1]["logits"], atol=1e-4)
        return answers

    answers = serving(app, talk)
    assert len(answers) == len(export.levels) > 1
    network = sidestep.load(run)
    for level, answer in zip(export.levels, answers, strict=True):
        rule = ExitRule(
            thresholds=level.thresholds,
            criterion=export.rule.criterion,
            temperatures=export.rule.temperatures,
        )
        with torch.no_grad():
            wanted = network(images, rule=rule, execution=masked)
        np.testing.assert_allclose(np.reshape(answer["logits"], (6, -1)), wanted.logits, atol=1e-4)
        assert wanted.decisions.exits is not None and wanted.decisions.asked is not None
        assert answer["exit"] == wanted.decisions.exits.argmax(dim=1).tolist()
        path = torch.where(wanted.decisions.asked > 0, wanted.decisions.paths(), -1)
        assert answer["path"] == path.flatten().tolist()
        np.testing.assert_allclose(answer["macs"], opened.cost.per_sample(wanted.decisions), rtol=1e-6)
        assert answer["budget"] == pytest.approx([level.macs / opened.cost.full] * 6)
        assert answer["label"] == [export.class_names[index] for index in wanted.logits.argmax(dim=1)]


@needs_engine
def test_a_plan_is_served_like_its_run(run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    sidestep.calibrate(run, sidestep.ExitBudget(fraction=0.9, scale=False))
    plan = Path(sidestep.export_run(run).path)
    app = app_of(plan, f"other={plan}", precision="float32", deadline_ms=60_000)

    async def talk(client: httpx.AsyncClient) -> None:
        ask = asking(encoded(2), "BYTES", [2])
        one, other = [
            said(await client.post(f"/v2/models/{name}/infer", json=ask)) for name in ("run", "other")
        ]
        assert one["probabilities"] == other["probabilities"]
        metadata = (await client.get("/v2/models/other/versions/1")).json()
        budgets = metadata["parameters"]["budgets"]
        assert [level["macs"] for level in budgets] == [
            level.macs for level in served(open_run(run, "best")).levels
        ]
        assert [level["accuracy"] for level in budgets] == sorted(level["accuracy"] for level in budgets)

    serving(app, talk)


def test_parameters_choose_budgets(run: Path, runner: str) -> None:
    app = app_of(run, deadline_ms=60_000)

    async def talk(client: httpx.AsyncClient) -> None:
        levels = (await client.get("/v2/models/run")).json()["parameters"]["budgets"]
        lowest, highest = levels[0], levels[-1]

        async def budget_with(**parameters: Any) -> float:
            response = await client.post(INFER, json=asking(encoded(1), "BYTES", [1], **parameters))
            parameters = said(response)["parameters"]
            assert set(parameters) == {"budget", "macs", "exit", "path", "ms", "queue_ms"}
            assert 0 <= parameters["queue_ms"] <= parameters["ms"] < 60_000
            budget: float = parameters["budget"]
            return budget

        assert await budget_with() == highest["budget"]
        assert await budget_with(budget=lowest["budget"]) == lowest["budget"]
        assert await budget_with(budget=1.0, priority=1, timeout=60_000_000) == highest["budget"]
        assert await budget_with(budget_ms=1e9) == highest["budget"]
        assert await budget_with(min_accuracy=lowest["accuracy"]) == highest["budget"]
        for parameters, words in (
            ({"budget": lowest["budget"] / 2}, "budget must be at least"),
            ({"budget_ms": 1e-9}, "budget_ms must be at least"),
            ({"min_accuracy": 1.0}, "min_accuracy must be at most"),
            ({"min_accuracy": highest["accuracy"], "budget": lowest["budget"]}, "takes a budget of"),
            ({"budget": 0}, "budget must be a number above 0"),
            ({"budget": True}, "budget must be a number above 0"),
            ({"timeout": 1.5e99}, "timeout (microseconds)"),
            ({"priority": -1}, "priority must be"),
            ({"speed": 3}, "parameter 'speed' must be one of"),
        ):
            response = await client.post(INFER, json=asking(encoded(1), "BYTES", [1], **parameters))
            assert response.status_code == 400 and words in response.json()["error"]

    serving(app, talk)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"inputs": []}, 400, "inputs must be one tensor, 'image', got none"),
        ({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [""]}]}, 400, "got 'x'"),
        ({"inputs": {}}, 400, "inputs must be a list, got dict"),
        ({"parameters": []}, 400, "parameters must be an object"),
        ({"id": 3}, 400, "id must be a text"),
        ({"outputs": [{"name": "x"}]}, 400, "output 'x' must be one of probabilities"),
        ({"outputs": [{"name": "exit", "parameters": {"classification": 1}}]}, 400, "classification must be"),
        ({"outputs": [{"name": "exit"}, {"name": "exit"}]}, 400, "named once"),
        ({"datatype": "FP16"}, 400, "must be one of BYTES, UINT8, FP32"),
        ({"shape": [0]}, 400, "shape of BYTES must be [N]"),
        ({"shape": [2]}, 400, "must have 2 elements for its shape, got 1"),
        ({"shape": [-1]}, 400, "whole numbers from 0"),
        ({"shape": [9999]}, 413, "at most 64 images"),
        ({"data": ["no base64!"]}, 400, "must be Base64"),
        ({"data": [["aGVsbG8="]]}, 400, "must be an image that Pillow can decode"),
        ({"data": [{"a": []}]}, 400, "must be Base64"),
        ({"datatype": "UINT8", "shape": [1, 16, 16, 3], "data": [256] * 768}, 400, "from 0 to 255"),
        ({"datatype": "UINT8", "shape": [1, 16, 16, 3], "data": [0.5] * 768}, 400, "768 numbers"),
        ({"datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [1] * 192}, 400, "must be [N, 16, 16, 3]"),
        ({"datatype": "FP32", "shape": [1, 3, 16, 16], "data": [[1], [2, 3]]}, 400, "768 numbers"),
        ({"datatype": "FP32", "shape": [1, 3, 16, 16], "data": [1e300] * 768}, 400, "must be finite"),
        ({"datatype": "FP32", "shape": [1, 3, 16, 16], "data": [3e38] * 768}, 422, "scores must be finite"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(
    models: list[ServedModel], change: dict[str, Any], status: int, words: str
) -> None:
    app = create_app(models, ServeSettings(queue=64))
    ask = asking(encoded(1), "BYTES", [1])
    for key, value in change.items():
        (ask["inputs"][0] if key in ("datatype", "shape", "data") else ask)[key] = value

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(INFER, json=ask)

    response = serving(app, talk)
    assert response.status_code == status and words in response.json()["error"]


def test_bodies_and_pictures_have_limits(run: Path) -> None:
    app = app_of(run, max_body_mb=0.01, max_megapixels=0.001, client_seconds=0.05)
    large = json.dumps(asking(["A" * 20_000], "BYTES", [1])).encode()

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(1)
        yield b"}"

    async def pieces() -> Any:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    async def talk(client: httpx.AsyncClient) -> None:
        picture = Image.new("RGB", (40, 40))
        bomb = asking([base64.b64encode(png(picture)).decode()], "BYTES", [1])
        for content, status, words in (
            (large, 413, "at most 10000 bytes"),
            (pieces(), 413, "at most 10000 bytes"),
            (slow(), 408, "within 0.05 s"),
            (json.dumps(bomb).encode(), 413, "at most 1000 pixels, got 1600"),
            (b"[" * 9000, 400, "must be JSON"),
            (b'{"inputs": NaN}', 400, "must be JSON"),
            (b"\xff\xfe", 400, "must be JSON"),
        ):
            response = await client.post(INFER, content=content)
            assert response.status_code == status and words in response.json()["error"]
        headers = {"Content-Encoding": "gzip"}
        assert (await client.post(INFER, content=b"", headers=headers)).status_code == 415
        for length in (b"-1", b"99999", b"x", b"\xb2"):
            headers = {b"Inference-Header-Content-Length": length}
            assert (await client.post(INFER, content=b"{}", headers=headers)).status_code == 400

    serving(app, talk)


@pytest.mark.parametrize("name", ["a/b", "..", "."])
def test_a_name_that_no_address_holds_is_refused(name: str, run: Path) -> None:
    with pytest.raises(ServeError, match=f"names that addresses can hold, got {name!r}; write NAME=PATH"):
        open_models([f"{name}={run}"], ServeSettings())


def test_other_routes(models: list[ServedModel]) -> None:
    app = create_app(models, ServeSettings())

    async def talk(client: httpx.AsyncClient) -> None:
        for path in ("health/live", "health/ready", "models/run/ready", "models/run/versions/1/ready"):
            assert (await client.get(f"/v2/{path}")).status_code == 200
        assert (await client.get("/v2")).json()["name"] == "sidestep"
        assert "BYTES" in (await client.get("/openapi.json")).text
        for path, words in (
            ("/v2/models/other", "model 'other' must be one of run"),
            ("/v2/models/run/versions/2", "version of model 'run' must be 1"),
            ("/nothing", "Not Found"),
        ):
            response = await client.get(path)
            assert response.status_code == 404 and words in response.json()["error"]
        assert (await client.get(INFER)).status_code == 405
        said(await client.post(INFER, json=asking(encoded(1), "BYTES", [1])))
        metrics = (await client.get("/metrics")).text
        assert 'sidestep_requests_total{code="200",model="run"} 1.0' in metrics
        assert 'sidestep_image_seconds_count{model="run"} 1.0' in metrics
        page = await client.get("/")
        assert "{{DATA}}" not in page.text and '"name": "run"' in page.text
        assert "unsafe" not in page.headers["content-security-policy"]

    serving(app, talk)


def test_a_token_guards_all_but_health_and_the_page(models: list[ServedModel], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    app = create_app(models, ServeSettings(token_file=str(tmp_path / "token")))

    async def talk(client: httpx.AsyncClient) -> None:
        for path in ("/", "/v2/health/live", "/v2/health/ready"):
            assert (await client.get(path)).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for path in ("/v2/models/run", "/metrics", "/v2", "/openapi.json"):
                assert (await client.get(path, headers=headers)).status_code == 401
            assert (await client.post(INFER, json={}, headers=headers)).status_code == 401
        good = {"Authorization": "Bearer s3cret"}
        response = await client.post(INFER, json=asking(encoded(1), "BYTES", [1]), headers=good)
        assert response.status_code == 200

    serving(app, talk)
