"""Tensors of the Open Inference Protocol: as JSON, and as the bytes of its binary extension."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sidestep.serve.refusal import wrong

DTYPES: dict[str, Any] = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32, "FP64": np.float64}
_MOST_SIDES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """A tensor of a request.

    Attributes:
        name: of the input.
        datatype: "BYTES", "UINT8" or "FP32".
        shape: as the request says.
        raw: its bytes, where the request has it in binary.
        data: its values, where the request has it in JSON.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: memoryview | None
    data: list[Any] | None

    def array(self) -> npt.NDArray[Any]:
        """Return the numbers of a tensor of numbers, in its shape; in binary they are the request's bytes.

        Raises:
            RefusedError: where they do not fit it.
        """
        dtype = np.dtype(DTYPES[self.datatype])
        count = math.prod(self.shape)
        if self.raw is not None:
            if len(self.raw) != count * dtype.itemsize:
                raise wrong(
                    f"input {self.name!r} must have {count * dtype.itemsize} bytes for its shape, got "
                    f"{len(self.raw)}"
                )
            values = np.frombuffer(self.raw, dtype=dtype.newbyteorder("<"))
            return values.astype(dtype, copy=False).reshape(self.shape)
        return self._from_json(dtype, count).reshape(self.shape)

    def _from_json(self, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        try:
            values = np.asarray(self.data)
        except ValueError:  # lists of several lengths
            values = np.empty(0)
        whole = self.datatype == "UINT8"
        if values.size != count or values.dtype.kind not in ("iu" if whole else "iuf"):
            raise wrong(f"data of input {self.name!r} must be {count} numbers for its shape and datatype")
        if whole and values.size and not (values.min() >= 0 and values.max() <= 255):
            raise wrong(f"data of input {self.name!r} must be whole numbers from 0 to 255")
        with np.errstate(over="ignore"):
            return values.astype(dtype)

    def texts(self) -> list[bytes]:
        """Return the elements of a BYTES tensor; in JSON they are Base64.

        Raises:
            RefusedError: where they do not fit its shape.
        """
        count = math.prod(self.shape)
        found = _split(self.raw, self.name) if self.raw is not None else self._decoded()
        if len(found) != count:
            raise wrong(f"input {self.name!r} must have {count} elements for its shape, got {len(found)}")
        return found

    def _decoded(self) -> list[bytes]:
        flat: list[Any] = [self.data]
        while any(isinstance(each, list) for each in flat):
            flat = [inner for each in flat for inner in (each if isinstance(each, list) else [each])]
        try:
            return [base64.b64decode(each, validate=True) for each in flat]
        except (TypeError, ValueError, binascii.Error):
            raise wrong(f"data of input {self.name!r} must be Base64, as BYTES are in JSON") from None


def _split(raw: memoryview, name: str) -> list[bytes]:
    """Return the elements of a BYTES tensor in binary: 4 bytes of length in front of each."""
    found, place = [], 0
    while place < len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        if place + 4 > len(raw) or end > len(raw):
            raise wrong(
                f"input {name!r} must have the length of every element in front of it; one ends too early"
            )
        found.append(bytes(raw[place + 4 : end]))
        place = end
    return found


def read_tensors(header: dict[str, Any], rest: memoryview) -> list[InputTensor]:
    """Return the tensors of a request.

    Args:
        header: its JSON.
        rest: the bytes behind it.

    Raises:
        RefusedError: for what the protocol does not allow.
    """
    found, place = [], 0
    for entry in of_type(header.get("inputs"), list, "inputs"):
        entry = of_type(entry, dict, "every input")
        name, datatype = (
            of_type(entry.get(key), str, f"{key} of every input") for key in ("name", "datatype")
        )
        shape = of_type(entry.get("shape"), list, f"shape of input {name!r}")
        if len(shape) > _MOST_SIDES or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
            raise wrong(f"shape of input {name!r} must be at most {_MOST_SIDES} whole numbers from 0")
        parameters = of_type(entry.get("parameters", {}), dict, f"parameters of input {name!r}")
        raw, size = None, parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(rest) - place:
                raise wrong(f"binary_data_size of input {name!r} must be bytes behind the JSON, got {size!r}")
            raw, place = rest[place : place + size], place + size
        elif "data" not in entry:
            raise wrong(f"input {name!r} must have data, or binary_data_size and bytes behind the JSON")
        data = None if raw is not None else of_type(entry["data"], list, f"data of input {name!r}")
        found.append(InputTensor(name=name, datatype=datatype, shape=tuple(shape), raw=raw, data=data))
    if place != len(rest):
        raise wrong(
            f"the bytes behind the JSON must be those of the inputs, got {len(rest) - place} too many"
        )
    return found


def of_type(value: Any, kind: type, what: str) -> Any:
    """Return a value of JSON that must be of a type.

    Raises:
        RefusedError: naming what it is.
    """
    if not isinstance(value, kind):
        names: dict[type, str] = {list: "a list", dict: "an object", str: "a text"}
        raise wrong(
            f"{what} must be {names[kind]}, got {'nothing' if value is None else type(value).__name__}"
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """A tensor of a response: numbers, or texts as BYTES."""

    name: str
    values: npt.NDArray[Any] | Sequence[str]
    shape: tuple[int, ...]
    binary: bool

    @property
    def datatype(self) -> str:
        """Return what the protocol calls the type of its values."""
        if not isinstance(self.values, np.ndarray):
            return "BYTES"
        return next(name for name, dtype in DTYPES.items() if self.values.dtype == dtype)

    def raw(self) -> bytes:
        """Return its bytes."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()
        encoded = [text.encode() for text in self.values]
        return b"".join(len(each).to_bytes(4, "little") + each for each in encoded)

    def data(self) -> list[Any]:
        """Return its values for JSON, in one list."""
        if isinstance(self.values, np.ndarray):
            values: list[Any] = self.values.ravel().tolist()
            return values
        return list(self.values)


def written(header: dict[str, Any], outputs: Sequence[OutputTensor]) -> tuple[bytes, int | None]:
    """Return the body of a response, and the length of its JSON where bytes stand behind that.

    Args:
        header: its JSON without the outputs.
        outputs: its tensors.
    """
    entries, rest = [], []
    for output in outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if output.binary:
            raw = output.raw()
            entry["parameters"] = {"binary_data_size": len(raw)}
            rest.append(raw)
        else:
            entry["data"] = output.data()
        entries.append(entry)
    text = json.dumps(header | {"outputs": entries}, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([text, *rest]), len(text) if any(output.binary for output in outputs) else None
