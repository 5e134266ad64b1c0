"""What a run can start from and save: shared weights, other runs, classifiers for other classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sidestep
from sidestep.errors import RecipeError, TrainingError
from sidestep.losses.budget import cost_loss
from sidestep.methods import METHODS, Method
from sidestep.networks.models import build_backbone
from sidestep.routing.relational import RelationalConfig
from sidestep.routing.router import Router
from sidestep.routing.samplers import GumbelSoftmax
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.training.checkpoint import load_checkpoint
from sidestep.training.state import TrainingState
from tests.doubles import lively_backbone, model_config, relational_router


class SharedHeads(Router):
    """One head for all units of a width, under the name of every unit."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        heads = {width: nn.Linear(width, 2) for width in dict.fromkeys(channels)}
        self.heads = nn.ModuleList(heads[width] for width in channels)

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.heads[unit](features.float().mean((2, 3))), state


class Noting(SharedHeads):
    """A router that saves more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedConfig:
    target: float = 0.6
    notes: bool = False


@pytest.fixture
def shared() -> Iterator[str]:
    method = Method(
        name="shared",
        summary="heads that units share",
        settings=SharedConfig,
        router=lambda backbone, settings: (Noting if settings.notes else SharedHeads)(
            [unit.in_channels for unit in backbone.units]
        ),
        sampler=lambda settings, noise: GumbelSoftmax(noise=noise, hard=True),
        losses=lambda output, batch, cost, settings: {
            "cost": cost_loss(output.decisions, settings.target, cost, scope="network")
        },
    )
    METHODS.add(method)
    yield method.name
    METHODS.remove(method.name)


def recipe(method: dict[str, Any], model: dict[str, Any] | None = None, **training: Any) -> Recipe:
    return from_dict(
        {
            "name": "start",
            "method": method,
            "model": {"name": "cifar_resnet14", **(model or {})},
            "data": {"source": "digits", "image_size": 16, "limit": 64, "workers": 0},
            "training": {
                "phases": [{"name": "joint", "epochs": 1, "lr": 0.01}],
                "batch_size": 16,
                **training,
            },
        }
    )


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_router_with_one_head_for_several_units_trains_saves_and_loads(
    shared: str, ema_decay: float, tmp_path: Path
) -> None:
    run = sidestep.train(recipe({"name": shared}, ema_decay=ema_decay), tmp_path / "run")
    network, images = sidestep.load(run), torch.randn(4, 3, 16, 16)
    heads = network.router.heads  # type: ignore[union-attr]
    assert heads[0] is heads[1] and heads[0] is not heads[5]
    again = sidestep.load(run)
    assert torch.equal(network(images).logits, again(images).logits)
    saved = load_checkpoint(run / "best.safetensors").section("model")
    assert torch.equal(saved["router.heads.0.weight"], saved["router.heads.1.weight"])
    assert sidestep.evaluate(run).num_images == 297


def test_what_cannot_be_saved_is_refused_before_a_step(shared: str, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"router\._extra_state must be a tensor to be saved .* got a dict"
    ):
        sidestep.train(recipe({"name": shared, "notes": True}), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_average_moves_a_shared_weight_once_in_a_step() -> None:
    backbone = lively_backbone(14)
    router = relational_router(backbone, RelationalConfig(dim=8, share_gcn="all"))
    network = sidestep.RoutedNetwork(backbone, router)
    state = TrainingState(network, ema_decay=0.75)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(1)
    state.position.steps_done = 1000
    state.average()
    for name, mean in state.evaluated.state_dict().items():
        step = 0.25 if mean.is_floating_point() else 1
        torch.testing.assert_close(mean, before[name] + step, msg=name)


def test_a_run_can_start_from_another_run(tmp_path: Path) -> None:
    method = {"name": "rdi_net", "router": {"dim": 8}}
    first = sidestep.train(recipe(method, ema_decay=0.9), tmp_path / "first")
    for name in ("best", "last"):
        file = first / f"{name}.safetensors"
        start = recipe({"name": "static"}, {"init": str(file)}, phases=[])
        second = sidestep.train(start, tmp_path / name)
        mine, theirs = (sidestep.load(second).backbone, sidestep.load(first, checkpoint=name).backbone)  # type: ignore[union-attr]
        assert torch.equal(mine.conv1.weight, theirs.conv1.weight)


def test_classes_of_another_number_have_a_new_classifier_when_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = build_backbone(model_config("cifar_resnet14"), 7)
    torch.save({"model": theirs.state_dict()}, tmp_path / "w.pth")
    init = {"init": str(tmp_path / "w.pth")}
    with pytest.raises(sidestep.CheckpointError, match=r"for other classes set model\.init_head to new"):
        sidestep.train(recipe({"name": "static"}, init), tmp_path / "refused")
    run = sidestep.train(recipe({"name": "static"}, init | {"init_head": "new"}, phases=[]), tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "the classifier starts anew, with 10 classes; all else is that of" in said
    mine = sidestep.load(run).backbone  # type: ignore[union-attr]
    assert torch.equal(mine.conv1.weight, theirs.conv1.weight) and mine.fc.out_features == 10


def test_a_new_classifier_cannot_be_taught_by_itself(tmp_path: Path) -> None:
    torch.save(build_backbone(model_config("cifar_resnet14"), 10).state_dict(), tmp_path / "w.pth")
    model = {"init": str(tmp_path / "w.pth"), "init_head": "new"}
    with pytest.raises(RecipeError, match=r"init_head must be load with training\.distillation"):
        sidestep.train(recipe({"name": "static"}, model, distillation={"weight": 1.0}), tmp_path / "run")
