"""The plan: what an engine runs, as one safetensors file whose header says what happens to an image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import save
from torch import Tensor

from sidestep.data.preparation import Interpolation, Preparation
from sidestep.errors import ExecutionError, ExportError
from sidestep.files import write_file

KEY = "sidestep_plan"
NEWEST_VERSION = 5

# What plans of version 2 have beside those of version 1.
_ACTIVATIONS_OF_2 = ("relu6", "silu", "hard_swish", "hard_sigmoid")
ENDS_IN_ACTIVATION = ("conv", "affine", "add", "linear")
_NEW_OPS = ("activate", "crop", "vlog_softmax", "vlogaddexp")
_NEW_FIELDS = ("activation", "same", "interpolation", "antialias")
_NEW_FUNCTIONS = (*_ACTIVATIONS_OF_2, "log")
_NEW_CRITERIA = ("patience", "agreement")
# What plans of version 3 have beside: maps of bytes.
_BYTE_OPS = ("quantize", "dequantize")
_BYTE_FIELDS = ("scale", "weight_scale", "table")
# What plans of version 4 have beside: what networks of tokens and ConvNeXts compute.
TOKEN_OPS = ("layer_norm", "tokens", "attention")
_TOKEN_FIELDS = ("first", "rows")
TOKEN_ACTIVATIONS = ("gelu", "gelu_tanh")
# What an operation may end in.
ACTIVATIONS = (*_ACTIVATIONS_OF_2, *TOKEN_ACTIVATIONS)

# One operation with its fields, and one step, as docs/plan.md describes them.
Op = dict[str, Any]
Step = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A network to run, independent of PyTorch; docs/plan.md specifies both parts.

    Attributes:
        document: the JSON of the header: version, input, classes, steps and output.
        tensors: weights by the names that the steps use, float32 or, of bytes, int8 and uint8.
    """

    document: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def steps(self) -> list[Step]:
        """Return the steps, in order."""
        steps: list[Step] = self.document["steps"]
        return steps

    @property
    def num_units(self) -> int:
        """Return the number of units that are chosen about."""
        return sum("choose" in step for step in self.steps)

    @property
    def num_exits(self) -> int:
        """Return the number of exits in front of the last."""
        return sum("exit" in step for step in self.steps)

    def as_bytes(self) -> bytes:
        """Return the file's content."""
        # JSON has no infinities, which other readers refuse.
        text = json.dumps(self.document, allow_nan=False, separators=(",", ":"))
        # Views of one weight share its memory, which the format does not allow.
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return save(tensors, metadata={KEY: text})


def preparation_entry(preparation: Preparation) -> dict[str, Any]:
    """Return what a plan's input says about a preparation beside size and channels."""
    return {
        "crop_share": preparation.crop_share,
        "interpolation": preparation.interpolation,
        "antialias": True,
        "exif_orientation": True,
    }


def preparation_in(content: bytes) -> Preparation | None:
    """Return how a plan file wants pictures prepared; None for one that does not say.

    Args:
        content: of a file that was read as a plan before.

    Raises:
        ExecutionError: for a preparation that is not known here.
    """
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return preparation_of(json.loads(header["__metadata__"][KEY])["input"])


def preparation_of(images: dict[str, Any]) -> Preparation | None:
    """Return how pictures are prepared by the `input` of a plan or a manifest; errors as above."""
    entry = images.get("preparation")
    if entry is None:
        return None
    rule = f"input.preparation must be as docs/plan.md says, got {entry}"
    try:
        height, width = images["size"]
        preparation = Preparation(
            size=(height, width),
            channels=images["channels"],
            crop_share=entry["crop_share"],
            interpolation=entry["interpolation"],
        )
        known = preparation.interpolation in get_args(Interpolation) and 0 < preparation.crop_share <= 1
    except (KeyError, TypeError, ValueError) as error:
        raise ExecutionError(f"{rule}; export the run again") from error
    if not known or preparation_entry(preparation) != entry:
        raise ExecutionError(f"{rule}; a newer sidestep may know it")
    return preparation


def version_of(steps: list[Step]) -> int:
    """Return the oldest version of the format that can say some steps: engines of that version run them."""
    criteria = [step["exit"]["criterion"] for step in steps if "exit" in step]
    if any(stands_for_real(op) for ops in lists_of_ops(steps) for op in ops):
        return 5
    if any(_is_of_tokens(op) for ops in lists_of_ops(steps) for op in ops):
        return 4
    if any(
        op["op"] in _BYTE_OPS or any(field in op for field in _BYTE_FIELDS)
        for ops in lists_of_ops(steps)
        for op in ops
    ):
        return 3
    is_new = any(criterion in _NEW_CRITERIA for criterion in criteria)
    for ops in lists_of_ops(steps):
        for op in ops:
            is_new |= op["op"] in _NEW_OPS or op.get("function") in _NEW_FUNCTIONS
            is_new |= any(field in op for field in _NEW_FIELDS)
    return 2 if is_new else 1


def stands_for_real(op: Op) -> bool:
    """Return whether an operation has real weights for which int8 stands, which came with version 5."""
    return op.get("weight_scale") is not None and not op.get("scale") and not op.get("in_scale")


def _is_of_tokens(op: Op) -> bool:
    """Return whether an operation came with version 4, or a field of it."""
    functions = (op.get("activation"), op.get("function"))
    return (
        op["op"] in TOKEN_OPS
        or any(field in op for field in _TOKEN_FIELDS)
        or any(function in TOKEN_ACTIVATIONS for function in functions)
    )


def lists_of_ops(steps: list[Step]) -> Iterator[list[Op]]:
    """Yield every list of operations, those of options included, in order."""
    for step in steps:
        if "ops" in step:
            yield step["ops"]
        for option in step.get("options", ()):
            yield option["ops"]


def inputs_of(op: Op) -> list[int]:
    """Return the values that an operation reads."""
    read = op.get("in", [])
    values = [read] if isinstance(read, int) else list(read)
    return values + [op[field] for field in ("residual", "like") if op.get(field) is not None]


def weights_of(op: Op) -> list[str]:
    """Return the names of the tensors that an operation uses."""
    named = ("weight", "bias", "weight_scale", "table")
    return [op[field] for field in named if op.get(field) is not None]


def save_plan(path: Path, plan: Plan) -> int:
    """Write a plan so that at every moment the old file or the whole new one is there; return its bytes.

    Raises:
        ExportError: when it cannot be written, a full disk for example; the old file is untouched.
    """
    content = plan.as_bytes()
    way_out = "choose another file with --out, or free some space"
    write_file(path, content, what="plan", way_out=way_out, error=ExportError)
    return len(content)
