"""The server as a process, and Triton's own client in front of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.serve.served import asking
from tests.serve.test_app import encoded, pictures, png

pytestmark = pytest.mark.slow


@contextmanager
def server(run: Path, *options: str, command: str = "serve") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a server and where it listens; it is stopped at the end, and must stop in order."""
    typed = [sys.executable, "-m", "sidestep", command, str(run), "--port", "0", *options]
    process = subprocess.Popen(typed, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving at http://(\S+)", line):
                yield process, found[1]
                break
        else:
            raise AssertionError("the server did not start")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stderr.close()
        process.wait()


def ready(place: str) -> triton.InferenceServerClient:
    client = triton.InferenceServerClient(place, concurrency=8)
    for _ in range(600):
        try:
            if client.is_server_ready():
                return client
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not get ready")


def image_input(contents: list[bytes], *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(contents)], "BYTES")
    tensor.set_data_from_numpy(np.array(contents, dtype=np.object_), binary_data=binary)
    return tensor


def test_tritons_client_needs_no_change(run: Path) -> None:
    with server(run, "--deadline-ms", "5000") as (_, place):
        client = ready(place)
        assert client.is_server_live() and client.is_model_ready("run") and client.is_model_ready("run", "1")
        assert client.get_server_metadata()["name"] == "sidestep"
        metadata = client.get_model_metadata("run")
        assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        contents = [png(picture) for picture in pictures(3)]
        whole = client.infer("run", [image_input(contents)], request_id="seven")
        assert whole.get_response()["id"] == "seven"
        probabilities = whole.as_numpy("probabilities")
        assert probabilities.shape == (3, 10)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        assert whole.as_numpy("path").shape == (3, 3) and whole.as_numpy("label").shape == (3,)
        outputs = [
            triton.InferRequestedOutput("probabilities", binary_data=binary) for binary in (False, True)
        ]
        for output in outputs:
            again = client.infer("run", [image_input(contents)], outputs=[output])
            np.testing.assert_allclose(again.as_numpy("probabilities"), probabilities, atol=1e-4)
        best = client.infer(
            "run",
            [image_input(contents)],
            outputs=[triton.InferRequestedOutput("probabilities", class_count=2)],
        ).as_numpy("probabilities")
        assert best.shape == (3, 2) and best[0, 0].decode().split(":")[1] == str(probabilities[0].argmax())
        pixels = np.zeros((2, 16, 16, 3), np.uint8)
        for values, datatype in ((pixels, "UINT8"), (np.zeros((2, 3, 16, 16), np.float32), "FP32")):
            for binary in (True, False):
                tensor = triton.InferInput("image", list(values.shape), datatype)
                tensor.set_data_from_numpy(values, binary_data=binary)
                assert client.infer("run", [tensor]).as_numpy("exit").shape == (2,)
        lowest = metadata["parameters"]["budgets"][0]["budget"]
        cheap = client.infer(
            "run", [image_input(contents[:1])], priority=1, timeout=5_000_000, parameters={"budget": lowest}
        ).get_response()["parameters"]
        assert cheap["budget"] == pytest.approx(lowest) and cheap["exit"] == 0
        for arguments, words in (
            ({"parameters": {"speed": 1}}, "parameter 'speed'"),
            ({"model_name": "other"}, "must be one of run"),
            ({"parameters": {"min_accuracy": 1.0}}, "min_accuracy must be at most"),
        ):
            with pytest.raises(InferenceServerException, match=words):
                client.infer(**{"model_name": "run", "inputs": [image_input(contents)], **arguments})
        client.close()


def test_workers_share_a_port_and_what_they_count(run: Path) -> None:
    with server(run, "--workers", "2") as (_, place):
        ready(place).close()
        for _ in range(6):
            with httpx.Client(base_url=f"http://{place}") as client:
                ask = asking(encoded(1), "BYTES", [1])
                assert client.post("/v2/models/run/infer", json=ask).status_code == 200
                metrics = client.get("/metrics").text
        assert 'sidestep_requests_total{code="200",model="run"} 6.0' in metrics


def test_an_interrupt_while_workers_start_leaves_no_traceback(run: Path) -> None:
    command = [sys.executable, "-m", "sidestep", "serve", str(run), "--port", "0", "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "serving at" in line)
        time.sleep(0.7)
        # As a terminal does: to the workers too, which still import what they need.
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 0 and "Traceback" not in said


def test_workers_end_with_a_server_that_is_killed(run: Path) -> None:
    command = [sys.executable, "-m", "sidestep", "serve", str(run), "--port", "0", "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"serving at http://(\S+)", line) for line in process.stderr)))
        ready(found[1]).close()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        assert len(children) >= 2
        for _ in range(200):
            # Of a zombie that nobody has buried the command line is empty.
            left = [
                pid
                for pid in children
                if (file := Path(f"/proc/{pid}/cmdline")).exists() and file.read_bytes()
            ]
            if not left:
                break
            time.sleep(0.1)
        assert not left


def test_a_stop_answers_what_was_accepted_and_clients_that_hang_are_left(run: Path) -> None:
    body = json.dumps(asking(encoded(8) * 25, "BYTES", [200])).encode()

    async def talk(process: subprocess.Popen[str], place: str) -> list[Any]:
        async with httpx.AsyncClient(base_url=f"http://{place}", timeout=30) as client:
            asked = [asyncio.create_task(client.post("/v2/models/run/infer", content=body)) for _ in range(3)]
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*asked)

    with server(run, "--deadline-ms", "60000", "--client-seconds", "1") as (process, place):
        ready(place).close()
        host, port = place.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as hanging:
            hanging.sendall(b"POST /v2/models/run/infer HTTP/1.1\r\n")
            for _ in range(6):
                time.sleep(0.25)
                try:
                    hanging.sendall(b"X")  # a header without an end
                except OSError:
                    break
            assert hanging.recv(1) == b""
        answers = asyncio.run(talk(process, place))
        assert [answer.status_code for answer in answers] == [200] * 3


def test_a_port_that_is_taken_is_said_in_a_sentence(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = ["-m", "sidestep", "serve", str(run), "--port", str(taken.getsockname()[1])]
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=os.environ, timeout=60
        )
    assert done.returncode == 2 and done.stderr.startswith("sidestep: port ")
