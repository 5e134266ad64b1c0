"""Requests and responses of the Open Inference Protocol, version 2, with this server's parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidestep.serve.queueing import Answer
from sidestep.serve.refusal import RefusedError, wrong
from sidestep.serve.settings import MOST_BUDGET
from sidestep.serve.tensors import InputTensor, OutputTensor, of_type, read_tensors

INPUT = "image"
# Outputs by name: datatype and, behind the number of images, what a side is of.
OUTPUTS: dict[str, tuple[str, str]] = {
    "probabilities": ("FP32", "classes"),
    "class": ("INT64", ""),
    "label": ("BYTES", ""),
    "budget": ("FP64", ""),
    "macs": ("FP64", ""),
    "exit": ("INT64", ""),
    "path": ("INT64", "units"),
    "ms": ("FP64", ""),
    "queue_ms": ("FP64", ""),
    "logits": ("FP32", "classes"),
}
DEFAULT_OUTPUTS = tuple(name for name in OUTPUTS if name != "logits")
DEFAULT_PRIORITY = 2
_LARGEST = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a request asks for beside an answer.

    Attributes:
        budget: largest share of the static network's MACs.
        budget_ms: largest mean milliseconds of an image.
        min_accuracy: smallest accuracy of the budget, in [0, 1].
        timeout: seconds after which nobody wants the answer.
        priority: 1 goes first, larger numbers wait for smaller ones.
    """

    budget: float | None = None
    budget_ms: float | None = None
    min_accuracy: float | None = None
    timeout: float | None = None
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedOutput:
    """An output that a request wants.

    Attributes:
        name: of `OUTPUTS`.
        binary: whether as bytes behind the JSON.
        classification: number of best classes, as texts in place of numbers; 0 for all numbers.
    """

    name: str
    binary: bool
    classification: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A request for inference.

    Attributes:
        id: of the request, as the client calls it.
        tensor: the images.
        wishes: its parameters.
        outputs: what it wants.
    """

    id: str | None
    tensor: InputTensor
    wishes: Wishes
    outputs: tuple[AskedOutput, ...]


def halves(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON of a body, and the bytes behind it.

    Args:
        body: all of it.
        header_length: of the JSON, where bytes stand behind it.

    Raises:
        RefusedError: where that is no length.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and int(header_length[:12]) <= length):
            raise wrong(f"Inference-Header-Content-Length must be at most the body's {length} bytes")
        length = int(header_length[:12])
    return body[:length], memoryview(body)[length:]


def read_request(text: bytes, rest: memoryview) -> InferRequest:
    """Return the request in a body.

    Args:
        text: its JSON.
        rest: the bytes behind it.

    Raises:
        RefusedError: for what is no request, in a sentence.
    """
    header = _json(text)
    identity = header.get("id")
    if identity is not None:
        of_type(identity, str, "id")
    tensors = read_tensors(header, rest)
    if len(tensors) != 1 or tensors[0].name != INPUT:
        raise wrong(
            f"inputs must be one tensor, {INPUT!r}, got {', '.join(repr(t.name) for t in tensors) or 'none'}"
        )
    parameters = of_type(header.get("parameters", {}), dict, "parameters")
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise wrong(f"binary_data_output must be true or false, got {binary!r}")
    return InferRequest(
        id=identity,
        tensor=tensors[0],
        wishes=_wishes(parameters),
        outputs=_asked(header.get("outputs"), binary),
    )


def _json(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise wrong(
            f"the request must be JSON, as the Open Inference Protocol says ({type(error).__name__})"
        ) from None
    found: dict[str, Any] = of_type(header, dict, "the request")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _wishes(parameters: dict[str, Any]) -> Wishes:
    known = ("budget", "budget_ms", "min_accuracy", "timeout", "priority", "binary_data_output")
    if unknown := [name for name in parameters if name not in known]:
        raise wrong(f"parameter {unknown[0]!r} must be one of {', '.join(known)}")
    largest = {"budget": MOST_BUDGET, "budget_ms": _LARGEST, "min_accuracy": 1.0, "timeout": _LARGEST}
    number = {
        name: _number(name, parameters[name], most)
        for name, most in largest.items()
        if parameters.get(name) is not None
    }
    priority = parameters.get("priority", 0)
    if type(priority) is not int or not 0 <= priority < 2**31:
        raise wrong(f"priority must be a whole number from 0, got {priority!r}")
    timeout = number.pop("timeout", None)
    return Wishes(
        **number,
        timeout=None if timeout is None else 1e-6 * timeout,
        priority=priority or DEFAULT_PRIORITY,
    )


def _number(name: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        unit = " (microseconds)" if name == "timeout" else ""
        raise wrong(f"{name}{unit} must be a number above 0 and at most {most:g}, got {value!r}")
    return float(value)


def _asked(entries: Any, binary: bool) -> tuple[AskedOutput, ...]:
    if entries is None or entries == []:
        return tuple(AskedOutput(name=name, binary=binary) for name in DEFAULT_OUTPUTS)
    found = []
    for entry in of_type(entries, list, "outputs"):
        name = of_type(of_type(entry, dict, "every output").get("name"), str, "name of every output")
        if name not in OUTPUTS:
            raise wrong(f"output {name!r} must be one of {', '.join(OUTPUTS)}")
        parameters = of_type(entry.get("parameters", {}), dict, f"parameters of output {name!r}")
        if unknown := set(parameters) - {"binary_data", "classification"}:
            raise wrong(
                f"parameter {min(unknown)!r} of output {name!r} must be binary_data or classification"
            )
        as_bytes, classes = parameters.get("binary_data", binary), parameters.get("classification", 0)
        if not isinstance(as_bytes, bool):
            raise wrong(f"binary_data of output {name!r} must be true or false, got {as_bytes!r}")
        if type(classes) is not int or classes < 0 or (classes and OUTPUTS[name][1] != "classes"):
            raise wrong(
                f"classification must be a number of classes, of probabilities or logits, got {classes!r}"
            )
        found.append(AskedOutput(name=name, binary=as_bytes, classification=classes))
    if len({asked.name for asked in found}) < len(found):
        raise wrong("outputs must be named once each")
    return tuple(found)


def outputs_of(
    answers: Sequence[Answer],
    budgets: Sequence[float],
    asked: Sequence[AskedOutput],
    class_names: Sequence[str],
) -> list[OutputTensor]:
    """Return the tensors of a response.

    Args:
        answers: one for every image.
        budgets: with which they were found.
        asked: outputs that the request wants.
        class_names: of the network; numbers stand for those that it has not.

    Raises:
        RefusedError: where an answer is no number, which no JSON can say.
    """
    rows = [answer.row for answer in answers]
    logits = np.stack([row.logits for row in rows])
    if not np.isfinite(logits).all():
        raise RefusedError(
            422, "the network's scores must be finite, and are not; send pixels, or normalised ones"
        )
    # Of a network that is unsure of all classes the probabilities are equal to their last digit.
    best = logits.argmax(axis=1)
    # Made where they are asked for: of many classes some take as long as all the rest of a response.
    values: dict[str, Callable[[], Any]] = {
        "probabilities": lambda: np.stack([row.probabilities for row in rows]),
        "logits": lambda: logits,
        "class": lambda: best.astype(np.int64),
        "label": lambda: [name_of(class_names, index) for index in best],
        "exit": lambda: np.array([row.exit for row in rows], dtype=np.int64),
        "path": lambda: np.stack([row.path for row in rows]).astype(np.int64),
        "budget": lambda: np.array(budgets, dtype=np.float64),
        "macs": lambda: np.array([row.macs for row in rows], dtype=np.float64),
        "ms": lambda: np.array([answer.ms for answer in answers], dtype=np.float64),
        "queue_ms": lambda: np.array([answer.queue_ms for answer in answers], dtype=np.float64),
    }
    found = []
    for each in asked:
        value = values[each.name]()
        if each.classification:
            value = _classified(value, each.classification, class_names)
            shape: tuple[int, ...] = (len(rows), len(value) // len(rows))
        else:
            shape = np.shape(value)
        found.append(OutputTensor(name=each.name, values=value, shape=shape, binary=each.binary))
    return found


def _classified(values: Any, count: int, class_names: Sequence[str]) -> list[str]:
    """Return the best classes of every image as Triton writes them: value:index:name."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return [
        f"{values[image, index]:.6f}:{index}:{name_of(class_names, index)}"
        for image, row in enumerate(order)
        for index in row
    ]


def name_of(class_names: Sequence[str], index: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return class_names[index] if index < len(class_names) else str(index)


def summary(answers: Sequence[Answer], budgets: Sequence[float]) -> dict[str, Any]:
    """Return the parameters of a response: of one image all of it, of several their means."""
    count, rows = len(answers), [answer.row for answer in answers]
    said: dict[str, Any] = {
        "budget": math.fsum(budgets) / count,
        "macs": math.fsum(row.macs for row in rows) / count,
        "ms": max(answer.ms for answer in answers),
        "queue_ms": max(answer.queue_ms for answer in answers),
    }
    if count == 1:
        (row,) = rows
        said |= {"exit": row.exit, "path": path_text(row.path.tolist())}
    return said


def path_text(path: Sequence[int]) -> str:
    """Return a path as a text, a digit for every unit; "-" where the image had left.

    >>> path_text([1, 0, 1, -1])
    '101-'
    """
    return "".join("-" if option < 0 else str(option) for option in path)
