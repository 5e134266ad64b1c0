"""What a server says of itself: metadata, the description of its API, and the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import sidestep
from sidestep.serve.protocol import DEFAULT_OUTPUTS, INPUT, OUTPUTS
from sidestep.serve.served_model import ServedModel
from sidestep.serve.settings import MOST_BUDGET

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for code, text in {
        400: "The request is not what the protocol says.",
        401: "A bearer token is needed.",
        404: "There is no such model.",
        408: "The request came too slowly.",
        413: "The request, or an image in it, is too large.",
        415: "The body is compressed.",
        422: "The network's scores are no numbers.",
        429: "The server is busy: even the smallest budget is not enough.",
        504: "The request's timeout ended first.",
    }.items()
}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "budget": {"type": "number", "exclusiveMinimum": 0, "maximum": MOST_BUDGET},
    "budget_ms": {"type": "number", "exclusiveMinimum": 0},
    "min_accuracy": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "timeout": {"type": "integer", "minimum": 1, "description": "microseconds"},
    "priority": {"type": "integer", "minimum": 0, "description": "1 goes first; 0 is the usual one"},
    "binary_data_output": {"type": "boolean"},
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string", "const": INPUT},
        "datatype": {"type": "string", "enum": ["BYTES", "UINT8", "FP32"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 4},
        "data": {"type": "array", "items": {}},
        "parameters": {
            "type": "object",
            "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
        },
    },
}
_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object", "properties": _PARAMETERS, "additionalProperties": False},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "enum": list(OUTPUTS)},
                    "parameters": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "binary_data": {"type": "boolean"},
                            "classification": {"type": "integer", "minimum": 0},
                        },
                    },
                },
            },
        },
    },
}
# The body of a request for inference, as OpenAPI describes it.
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _REQUEST},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def server_metadata() -> dict[str, Any]:
    """Return what the server is."""
    extensions = ["binary_tensor_data", "classification", "parameters", "schedule_policy"]
    return {"name": "sidestep", "version": sidestep.__version__, "extensions": extensions}


def metadata(model: ServedModel) -> dict[str, Any]:
    """Return what a model takes, what it says, and its budgets."""
    (height, width), channels = model.pictures.size, model.pictures.channels
    ladder, runner = model.ladder, model.runners[0]
    sides = {"classes": len(model.class_names) or -1, "units": -1}
    return {
        "name": model.name,
        "versions": ["1"],
        "platform": f"sidestep_{runner.name}",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, sides[side]] if side else [-1]}
            for name, (datatype, side) in OUTPUTS.items()
        ],
        "parameters": {
            "default_outputs": list(DEFAULT_OUTPUTS),
            "other_inputs": [
                {"name": INPUT, "datatype": "UINT8", "shape": [-1, height, width, channels]},
                {"name": INPUT, "datatype": "FP32", "shape": [-1, channels, height, width]},
            ],
            "budgets": [
                {"budget": rung.budget, "macs": rung.macs, "accuracy": rung.accuracy, "ms": ladder.ms(number)}
                for number, rung in enumerate(ladder.rungs)
                if ladder.bottom <= number <= ladder.top
            ],
            "precision": runner.precision,
            "threads": runner.num_threads,
            "fallback": model.fallback,
            "about": model.about,
        },
    }


def page(models: Sequence[ServedModel], *, needs_token: bool) -> tuple[str, str]:
    """Return the page to drop an image on, and its content security policy.

    Args:
        models: that can be asked.
        needs_token: whether it has to ask for a token.
    """
    known = {
        "models": [
            {
                "name": model.name,
                "budgets": [rung.budget for rung in model.ladder.rungs[: model.ladder.top + 1]],
            }
            for model in models
        ],
        "needsToken": needs_token,
    }
    # In a script no text may look like the end of it.
    data = json.dumps(known).replace("<", "\\u003c")
    text = files("sidestep.serve").joinpath("page.html").read_text(encoding="utf-8").replace("{{DATA}}", data)
    hashes = {
        kind: " ".join(_hash(part) for part in re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL))
        for kind in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(part: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
