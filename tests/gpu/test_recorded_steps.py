"""Steps replayed as CUDA graphs: the curve of eager ones for every method, resumed, and side by side."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sidestep.errors import InterruptedRunError
from sidestep.runs.combinations import SweepRun
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.run_folder import open_run
from sidestep.runs.sweep import sweep
from sidestep.runs.train import train
from sidestep.training import loop
from sidestep.training.devices import Devices
from sidestep.training.update import GraphedUpdate, own_stream, record_cuda_graph
from tests.training.test_fit import at_step, rows
from tests.training.test_methods_train import VARIANTS, tiny

GRAPH, EAGER = (Devices(accelerator="cuda", graph=graph, logger="none") for graph in (True, False))
# Whose steps cannot be repeated: what moves with every update, and what waits for the GPU.
UNRECORDED = ("blockdrop", "rdi_net by share", "act", "sact")


def lengthened(recipe: Recipe) -> Recipe:
    """Return a recipe with enough steps of every kind for a recording, and small ones."""
    values = recipe.as_dict()
    values["data"] |= {"limit": 640}
    values["training"] |= {"batch_size": 32}
    for phase in values["training"]["phases"]:
        phase["lr"] = 1 / 512
    return from_dict(values)


def assert_same_curve(one: Path, other: Path, tolerance: float, *, epochs: int | None = None) -> None:
    for left, right in list(zip(rows(one), rows(other), strict=True))[:epochs]:
        assert left["train"].keys() == right["train"].keys()
        for name, value in left["train"].items():
            if name not in ("images_per_s", "lr", "accuracy"):
                assert right["train"][name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return how often a step was recorded, which failed, and which was taken."""
    found = {"recorded": 0, "failed": 0}
    recording, give_up = GraphedUpdate._recording, GraphedUpdate._give_up

    def counted(self: GraphedUpdate, *arguments: Any, **options: Any) -> Any:
        made = recording(self, *arguments, **options)
        found["recorded"] += 1
        return made

    def failed(self: GraphedUpdate, error: RuntimeError) -> None:
        found["failed"] += 1
        give_up(self, error)

    monkeypatch.setattr(GraphedUpdate, "_recording", counted)
    monkeypatch.setattr(GraphedUpdate, "_give_up", failed)
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_recorded_steps_have_the_curve_of_eager_ones(
    variant: str, tmp_path: Path, counts: dict[str, int]
) -> None:
    recipe = lengthened(tiny(variant))
    eager = train(recipe, tmp_path / "eager", devices=EAGER)
    assert counts == {"recorded": 0, "failed": 0}
    recorded = train(recipe, tmp_path / "recorded", devices=GRAPH)
    # Decisions that are drawn part ways with the last bit of a probability, and rewards with them.
    assert_same_curve(eager, recorded, 0.02, epochs=2 if variant == "blockdrop" else None)
    if variant not in UNRECORDED:
        assert counts["recorded"] >= 2 and not counts["failed"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_shares_that_close_in_steps_are_recorded(
    precision: str, tmp_path: Path, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    values = lengthened(tiny("rdi_net, three options")).as_dict()
    values["method"] = {"name": "rdi_net", "router": {"dim": 8, "gamma": 0}, "gate_mode": "share"} | {
        "srm": {"alpha": 0}
    }
    values["model"] = {"name": "cifar_resnet8"}
    values["training"] |= {"precision": precision, "ema_decay": 0.99}
    (phase,) = values["training"]["phases"]
    phase["ramps"] = {"closing": {"start": 0, "end": 1, "until": 0.5, "steps": 2}}
    recipe = from_dict(values)
    eager = train(recipe, tmp_path / "eager", devices=EAGER)
    recorded = train(recipe, tmp_path / "recorded", devices=GRAPH)
    assert counts["recorded"] == 3 and not counts["failed"]
    assert_same_curve(eager, recorded, 0.05)


@pytest.mark.gpu
def test_a_recorded_draw_follows_from_the_seed_of_its_step() -> None:
    device = torch.device("cuda")
    generator = torch.Generator(device)

    def draw() -> dict[str, torch.Tensor]:
        return {"drawn": torch.rand(100, generator=generator, device=device)}

    eager = []
    for seed in (3, 4, 3):
        generator.manual_seed(seed)
        eager.append(draw()["drawn"].clone())
    with own_stream(device):
        repeat = record_cuda_graph(draw, generator)
        for seed, drawn in zip((3, 4, 3), eager, strict=True):
            generator.manual_seed(seed)
            assert torch.equal(repeat()["drawn"], drawn)
    assert not torch.equal(eager[0], eager[1])


@pytest.mark.gpu
def test_a_stopped_run_goes_on_with_the_curve_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = lengthened(tiny("convnet_aig"))
    whole = train(recipe, tmp_path / "whole", devices=GRAPH)
    with monkeypatch.context() as patch:
        # Only eager steps begin anew; the second is far enough.
        at_step(2, lambda: signal.raise_signal(signal.SIGINT), patch)
        with pytest.raises(InterruptedRunError):
            train(recipe, tmp_path / "run", devices=GRAPH)
    train(recipe, tmp_path / "run", resume=True, devices=GRAPH)
    assert_same_curve(whole, tmp_path / "run", 0.02)


@pytest.mark.gpu
def test_replicas_on_streams_are_the_runs_they_would_be_alone(tmp_path: Path) -> None:
    recipe = lengthened(tiny("convnet_aig"))
    runs = [
        SweepRun(
            name=f"seed={seed}",
            recipe=replace(recipe, training=replace(recipe.training, seed=seed)),
            settings={"seed": str(seed)},
        )
        for seed in range(3)
    ]
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert [row.state for row in sweep(runs, together, replicas=3, devices=GRAPH)] == 3 * ["complete"]
    sweep(runs, alone, devices=GRAPH)
    for run in runs:
        assert_same_curve(alone / run.name, together / run.name, 0.02)


@pytest.mark.gpu
def test_weights_of_a_gpu_open_on_a_cpu(tmp_path: Path) -> None:
    folder = train(lengthened(tiny("skipnet")), tmp_path / "run", devices=GRAPH)
    opened = open_run(folder, "last")
    assert {parameter.device.type for parameter in opened.network.parameters()} == {"cpu"}
    decided = opened.network(torch.zeros(2, 3, 16, 16)).decisions
    assert torch.isfinite(decided.weights).all()
