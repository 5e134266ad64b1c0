"""Whatever bytes a client sends, it is told in a sentence, and the server has no error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidestep.serve.app import create_app
from sidestep.serve.served_model import ServedModel
from sidestep.serve.settings import ServeSettings
from tests.serve.served import client_of

NAMES = st.sampled_from(
    ["inputs", "outputs", "parameters", "name", "datatype", "shape", "data", "id", "image", "BYTES", "UINT8",
     "FP32", "budget", "timeout", "priority", "binary_data_size", "exit", "classification", "probabilities"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.just("image"), "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]) | JSON},
    optional={"shape": st.lists(st.integers(-1, 20), max_size=5) | JSON, "data": JSON, "parameters": JSON},
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=2) | JSON},
    optional={"outputs": JSON, "parameters": st.dictionaries(NAMES, SCALARS, max_size=3) | JSON, "id": JSON},
)
BODIES = REQUESTS.map(lambda value: json.dumps(value).encode()) | JSON.map(
    lambda value: json.dumps(value).encode()
)
HEADERS = st.none() | st.integers(-3, 2000).map(str) | st.text("0123456789 -x", max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bodies=st.lists(st.tuples(BODIES | st.binary(max_size=200), st.binary(max_size=20), HEADERS), max_size=4)
)
def test_nonsense_is_told_in_a_sentence(models: list[ServedModel], bodies: list[Any]) -> None:
    app = create_app(models, ServeSettings())

    async def talk() -> list[httpx.Response]:
        async with client_of(app, raise_app_exceptions=False) as client:
            return [
                await client.post(
                    "/v2/models/run/infer",
                    content=body + rest,
                    headers={} if length is None else {"Inference-Header-Content-Length": length},
                )
                for body, rest, length in bodies
            ]

    async def served() -> list[httpx.Response]:
        async with app.router.lifespan_context(app):
            return await talk()

    for response in asyncio.run(served()):
        assert response.status_code in (200, 400, 413, 422), response.text
        if response.status_code != 200:
            assert set(response.json()) == {"error"}
