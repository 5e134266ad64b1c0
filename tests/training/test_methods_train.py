"""Every method: a run that is stopped resumes bit for bit, and gathered evaluation is the masked one."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sidestep
from sidestep.errors import InterruptedRunError, RecipeError
from sidestep.methods import METHODS
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.train import train
from sidestep.training.step import TrainingStep, settings_at
from tests.marks import slow_where
from tests.training.test_fit import assert_same_run, at_step, rows

JOINT = {"name": "joint", "epochs": 2, "lr": 0.01}
VARIANTS: dict[str, dict[str, Any]] = {
    "rdi_net, three options": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "srm": {"alpha": 0}},
        "model": {"options": 3},
    },
    "convnet_aig": {
        "method": {"name": "convnet_aig", "schedule": [1.0, 0.5, 0.7]},
        "model": {"mix": "branch", "shortcut": "B"},
    },
    "codinet": {
        "method": {"name": "codinet", "num_units": 1.5},
        "data": {"views": 4},
        "phases": [JOINT, JOINT | {"name": "fine", "train": "blocks", "settings": {"gate_mode": "argmax"}}],
    },
    "skipnet": {
        "method": {"name": "skipnet"},
        "phases": [
            JOINT,
            JOINT | {"name": "hybrid", "settings": {"decisions": "sampled", "policy_weight": 0.3}},
        ],
    },
    "skipnet, feed-forward": {"method": {"name": "skipnet", "gate": "feedforward1"}},
    "blockdrop": {
        "method": {"name": "blockdrop", "entropy_weight": 0.1},
        "optimizer": {"algorithm": "adam", "weight_decay": 0.0},
        "phases": [
            JOINT | {"name": "policy", "train": "routers", "ramps": {"free_units": {"start": 1, "end": 3}}},
            JOINT | {"settings": {"penalty": -5, "policy_weight": 32, "entropy_weight": 0}},
        ],
    },
    "act": {"method": {"name": "act"}, "model": {"name": "cifar_preact_resnet8"}},
    "sact": {"method": {"name": "sact"}},
    "random_drop": {"method": {"name": "random_drop", "decay": "linear"}},
    "stochastic depth": {
        "method": {"name": "random_drop", "keep_rate": 0.75, "decay": "linear", "evaluate": "all"},
        "model": {"mix": "branch"},
    },
    "ranet": {
        "method": {"name": "ranet"},
        "model": {"name": "ranet", "scale_list": [1, 2], "step": 2, "channels": 4, "growth": 4}
        | {"gr_factor": [2, 1], "bn_factor": [2, 1]},
    },
    "msdnet": {
        "method": {"name": "msdnet"},
        "model": {"name": "msdnet", "num_scales": 2, "blocks": 2, "base": 2, "step": 1, "channels": 4}
        | {"growth": 4, "gr_factor": [1, 2], "bn_factor": [1, 2]},
    },
    "rdi_net by share": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "share", "share": {"learn": True}},
        "phases": [
            JOINT | {"epochs": 1, "settings": {"closing": 0.0}},
            JOINT | {"ramps": {"closing": {"start": 0.0, "end": 1.0, "until": 0.5}}},
        ],
    },
    "convnet_aig by share": {
        "method": {"name": "convnet_aig", "schedule": [1.0, 0.5, 0.7], "gate_mode": "share"},
        "model": {"mix": "branch"},
    },
    "codinet by share": {
        "method": {"name": "codinet", "num_units": 2, "gate_mode": "share"},
        "data": {"views": 4},
    },
    "rdi_net for all budgets": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "share", "budgets": {"low": 0.4}},
    },
    "rdi_net with exits for all budgets": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"}
        | {"cost_scope": "network", "budgets": {"low": 0.5, "distillation": 0.5}},
        "model": {"exits": {"at": ["layer1"], "width": 8}},
    },
    "codinet for all budgets": {
        "method": {"name": "codinet", "num_units": 2, "gate_mode": "share", "budgets": {"low": 0.4}},
        "data": {"views": 4},
    },
    "skipnet by share": {
        "method": {"name": "skipnet", "decisions": "share", "share": {"rate": 0.5}},
    },
    "rdi_net alive": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard", "schedule": [0.9, 0.5, 0.6]}
        | {
            "network_target": 0.7,
            "alive": {"shaping": 0.75, "complexity": 0.05, "marginal": 0.1, "conditional": 0.1}
            | {"variance": 0.2, "explore": 0.1, "draws": 4},
        },
        "phases": [
            JOINT | {"ramps": {"alive.shaping": {"start": 0.75, "end": 0.0, "steps": 2}}},
            JOINT | {"settings": {"alive": {"shaping": 0.0}}},
        ],
    },
    "rdi_net that sees exits": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard", "sees_exits": True},
        "model": {"exits": {"at": ["layer1"], "width": 8}},
    },
    "certainty": {
        "method": {"name": "certainty", "shares": [1.0, 0.5, 0.25]},
        "model": {"exits": {"at": ["layer1"], "width": 8}},
        "phases": [JOINT | {"ramps": {"closing": {"start": 0.0, "end": 1.0, "until": 0.5}}}],
    },
    "rdi_net with exits": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"},
        "model": {"exits": {"at": ["layer1"], "width": 8}},
    },
}


def tiny(variant: str, settings: dict[str, Any] | None = None) -> Recipe:
    """Return the recipe of a variant, or of settings like those of the variants."""
    chosen = settings or VARIANTS[variant]
    return from_dict(
        {
            "name": "tiny",
            "method": chosen["method"],
            "model": {"name": "cifar_resnet8", **chosen.get("model", {})},
            "data": {"source": "digits", "image_size": 16, "limit": 96, **chosen.get("data", {})},
            "training": {
                "phases": chosen.get("phases", [JOINT]),
                "optimizer": chosen.get("optimizer", {}),
                "batch_size": 32,
            },
        }
    )


def test_every_method_is_here() -> None:
    covered = {variant["method"]["name"] for variant in VARIANTS.values()} | {"static", "fixed_path"}
    covered.add("cascade")  # trains nothing, see tests/runs/test_cascade.py
    assert covered == set(METHODS)


# One of every kind: routed, halting, with exits. The others are marked slow.
QUICK = ("rdi_net by share", "rdi_net for all budgets", "act", "msdnet")


@pytest.mark.parametrize("variant", slow_where(lambda name: name not in QUICK, VARIANTS))
def test_a_stopped_run_resumes_bit_for_bit_and_runs_gathered(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny(variant), tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(5, lambda: signal.raise_signal(signal.SIGINT), patch)
        with pytest.raises(InterruptedRunError):
            train(tiny(variant), tmp_path / "run")
    train(tiny(variant), tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")
    masked, gathered = (
        sidestep.evaluate(whole, execution=name).as_dict() | {"execution": ""}
        for name in ("masked", "gathered")
    )
    assert masked == gathered


def gates(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.router.parameters()]  # type: ignore[union-attr,operator]


def test_what_a_phase_sets_holds_in_that_phase_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    forward = TrainingStep.forward

    def watched(self: TrainingStep, *batch: Any) -> Any:
        seen.append((self._phase.name, self._now.decisions))
        return forward(self, *batch)

    monkeypatch.setattr(TrainingStep, "forward", watched)
    folder = train(tiny("skipnet"), tmp_path / "run")
    assert set(seen) == {("joint", "hard"), ("hybrid", "sampled")}
    terms = [set(row["train"]) & {"policy"} for row in rows(folder)]
    assert terms == [set(), set(), {"policy"}, {"policy"}]


def test_a_greedy_pass_leaves_statistics_and_modes_alone() -> None:
    recipe = tiny("blockdrop")
    method = METHODS["blockdrop"]
    from sidestep.cost.macs import measure_cost
    from sidestep.networks.models import build_backbone
    from sidestep.networks.routed import RoutedNetwork
    from tests.doubles import noise

    torch.manual_seed(0)
    backbone = build_backbone(recipe.model, 10)
    network = RoutedNetwork(backbone, method.router(backbone, recipe.settings)).train()
    step = TrainingStep(
        network,
        method=method,
        settings=recipe.settings,
        cost=measure_cost(network, (16, 16)),
        config=recipe.training,
    )
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    step.begin(recipe.training.phases[1], 0.0, noise())
    with torch.no_grad():
        step(images, labels)
    assert all(module.training for module in network.modules())
    assert int(network.backbone.bn1.num_batches_tracked) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decisons": "sampled"}, "decisons is no setting of .*settings; did you mean decisions?"),
        ({"policy_weight": 1}, "policy_weight needs decisions that were drawn"),
        ({"policy_weight": "much"}, "policy_weight must be a number, got 'much'"),
    ],
)
def test_wrong_settings_of_a_phase_are_named(settings: dict[str, Any], message: str) -> None:
    values = tiny("skipnet").as_dict()
    values["training"]["phases"][1]["settings"] = settings
    with pytest.raises(RecipeError, match=message):
        from_dict(values)


def test_what_phases_say_of_settings_inside_of_others_leaves_the_rest_of_these_alone() -> None:
    recipe = tiny("rdi_net alive")
    first, second = recipe.training.phases
    assert settings_at(recipe.settings, first, 0.0) == recipe.settings
    halfway = settings_at(recipe.settings, first, 0.6)
    assert halfway == replace(recipe.settings, alive=replace(recipe.settings.alive, shaping=0.375))
    off = replace(recipe.settings.alive, shaping=0.0)
    assert settings_at(recipe.settings, second, 0.5) == replace(recipe.settings, alive=off)
    assert from_dict(recipe.as_dict()) == recipe


@pytest.mark.parametrize(
    ("ramps", "message"),
    [
        ({"alive.shapin": {"start": 1, "end": 0}}, "alive.shapin is no setting of .* mean alive.shaping"),
        ({"router.gamma": {"start": 1, "end": 0}}, "router.gamma is no setting of numbers of the method"),
        (
            {"alive.shaping": {"start": 1, "end": -1}},
            "ramps take the method where shaping must be at least 0",
        ),
        ({"target": {"start": 1, "end": 0, "steps": 0}}, "steps must be at least 1, got 0"),
    ],
)
def test_wrong_ramps_are_named_before_training(ramps: dict[str, Any], message: str) -> None:
    values = tiny("rdi_net alive").as_dict()
    values["training"]["phases"][0]["ramps"] = ramps
    with pytest.raises(RecipeError, match=message):
        from_dict(values)


def test_what_a_network_is_built_from_cannot_change_in_a_phase() -> None:
    values = tiny("codinet").as_dict()
    values["training"]["phases"][1]["settings"] = {"gate": {"hidden": 4}}
    with pytest.raises(RecipeError, match="gate must stay as it is during training"):
        from_dict(values)


def test_adam_takes_no_momentum() -> None:
    values = tiny("blockdrop").as_dict()
    values["training"]["optimizer"]["nesterov"] = True
    with pytest.raises(RecipeError, match="momentum and nesterov have no effect on adam"):
        from_dict(values)
