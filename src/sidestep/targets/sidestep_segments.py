"""Runs a folder that `sidestep export --to onnx` has written: NumPy, and ONNX Runtime or OpenVINO, alone.

    segments = Segments("folder")
    answer = segments(np.stack([segments.pixels(picture) for picture in pictures]), budget=0.5)

An image runs one branch of every segment until it leaves; batches shrink, and are divided, in between.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
# Computes a graph: values that it reads by name -> those that it gives, in order.
Graph = Callable[[dict[str, Array], list[str]], list[Array]]
# Values by name: rows of images, in any order, and what is known of each.
Values = dict[str, tuple[Array, Array]]


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
        runtime: "onnxruntime" or "openvino"; "torch" for a folder of its archives; or a function that returns
            what computes a component, given its name.
        num_threads: of the one pool that all segments share; 0 leaves their number to the runtime.
        share_threads: whether ONNX Runtime gets that pool. The pool is the whole process's: other sessions in
            it then need `use_per_session_threads = False` too. False gives every segment threads of its own.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        runtime: str | Callable[[str], Graph] = "onnxruntime",
        num_threads: int = 0,
        share_threads: bool = True,
    ) -> None:
        self.folder = Path(__file__).parent if folder is None else Path(folder)
        manifest = json.loads((self.folder / "manifest.json").read_bytes())
        self.components: dict[str, Any] = manifest["components"]
        self.route: dict[str, Any] = manifest["additional_metadata"]["sidestep"]
        if (version := self.route["format"]) != 1:
            raise ValueError(f"format of the segments must be 1, got {version}; take its own runner")
        makers = {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}
        self.runtime = runtime
        self.make: Any = runtime
        if isinstance(runtime, str):
            if runtime not in makers:
                raise ValueError(f"runtime must be onnxruntime, openvino or torch, got {runtime!r}")
            self.make = makers[runtime](num_threads, share_threads)
        self.classes: list[str] = self.route["classes"]
        self.made: dict[Any, Graph] = {}
        # Of every thread: where the values of a single image lie, and calls that read and write them there.
        self.lasting = threading.local()
        self.asked = (self.folder, runtime, num_threads, share_threads)

    def __reduce__(self) -> Any:
        """Return how a copy is made, in another process too: it loads graphs of its own."""
        return Segments, self.asked

    def __call__(self, images: Array, budget: float | None = None, limits: Any = None) -> Answer:
        """Return what the network says about (N, C, H, W) normalised images, float32.

        Args:
            images: as `pixels` makes them.
            budget: mean MACs as a fraction of the full network's; the largest that the manifest lists up to
                it is taken. None takes the thresholds that the network was exported with.
            limits: instead of a budget, as `leaving` takes them.
        """
        limits = self.limits(budget) if limits is None else limits
        if len(images) == 1:
            return self._alone(self._checked(images), np.asarray(limits, np.float32).reshape(-1))
        rows, answers = zip(*self.leaving(images, limits), strict=True)
        order = np.argsort(np.concatenate(rows))
        return Answer(*(np.concatenate(column)[order] for column in zip(*answers, strict=True)))

    def leaving(self, images: Array, limits: Any) -> Iterator[tuple[Array, Answer]]:
        """Yield images as soon as they leave: the rows that they had, and what the network says about them.

        Args:
            images: as above.
            limits: (E) largest doubts with which images leave, as `limits` finds them, or (N, E) of each.
        """
        images, route = self._checked(images), self.route
        limits, count = np.asarray(limits, np.float32), len(images)
        limits = np.broadcast_to(limits, (count, limits.shape[-1]))
        options, macs = np.full((count, route["num_units"]), -1), np.zeros(count)
        rows, picks = np.arange(count), None
        values: Values = {"images": (rows, images)}
        for segment in route["segments"]:
            rows, values = self._step(segment, rows, values, picks, macs)
            for unit, option in segment["fixed_units"].items():
                options[rows, int(unit)] = option
            decision, picks = segment["decision"], None
            decided = _taker(rows)(values[decision["value"]])
            if decision["kind"] == "choose":
                picks = options[rows, decision["index"]] = decided
                continue
            leave = np.ones(len(rows), bool)
            if decision["kind"] == "exit":
                leave = decided <= limits[rows, decision["index"]]
                if not leave.any():
                    continue
            left = rows[leave]
            logits = _taker(left)(values[decision["logits"]])
            shares = _softmax(logits / decision["temperature"])
            exits = np.full(len(left), decision["index"])
            yield left, Answer(logits, shares, exits, options[left], macs[left])
            if leave.all():
                return
            rows = rows[~leave]

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
        (rows, columns), rule, channels = wanted["size"], wanted.get("preparation"), wanted["channels"]
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != channels:
            raise ValueError(
                f"a picture must be (h, w, {channels}) of uint8, got {picture.shape} of {picture.dtype}"
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
        elif picture.shape[:2] != (rows, columns):
            wish = f"{rows} x {columns}"
            raise ValueError(f"the folder does not say how pictures are resized, so they must be {wish}")
        image = (picture.astype(np.float32) / 255 - np.float32(wanted["mean"])) / np.float32(wanted["std"])
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def graph(self, component: str, alone: bool = False) -> Graph:
        """Return what computes a graph, made when it is asked for first.

        Args:
            component: its name in the manifest.
            alone: whether for one image: OpenVINO is faster where it knows that.
        """
        key = component, alone and self.runtime == "openvino"
        if key not in self.made and callable(self.runtime):
            self.made[key] = self.make(component)
        elif key not in self.made:
            variant = self.components[component]["variants"]["cpu"]
            consumer = variant["executor_info"].get("torch" if self.runtime == "torch" else "ort")
            if consumer is None:
                raise ValueError(f"the folder must hold graphs for {self.runtime}, and has others")
            path = self.folder / variant["variant_directory"] / consumer["model_file"]
            self.made[key] = self.make(str(path), key[1])
        return self.made[key]

    def _checked(self, images: Array) -> Array:
        images, wanted = np.ascontiguousarray(images, np.float32), self.route["input"]
        size = (wanted["channels"], *wanted["size"])
        if images.shape[1:] != size or not len(images):
            text = ", ".join(map(str, size))
            raise ValueError(f"images must be (N, {text}) with N of 1 or more, got {images.shape}")
        return images

    def _alone(self, images: Array, limits: Array) -> Answer:
        """Return what `leaving` says about one image, in fewer steps: behind a graph, which fills the caches,
        each of them takes several times as long."""
        held, calls = self.lasting.__dict__.setdefault("memory", ({"images": np.empty_like(images)}, {}))
        held["images"][...] = images
        options, macs, pick = [-1] * self.route["num_units"], 0.0, 0
        where: dict[str, str] = {}  # values that are another one under a new name
        for segment in self.route["segments"]:
            branch, decision = segment["branches"][pick], segment["decision"]
            for new, old in branch["passes"].items():
                where[new] = where.get(old, old)
            if branch["component"] is not None:
                places = {name: where.get(name, name) for name in branch["inputs"]}
                if (key := (branch["component"], *places.values())) not in calls:
                    calls[key] = self._bound(branch, places, held)
                calls[key]()
            macs, pick = macs + branch["macs"], 0
            for unit, option in segment["fixed_units"].items():
                options[int(unit)] = option
            index, value = decision["index"], held[where.get(decision["value"], decision["value"])]
            if decision["kind"] == "choose":
                options[index] = pick = value.item(0)
            elif decision["kind"] == "end" or value[0] <= limits[index]:
                logits = held[where.get(decision["logits"], decision["logits"])].copy()
                shares = _softmax(logits / decision["temperature"])
                return Answer(logits, shares, np.array([index]), np.array([options], int), np.array([macs]))
        raise AssertionError("the last segment lets every image leave")

    def _bound(self, branch: Any, places: dict[str, str], held: dict[str, Array]) -> Callable[[], Any]:
        """Return what computes a graph from some places in memory, into the places of what it gives."""
        graph, outputs = self.graph(branch["component"], True), branch["outputs"]
        inputs = {name: held[place] for name, place in places.items()}
        if not held.keys() >= set(outputs):
            # How large they are is seen when the graph runs.
            for name, value in zip(outputs, graph(inputs, outputs), strict=True):
                held.setdefault(name, np.array(value))
        bind: Any = getattr(graph, "bind", partial(partial, _copied, graph))
        return bind(inputs, {name: held[name] for name in outputs})  # type: ignore[no-any-return]

    def _step(
        self, segment: Any, rows: Array, values: Values, picks: Array | None, macs: Array
    ) -> tuple[Array, Values]:
        """Return rows and values behind a segment; images that took the same branch lie side by side then."""
        order, parts = [], []
        for branch in segment["branches"]:
            mine = rows if picks is None else rows[picks == branch["option"]]
            if not len(mine):
                continue
            made = {new: values[old] for new, old in branch["passes"].items()}
            if branch["component"] is not None:
                taken = _taker(mine)
                inputs = {name: taken(values[name]) for name in branch["inputs"]}
                found = self.graph(branch["component"], alone=len(mine) == 1)(inputs, branch["outputs"])
                made |= {name: (mine, value) for name, value in zip(branch["outputs"], found, strict=True)}
            macs[mine] += branch["macs"]
            order.append(mine)
            parts.append(made)
        known, rows = values | parts[0], np.concatenate(order) if len(order) > 1 else order[0]
        for name in parts[0] if len(parts) > 1 else ():
            found = [_taker(mine)(part[name]) for part, mine in zip(parts, order, strict=True)]
            known[name] = rows, np.concatenate(found)
        return rows, {name: known[name] for name in segment["live"]}


def _taker(rows: Array) -> Callable[[tuple[Array, Array]], Array]:
    """Return what takes these rows of values: copied when they are read, not when other images leave."""
    places: dict[int, Array | None] = {}  # of these rows among those that values are known for

    def taken(value: tuple[Array, Array]) -> Array:
        known, held = value
        if id(known) not in places:
            place = np.empty(1 + known.max(), int)
            place[known] = np.arange(len(known))
            same = len(known) == len(rows) and (known == rows).all()
            places[id(known)] = None if same else place[rows]
        index = places[id(known)]
        return held if index is None else held.take(index, axis=0)

    return taken


def _copied(graph: Graph, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
    """Compute a graph that cannot be bound, and copy its values to where they are read."""
    for array, value in zip(outputs.values(), graph(inputs, list(outputs)), strict=True):
        array[...] = value


def _onnxruntime(num_threads: int, share_threads: bool) -> Callable[[str, bool], Graph]:
    import onnxruntime

    # Older releases give every session threads of its own.
    shares = share_threads and hasattr(onnxruntime.SessionOptions, "use_per_session_threads")
    if shares:
        try:
            onnxruntime.set_global_thread_pool_sizes(num_threads, 1)
        except Exception as error:  # of a kind that ONNX Runtime does not name
            if "already" not in str(error):
                raise  # the pool of an earlier network is this one's too

    def make(path: str, alone: bool) -> Graph:
        options = onnxruntime.SessionOptions()
        if shares:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
            # Threads that wait for work would take the time of those that have some.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return _Session(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))

    return make


class _Session:
    """A graph in ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def __call__(self, inputs: dict[str, Array], outputs: list[str]) -> list[Array]:
        found: list[Array] = self.session.run(outputs, inputs)
        return found

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Callable[[], Any]:
        """Return what reads and writes arrays where they lie."""
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return partial(self.session.run_with_iobinding, binding)


def _openvino(num_threads: int, share_threads: bool) -> Callable[[str, bool], Graph]:
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    hints |= {"INFERENCE_NUM_THREADS": str(num_threads)} if num_threads else {}

    def make(path: str, alone: bool) -> Graph:
        model = core.read_model(path)
        model.reshape({port: [1 if alone else -1, *list(port.partial_shape)[1:]] for port in model.inputs})
        return _Requests(core.compile_model(model, "CPU", hints), openvino.Tensor)

    return make


class _Requests:
    """A graph in OpenVINO, compiled for the CPU, and OpenVINO's type of tensors."""

    def __init__(self, compiled: Any, tensor: Any) -> None:
        self.compiled, self.tensor = compiled, tensor
        self.request = compiled.create_infer_request()

    def __call__(self, inputs: dict[str, Array], outputs: list[str]) -> list[Array]:
        self.request.infer(inputs, share_inputs=True, share_outputs=True)
        # Copies: the next call writes into the same memory.
        return [self.request.get_tensor(name).data.copy() for name in outputs]

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Callable[[], Any]:
        """Return what reads and writes arrays where they lie."""
        request = self.compiled.create_infer_request()
        for name, array in (*inputs.items(), *outputs.items()):
            request.set_tensor(name, self.tensor(array, shared_memory=True))
        return partial(request.infer, share_outputs=True)


def _torch(num_threads: int, share_threads: bool) -> Callable[[str, bool], Graph]:
    import torch

    def make(path: str, alone: bool) -> Graph:
        module = torch.export.load(path).module()
        run: Any = torch.no_grad()(lambda values: module(*map(torch.from_numpy, values)))
        return lambda inputs, outputs: [each.numpy() for each in run(inputs.values())]

    return make


def _softmax(scores: Array) -> Array:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _resized(pixels: Array, size: int, axis: int, interpolation: str) -> Array:
    """Return uint8 pixels with another number of rows or columns: Pillow's filter, in its fixed point."""
    before, cubic = pixels.shape[axis], interpolation == "bicubic"
    if before == size:
        return pixels
    scale = before / size
    stretch = max(scale, 1.0)
    center, place = (np.arange(size)[:, None] + 0.5) * scale, np.arange(before)
    first, last = (np.trunc(center + side * stretch * (1 + cubic) + 0.5) for side in (-1, 1))
    x = np.abs((place - center + 0.5) / stretch)
    weights = np.maximum(1 - x, 0)
    if cubic:  # Keys' function with a = -1/2
        outer = np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0)
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, outer)
    weights *= (place >= first) & (place < last)
    # 22 bits behind the point, halves away from zero, as Pillow keeps them.
    weights *= (1 << 22) / weights.sum(axis=1, keepdims=True)
    whole = np.sign(weights) * np.floor(np.abs(weights) + 0.5)
    sums = np.tensordot(whole, pixels.astype(np.float64), axes=(1, axis))
    levels = np.clip(np.floor((sums + (1 << 21)) / (1 << 22)), 0, 255).astype(np.uint8)
    return np.moveaxis(levels, 0, axis)
