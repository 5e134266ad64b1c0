"""A rival of the server: plain FastAPI around the static network in ONNX Runtime, one image a call.

Started by serving.py: `python serving_rival.py MODEL.onnx PORT MEAN STD`, with numbers between commas. It
takes the same requests, and answers with the class.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request


def app_of(path: str, mean: np.ndarray, std: np.ndarray) -> FastAPI:
    """Return the application."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    app = FastAPI()

    def run(pixels: np.ndarray) -> int:
        images = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        (logits,) = session.run(None, {name: np.ascontiguousarray(images, dtype=np.float32)})
        return int(logits[0].argmax())

    @app.post("/v2/models/model/infer")
    async def infer(request: Request) -> dict[str, object]:
        body = await request.body()
        length = int(request.headers["inference-header-content-length"])
        shape = json.loads(body[:length])["inputs"][0]["shape"]
        pixels = np.frombuffer(body[length:], np.uint8).reshape(shape)
        best = await asyncio.to_thread(run, pixels)
        return {"outputs": [{"name": "class", "datatype": "INT64", "shape": [1], "data": [best]}]}

    return app


def main() -> None:
    path, port, mean, std = sys.argv[1:]
    numbers = [np.array([float(each) for each in text.split(",")]) for text in (mean, std)]
    app = app_of(path, *numbers)
    print(f"http://127.0.0.1:{port}", file=sys.stderr, flush=True)
    uvicorn.run(app, port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
