from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator

import pytest
import torch

from sidestep.errors import ExecutionError
from sidestep.evaluation import bench as bench_module
from sidestep.evaluation import rivals
from sidestep.evaluation.bench import BenchResult, bench_network, interleave
from sidestep.evaluation.rivals import openvino_precisions
from sidestep.execution.prepare import prepare
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import lively_backbone, lively_network

ROW_KEYS = ["runtime", "precision", "batch_size", "median_ms", "ms_per_image", "ratio_to_best_static"]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bench_module, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bench_module, "_TURN_SECONDS", 0.002)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "installed", lambda package: False)


def bench(network: RoutedNetwork, **settings: object) -> BenchResult:
    return bench_network(network, input_size=(8, 8), seconds=0.0, **settings)  # type: ignore[arg-type]


def test_a_bench_has_a_row_for_every_runtime_precision_and_batch_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    values = bench(lively_network(8), batch_sizes=(1, 4)).as_dict()
    dynamic = ["masked", "gathered", "static pytorch"]
    low = ["static openvino"] if "bfloat16" in openvino_precisions() else []
    expected = [
        (runtime, precision, batch_size)
        for precision, others in (
            ("float32", ["static onnxruntime", "static openvino"]),
            ("bfloat16", low),
        )
        for batch_size in (1, 4)
        for runtime in dynamic + others
    ]
    assert [(r["runtime"], r["precision"], r["batch_size"]) for r in values["rows"]] == expected
    assert list(values) == ["hardware", "versions", "rows"]
    assert all(list(row) == ROW_KEYS for row in values["rows"])
    assert json.loads(json.dumps(values)) == values
    assert values["versions"].keys() >= {"python", "torch", "onnxruntime", "openvino"}
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_static_runtimes_run_in_int8_and_compete_with_all_precisions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime")
    calibration = strategies.images(8, 3, size=8)
    engine = {"engine": rivals.Runner(convert=lambda images: images, run=lambda images: images)}
    network = lively_network(8)
    result = bench(network, batch_sizes=(4,), calibration=calibration, extra={"int8": engine})
    rows = {row.runtime: row for row in result.rows if row.precision == "int8"}
    assert {"engine", "static onnxruntime"} <= rows.keys()
    assert ("static openvino" in rows) == rivals.installed("nncf")
    best = min(row.median_ms for row in result.rows if row.runtime.startswith("static"))
    for row in rows.values():
        assert row.ratio_to_best_static == pytest.approx(row.median_ms / best)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_network_says_nearly_the_same_when_a_runtime_has_quantised_it(runtime: str) -> None:
    pytest.importorskip("onnxruntime" if runtime == "onnxruntime" else "nncf")
    backbone, images = (
        prepare(lively_backbone(8), strategies.images(2, 3, size=8)),
        strategies.images(32, 3, size=8),
    )
    onnx = rivals.export_onnx(backbone, (8, 8))
    assert onnx is not None
    runner = rivals.int8_runners(rivals.int8_networks(onnx, images), 32)[f"static {runtime}"]
    with torch.no_grad():
        wanted = backbone(images)
    found = torch.as_tensor(runner.run(runner.convert(images)))
    off = (found - wanted).square().mean().sqrt() / wanted.std()
    assert 1e-4 < off < 0.1


@pytest.mark.usefixtures("torch_only")
def test_times_are_per_image_and_relative_to_the_best_static_row() -> None:
    result = bench(lively_network(8), batch_sizes=(4,), precisions=("float32",))
    rows = {row.runtime: row for row in result.rows}
    static = rows["static pytorch"].median_ms
    assert list(rows) == ["masked", "gathered", "static pytorch"]
    assert rows["static pytorch"].ratio_to_best_static == 1.0
    for row in result.rows:
        assert row.median_ms > 0
        assert row.ms_per_image == pytest.approx(row.median_ms / 4)
        assert row.ratio_to_best_static == pytest.approx(row.median_ms / static)


@pytest.mark.usefixtures("torch_only")
def test_a_static_network_has_static_rows_only() -> None:
    result = bench(RoutedNetwork(lively_backbone(8)), batch_sizes=(2,))
    assert [(row.runtime, row.precision) for row in result.rows] == [
        ("static pytorch", "float32"),
        ("static pytorch", "bfloat16"),
    ]


@pytest.mark.usefixtures("torch_only")
def test_the_network_is_left_as_it_was() -> None:
    network = lively_network(8).train()
    before = copy.deepcopy(network.state_dict())
    bench(network, batch_sizes=(2,), images=strategies.images(3, 0))
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("shape", [(4, 3, 16, 8), (0, 3, 8, 8)])
def test_images_of_another_size_are_refused_with_a_way_out(shape: tuple[int, ...]) -> None:
    with pytest.raises(ExecutionError, match=r"images must be .* \(3, 8, 8\), got .*; pass the images"):
        bench(lively_network(8), images=torch.zeros(shape))


@pytest.mark.parametrize(("batch_size", "count"), [(1, 32), (5, 6), (32, 1), (40, 1)])
def test_small_batches_alternate_between_images_and_large_ones_repeat_them(
    batch_size: int, count: int
) -> None:
    batches = bench_module.batches_of(torch.arange(30).view(30, 1, 1, 1), batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * count
    assert torch.cat(batches).flatten().tolist() == [i % 30 for i in range(count * batch_size)]


def test_calls_take_turns_and_their_order_is_reversed() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    medians = interleave(
        {"short": lambda: call("short", 0.003), "long": lambda: call("long", 0.01)}, seconds=0
    )
    turns = ["short", "long", "long", "short", "short", "long"]
    assert order == [name for name in ["short", "long", *turns] for _ in range(2)]
    assert 3 <= medians["short"] < medians["long"]


def test_the_first_call_of_a_turn_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench_module.time, "perf_counter", lambda: now[0])
    steps = iter([0.0015, 0.0005, 0.0007, 0.0009, 0.0004])

    def call() -> None:
        now[0] += next(steps)

    assert bench_module.turn(call) == pytest.approx([0.0005, 0.0007, 0.0009])
    steps = iter([0.9, 0.5])
    assert bench_module.turn(call) == pytest.approx([0.5])
    # What a cold start costs is lost in a second.
    steps = iter([1.2, 1.1])
    assert bench_module.turn(call) == pytest.approx([1.2])
