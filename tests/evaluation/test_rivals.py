"""Static networks in other runtimes: which there are, what they are given, and that they compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.backbones.backbone import Backbone
from sidestep.evaluation import rivals
from sidestep.evaluation.rivals import (
    export_onnx,
    openvino_part,
    openvino_precisions,
    pytorch_input,
    pytorch_runner,
    static_runners,
)
from sidestep.execution.prepare import Precision, prepare
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import lively_backbone


@cache
def exported() -> tuple[Backbone, bytes | None]:
    torch.manual_seed(0)
    backbone = prepare(RoutedNetwork(lively_backbone(8, "B")), strategies.images(2, 0)).backbone
    return backbone, export_onnx(backbone, (8, 8))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Let only some runtimes be installed."""
    monkeypatch.setattr(rivals, "installed", lambda package: package in packages)


def test_without_other_runtimes_pytorch_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    backbone = lively_backbone()
    assert export_onnx(backbone, (8, 8)) is None
    assert list(static_runners(backbone, b"onnx", "float32", 1)) == ["static pytorch"]


@pytest.mark.parametrize("lacking", ["onnx", "onnxscript"])
def test_nothing_is_exported_without_an_exporter(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *({"onnx", "onnxscript", "onnxruntime"} - {lacking}))
    assert export_onnx(lively_backbone(), (8, 8)) is None


@pytest.mark.parametrize(
    ("precision", "known", "names"),
    [
        ("float32", {"float32"}, ["static pytorch", "static onnxruntime", "static openvino"]),
        ("bfloat16", {"float32", "bfloat16"}, ["static pytorch", "static openvino"]),
        ("bfloat16", {"float32"}, ["static pytorch"]),
    ],
)
def test_runtimes_appear_in_precisions_that_they_know(
    precision: Precision, known: set[str], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "onnxruntime", "openvino")
    monkeypatch.setattr(rivals, "openvino_precisions", lambda: known)
    for name in ("onnxruntime_runner", "openvino_runner"):
        monkeypatch.setattr(rivals, name, lambda *settings: None)
    assert list(static_runners(lively_backbone(), b"onnx", precision, 2)) == names
    assert list(static_runners(lively_backbone(), None, precision, 2)) == ["static pytorch"]


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_images_are_converted_before_the_clock_runs(precision: Precision, dtype: torch.dtype) -> None:
    images = strategies.images(2, 0)
    converted = pytorch_input(precision)(images)
    assert converted.dtype == dtype and converted.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(converted.float(), images, rtol=0.01, atol=0.01)


def test_pytorch_in_bfloat16_stays_near_the_backbone() -> None:
    backbone, images = lively_backbone(), strategies.images(4, 0)
    runner = pytorch_runner(backbone, "bfloat16")
    with torch.inference_mode():
        logits = runner.run(runner.convert(images))
        expected = backbone(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)
    assert next(backbone.parameters()).dtype == torch.float32


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime", "openvino"])
def test_static_runtimes_compute_the_logits_of_the_backbone(runtime: str, batch_size: int) -> None:
    if runtime != "pytorch":
        for package in ("onnx", "onnxscript", runtime):
            pytest.importorskip(package)
    (backbone, onnx), images = exported(), strategies.images(batch_size, 1)
    runner = static_runners(backbone, onnx, "float32", batch_size)[f"static {runtime}"]
    with torch.inference_mode():
        actual = torch.as_tensor(runner.run(runner.convert(images)))
        expected = backbone(images)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_in_bfloat16_stays_near_the_backbone(threads: int) -> None:
    for package in ("onnx", "onnxscript", "openvino"):
        pytest.importorskip(package)
    if "bfloat16" not in openvino_precisions():
        pytest.skip("this CPU has no bfloat16")
    torch.set_num_threads(threads)
    (backbone, onnx), images = exported(), strategies.images(4, 1)
    runner = static_runners(backbone, onnx, "bfloat16", 4)["static openvino"]
    with torch.inference_mode():
        actual = torch.as_tensor(runner.run(runner.convert(images)))
        expected = backbone(images)
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("batch_size", "threads", "part"),
    [(1, 1, 1), (1, 2, 1), (2, 2, 1), (32, 2, 16), (256, 2, 32), (33, 2, 33), (256, 16, 16), (100, 2, 25)],
)
def test_every_thread_gets_equal_parts_of_a_batch(batch_size: int, threads: int, part: int) -> None:
    assert openvino_part(batch_size, threads) == part


@given(batch_size=st.integers(1, 600), threads=st.integers(1, 32))
def test_parts_make_up_the_batch_and_keep_all_threads_busy(batch_size: int, threads: int) -> None:
    part = openvino_part(batch_size, threads)
    assert batch_size % part == 0
    assert part == batch_size or (part <= 32 and (batch_size // part) % threads == 0)
