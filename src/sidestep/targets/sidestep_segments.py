"""Runs a folder that `sidestep export --to onnx` has written: NumPy, and ONNX Runtime or OpenVINO, alone.

    segments = Segments("folder")
    answer = segments(np.stack([segments.pixels(picture) for picture in pictures]), budget=0.5)

An image runs one branch of every segment until it leaves; batches shrink, and are divided, in between.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Answer(NamedTuple):
    """What a network says about N images: (N, C) logits and probabilities, (N,) exits, from 0 on, (N, L)
    options of units (-1 where an image had left before), and (N,) multiply-adds of what was run."""

    logits: Array
    probabilities: Array
    exits: Array
    options: Array
    macs: Array


class Segments:
    """A network in pieces, as docs/segments.md specifies them.

    Args:
        folder: with manifest.json; by default the one in which this file lies.
        runtime: "onnxruntime" or "openvino"; "torch" for a folder of its archives.
        num_threads: of the one pool that all segments share; 0 leaves their number to the runtime.
        share_threads: whether ONNX Runtime gets that pool. The pool is the whole process's: other sessions in
            it then need `use_per_session_threads = False` too. False gives every segment threads of its own.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        runtime: str = "onnxruntime",
        num_threads: int = 0,
        share_threads: bool = True,
    ) -> None:
        if runtime not in ("onnxruntime", "openvino", "torch"):
            raise ValueError(f"runtime must be onnxruntime, openvino or torch, got {runtime!r}")
        self.folder = Path(__file__).parent if folder is None else Path(folder)
        manifest = json.loads((self.folder / "manifest.json").read_bytes())
        self.components: dict[str, Any] = manifest["components"]
        self.route: dict[str, Any] = manifest["additional_metadata"]["sidestep"]
        if self.route["format"] != 1:
            raise ValueError(
                f"format of the segments must be 1, got {self.route['format']}; take its own runner"
            )
        self.runtime, self.num_threads = runtime, num_threads
        self.shares = share_threads and runtime == "onnxruntime"
        self.classes: list[str] = self.route["classes"]
        self._made: dict[Any, Any] = {}
        self._core: Any = None
        if self.shares:
            import onnxruntime

            # Older releases give every session threads of its own.
            self.shares = hasattr(onnxruntime.SessionOptions, "use_per_session_threads")
        if self.shares:
            try:
                onnxruntime.set_global_thread_pool_sizes(num_threads, 1)
            except Exception as error:  # of a kind that ONNX Runtime does not name
                if "already" not in str(error):
                    raise  # the pool of an earlier network is this one's too

    def __call__(self, images: Array, budget: float | None = None) -> Answer:
        """Return what the network says about (N, C, H, W) normalised images, float32.

        Args:
            images: as `pixels` makes them.
            budget: mean MACs as a fraction of the full network's; the largest that the manifest lists up to
                it is taken. None takes the thresholds that the network was exported with.
        """
        images, route = np.ascontiguousarray(images, np.float32), self.route
        size = [route["input"]["channels"], *route["input"]["size"]]
        if list(images.shape[1:]) != size or not len(images):
            raise ValueError(
                f"images must be (N, {', '.join(map(str, size))}) with N of 1 or more, got {images.shape}"
            )
        limits, count = self.limits(budget), len(images)
        logits = np.zeros((count, len(self.classes)), np.float32)
        scales, exits = np.ones((count, 1), np.float32), np.zeros(count, np.int64)
        options, macs = np.full((count, route["num_units"]), -1), np.zeros(count)
        rows, values, picks = np.arange(count), {"images": images}, None
        for segment in route["segments"]:
            rows, values = self._step(segment, rows, values, picks, macs)
            for unit, option in segment["fixed_units"].items():
                options[rows, int(unit)] = option
            decision = segment["decision"]
            picks = None
            if decision["kind"] == "choose":
                picks = values.pop(decision["value"])
                options[rows, decision["index"]] = picks
                continue
            leave = np.ones(len(rows), bool)
            if decision["kind"] == "exit":
                leave = values.pop(decision["value"]) <= limits[decision["index"]]
            left = rows[leave]
            logits[left], exits[left] = values[decision["logits"]][leave], decision["index"]
            scales[left] = decision["temperature"]
            if leave.all():
                break
            if leave.any():
                rows, values = rows[~leave], {name: value[~leave] for name, value in values.items()}
        shares = np.exp(logits / scales - (logits / scales).max(axis=1, keepdims=True))
        return Answer(logits, shares / shares.sum(axis=1, keepdims=True), exits, options, macs)

    def limits(self, budget: float | None) -> list[float]:
        """Return the largest doubt with which images leave at every exit but the last, for a budget."""
        default: list[float] = self.route["limits"]
        if budget is None:
            return default
        known = [entry for entry in self.route["budgets"] if entry["fraction"] <= budget]
        if not known:
            least = min((entry["fraction"] for entry in self.route["budgets"]), default=None)
            way = "this network has none; leave it out" if least is None else f"{least:.3f} is the least here"
            raise ValueError(f"budget must be one that the network was exported with, got {budget}; {way}")
        found: list[float] = max(known, key=lambda entry: entry["fraction"])["limits"]
        return found

    def pixels(self, picture: Array) -> Array:
        """Return a (C, H, W) normalised image of an upright picture, (h, w, C) in uint8: resized with the
        filter that the network was trained with, cropped in the middle, as Pillow computes it."""
        wanted = self.route["input"]
        (rows, columns), rule = wanted["size"], wanted.get("preparation")
        picture = np.asarray(picture)
        channels = wanted["channels"]
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != channels:
            found = f"{picture.shape} of {picture.dtype}"
            raise ValueError(f"a picture must be (h, w, {channels}) of uint8, got {found}")
        if rule is None and picture.shape[:2] != (rows, columns):
            raise ValueError(
                f"the folder does not say how pictures are resized, so they must be {rows} x {columns}"
            )
        if rule is not None:
            (height, width), share = picture.shape[:2], rule["crop_share"]
            high, wide = int(rows / share), int(columns / share)
            tall = height * wide >= width * high
            size = (height * wide // width, wide) if tall else (high, width * high // height)
            for axis in (1, 0):
                picture = _resized(picture, size[axis], axis, rule["interpolation"])
            top, left = round((size[0] - rows) / 2), round((size[1] - columns) / 2)
            picture = picture[top : top + rows, left : left + columns]
        scaled = picture.astype(np.float32) / 255
        image = (scaled - np.float32(wanted["mean"])) / np.float32(wanted["std"])
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def _step(
        self, segment: Any, rows: Array, values: Any, picks: Array | None, macs: Array
    ) -> tuple[Array, Any]:
        """Return rows and values behind a segment; images that took the same branch lie side by side then."""
        branches, parts, order = segment["branches"], [], []
        for branch in branches:
            members = slice(None) if picks is None else np.flatnonzero(picks == branch["option"])
            if isinstance(members, np.ndarray) and len(members) in (0, len(rows)):
                if not len(members):
                    continue
                members = slice(None)
            given = {name: value[members] for name, value in values.items()}
            known = given | {new: given[old] for new, old in branch["passes"].items()}
            if branch["component"] is not None:
                known |= self._run(branch, given)
            macs[rows[members]] += branch["macs"]
            parts.append({name: known[name] for name in segment["live"]})
            order.append(rows[members])
        if len(parts) == 1:
            return order[0], parts[0]
        return np.concatenate(order), {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }

    def _run(self, branch: Any, given: dict[str, Array]) -> dict[str, Array]:
        """Return what the graph of a branch computes."""
        inputs = {name: given[name] for name in branch["inputs"]}
        # OpenVINO is faster where it knows that an image is alone.
        alone = self.runtime == "openvino" and len(next(iter(inputs.values()))) == 1
        key = branch["component"], alone
        if key not in self._made:
            variant = self.components[branch["component"]]["variants"]["cpu"]
            consumer = variant["executor_info"].get("torch" if self.runtime == "torch" else "ort")
            if consumer is None:
                raise ValueError(f"the folder must hold graphs for {self.runtime}, and has others")
            path = self.folder / variant["variant_directory"] / consumer["model_file"]
            self._made[key] = getattr(self, f"_in_{self.runtime}")(str(path), alone)
        return dict(zip(branch["outputs"], self._made[key](inputs, branch["outputs"]), strict=True))

    def _in_onnxruntime(self, path: str, alone: bool) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if self.shares:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads, options.inter_op_num_threads = self.num_threads, 1
            # Threads that wait for work would take the time of those that have some.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda inputs, outputs: session.run(outputs, inputs)

    def _in_openvino(self, path: str, alone: bool) -> Any:
        import openvino

        self._core = self._core or openvino.Core()
        model = self._core.read_model(path)
        model.reshape({port: [1 if alone else -1, *list(port.partial_shape)[1:]] for port in model.inputs})
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        hints |= {"INFERENCE_NUM_THREADS": str(self.num_threads)} if self.num_threads else {}
        request = self._core.compile_model(model, "CPU", hints).create_infer_request()

        def run(inputs: dict[str, Array], outputs: list[str]) -> list[Array]:
            request.infer(inputs, share_inputs=True)
            # Copies: the next call writes into the same memory.
            return [request.get_tensor(name).data.copy() for name in outputs]

        return run

    def _in_torch(self, path: str, alone: bool) -> Any:
        import torch

        module = torch.export.load(path).module()

        def run(inputs: dict[str, Array], outputs: list[str]) -> list[Array]:
            with torch.no_grad():
                return [each.numpy() for each in module(*map(torch.from_numpy, inputs.values()))]

        return run


def _resized(pixels: Array, size: int, axis: int, interpolation: str) -> Array:
    """Return uint8 pixels with another number of rows or columns: Pillow's filter, in its fixed point."""
    before = pixels.shape[axis]
    if before == size:
        return pixels
    scale, radius = before / size, 1.0 if interpolation == "bilinear" else 2.0
    stretch = max(scale, 1.0)
    weights = np.zeros((size, before))
    for place in range(size):
        center = (place + 0.5) * scale
        first = max(int(center - radius * stretch + 0.5), 0)
        last = min(int(center + radius * stretch + 0.5), before)
        x = np.abs((np.arange(first, last) - center + 0.5) / stretch)
        if interpolation == "bilinear":
            row = np.maximum(1 - x, 0)
        else:  # Keys' function with a = -1/2
            row = np.where(
                x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0)
            )
        # 22 bits behind the point, halves away from zero, as Pillow keeps them.
        row = row / row.sum() * (1 << 22)
        weights[place, first:last] = np.sign(row) * np.floor(np.abs(row) + 0.5)
    sums = np.tensordot(weights, pixels.astype(np.float64), axes=(1, axis))
    whole = np.clip(np.floor((sums + (1 << 21)) / (1 << 22)), 0, 255).astype(np.uint8)
    return np.moveaxis(whole, 0, axis)
