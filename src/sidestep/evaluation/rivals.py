"""Static networks in the runtimes that a user would otherwise pick: the rivals of dynamic execution."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidestep.execution.prepare import DTYPES, Precision, cast
from sidestep.layers.first_convolution import first_in_channels

STATIC_PYTORCH = "static pytorch"

# OpenVINO's throughput grows no further with more images a request (ResNet-110 on AVX-512 and AMX).
_OPENVINO_PART = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """A way from images to class scores, with the part that is not timed set apart.

    Attributes:
        convert: (B, 3, H, W) float32 images -> the same as the runtime wants them; not timed.
        run: what `convert` returned -> (B, C) logits, as a tensor or an array; timed.
    """

    convert: Callable[[Tensor], Any]
    run: Callable[[Any], Any]


def static_runners(
    backbone: nn.Module, onnx: bytes | None, precision: Precision, batch_size: int
) -> dict[str, Runner]:
    """Return every static runtime that is installed and knows the precision, by name.

    All use `torch.get_num_threads()` threads.

    Args:
        backbone: prepared, in float32.
        onnx: the same as ONNX (see `export_onnx`), or None for PyTorch alone.
        precision: of weights and features.
        batch_size: images per call.
    """
    runners = {STATIC_PYTORCH: pytorch_runner(backbone, precision)}
    if next(backbone.parameters()).is_cuda:
        runners["static pytorch, CUDA graph"] = cuda_graph_runner(backbone, precision)
    if onnx is not None and installed("onnxruntime") and precision == "float32":
        runners["static onnxruntime"] = onnxruntime_runner(onnx)
    if onnx is not None and installed("openvino") and precision in openvino_precisions():
        runners["static openvino"] = openvino_runner(onnx, precision, batch_size)
    return runners


def int8_networks(onnx: bytes | None, images: Tensor) -> dict[str, Any]:
    """Return a network as every static runtime has quantised it that is installed and does, by its name.

    Args:
        onnx: the network (see `export_onnx`), or None where nothing could run it.
        images: (N, C, H, W) that it is calibrated on.
    """
    found: dict[str, Any] = {}
    if onnx is not None and installed("onnxruntime"):
        found["static onnxruntime"] = onnxruntime_int8(onnx, images)
    if onnx is not None and installed("openvino") and installed("nncf"):
        found["static openvino"] = openvino_int8(onnx, images)
    return found


def int8_runners(networks: Mapping[str, Any], batch_size: int) -> dict[str, Runner]:
    """Return what `int8_networks` has found as ways to run it.

    Args:
        networks: by the names of their runtimes.
        batch_size: images per call.
    """
    return {
        name: onnxruntime_runner(network)
        if isinstance(network, bytes)
        else openvino_runner(network, "float32", batch_size)
        for name, network in networks.items()
    }


def openvino_int8(onnx: bytes, images: Tensor) -> Any:
    """Return a model of OpenVINO that NNCF has quantised after training, as `openvino_runner` takes it.

    Weights are symmetric, activations have zero points where they have two signs (NNCF's preset "mixed").

    Args:
        onnx: the network.
        images: (N, C, H, W) that it is calibrated on.
    """
    with _without_telemetry():
        import nncf
    import openvino

    rows = [row.unsqueeze(0).numpy() for row in images]
    model = openvino.Core().read_model(onnx)
    # What its dependencies deprecate, and its bars of progress, are none of the user's business.
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model, nncf.Dataset(rows), preset=nncf.QuantizationPreset.MIXED, subset_size=len(rows)
        )


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep NNCF from reporting its use over the network: it asks for this variable when it is imported."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before


def onnxruntime_int8(onnx: bytes, images: Tensor) -> bytes:
    """Return a network as ONNX that ONNX Runtime has quantised after training.

    Weights are symmetric int8 by channel, activations uint8 between the extrema seen, in QDQ format, as its
    documentation advises for CPUs with VNNI.

    Args:
        onnx: the network.
        images: (N, C, H, W) that it is calibrated on.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rows = [row.unsqueeze(0).numpy() for row in images]

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.rest = iter(rows)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.rest, None)
            return None if image is None else {"images": image}

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, ready, after = (Path(folder) / f"{name}.onnx" for name in ("float32", "ready", "int8"))
        before.write_bytes(onnx)
        quant_pre_process(before, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            after,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return after.read_bytes()


def export_onnx(backbone: nn.Module, input_size: tuple[int, int]) -> bytes | None:
    """Return the static network as ONNX with a free batch size, or None where nothing installed could run it.

    Args:
        backbone: prepared, on the CPU, in float32; every unit is executed.
        input_size: height and width of the images.
    """
    runs = installed("onnxruntime") or installed("openvino")
    if not (runs and installed("onnx") and installed("onnxscript")):
        return None
    images = torch.zeros(2, first_in_channels(backbone), *input_size)
    return onnx_of(backbone, (images,), dynamic_shapes=({0: "batch"},), names=(["images"], ["logits"]))


def onnx_of(
    module: nn.Module, example: tuple[Tensor, ...], *, dynamic_shapes: Any, names: tuple[list[str], list[str]]
) -> bytes:
    """Return a module as ONNX.

    Args:
        module: on the CPU, in float32.
        example: its arguments.
        dynamic_shapes: of them, as `torch.onnx.export` takes them.
        names: of inputs and outputs.
    """
    with warnings.catch_warnings():
        # The exporter's own deprecations are none of the user's business.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export returns a program when it is given no file")
    onnx: bytes = program.model_proto.SerializeToString()
    return onnx


def pytorch_runner(backbone: nn.Module, precision: Precision) -> Runner:
    """Return PyTorch in eager mode on channels_last maps."""
    return Runner(convert=pytorch_input(precision), run=cast(backbone, precision))


def cuda_graph_runner(backbone: nn.Module, precision: Precision) -> Runner:
    """Return PyTorch on a GPU replaying one graph of all kernels for each size of batch."""
    network, convert = cast(backbone, precision), pytorch_input(precision)
    recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def record(images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        kept, stream = images.clone(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            # Kernels are chosen and loaded before a recording, which could not do that.
            network(kept)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            logits = network(kept)
        return graph, kept, logits

    def run(images: Tensor) -> Tensor:
        if images.shape not in recorded:
            recorded[images.shape] = record(images)
        graph, kept, logits = recorded[images.shape]
        kept.copy_(images)
        graph.replay()
        return logits

    return Runner(convert=convert, run=run)


def pytorch_input(precision: Precision) -> Callable[[Tensor], Tensor]:
    """Return what brings images into a precision and into channels_last."""
    return lambda images: images.to(DTYPES[precision], memory_format=torch.channels_last)


def onnxruntime_session(onnx: bytes) -> Any:
    """Return a session of ONNX Runtime on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def onnxruntime_runner(onnx: bytes) -> Runner:
    """Return ONNX Runtime on the CPU."""
    session = onnxruntime_session(onnx)
    return Runner(convert=_array, run=lambda images: session.run(None, {"images": images})[0])


def openvino_runner(network: Any, precision: Precision, batch_size: int) -> Runner:
    """Return OpenVINO on the CPU: one request with all threads, or several at once where the batch allows.

    A batch that the threads can share evenly is cut into requests of at most 32 images that run in parallel
    streams, as OpenVINO's guide advises for throughput; a single image is run for latency.

    Args:
        network: as `openvino_model` takes it.
        precision: of weights and features.
        batch_size: images per call.
    """
    part = openvino_part(batch_size, torch.get_num_threads())
    compiled = openvino_model(network, precision, part, throughput=part != batch_size)
    requests = [compiled.create_infer_request() for _ in range(batch_size // part)]

    def run(parts: list[Any]) -> Any:
        for request, images in zip(requests, parts, strict=True):
            request.start_async([images], share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor().data for request in requests])

    return Runner(convert=lambda images: np.split(_array(images), len(requests)), run=run)


def openvino_model(network: Any, precision: Precision, batch_size: int, *, throughput: bool = False) -> Any:
    """Return a model of OpenVINO compiled for the CPU, with as many threads as PyTorch has.

    Args:
        network: ONNX, or a model of OpenVINO such as a quantised one, with a free batch size.
        precision: of weights and features.
        batch_size: images per request; -1 for any number.
        throughput: whether several requests run at a time.
    """
    import openvino

    core = openvino.Core()
    # read_model and not convert_model: that one reports its use over the network.
    model = core.read_model(network) if isinstance(network, bytes) else network.clone()
    model.reshape({port: [batch_size, *list(port.partial_shape)[1:]] for port in model.inputs})
    hints = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY",
    }
    return _on_own_thread(lambda: core.compile_model(model, "CPU", hints))


def openvino_part(batch_size: int, threads: int) -> int:
    """Return the images per request: the largest equal share of a thread's share that is 32 or less.

    >>> openvino_part(256, 2), openvino_part(32, 2), openvino_part(1, 2), openvino_part(33, 2)
    (32, 16, 1, 33)
    """
    if batch_size % threads:
        return batch_size
    share = batch_size // threads
    return max(part for part in range(1, min(share, _OPENVINO_PART) + 1) if share % part == 0)


def openvino_precisions() -> set[str]:
    """Return the precisions that OpenVINO has kernels for on this CPU."""
    import openvino

    names = {"FP32": "float32", "BF16": "bfloat16"}
    known = _on_own_thread(lambda: openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return {names[name] for name in known if name in names}


def _on_own_thread(call: Callable[[], Any]) -> Any:
    """Return what `call` returns, run on a thread that ends with it.

    OpenVINO's CPU plugin leaves the thread that loads it with a signal stack that it frees later, and the
    next signal to that thread (a data worker that ends, say) would kill the process.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(call).result()


def _array(images: Tensor) -> Any:
    return images.contiguous().numpy()


def installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
