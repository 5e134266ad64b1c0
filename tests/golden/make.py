"""Twenty steps of every method, and the file of their losses: `python -m tests.golden.make` writes it anew.

A loss that changes says that a method, a network or the order of random numbers has changed; whoever makes
the file anew says why in the commit.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

import sidestep
from tests.training.test_methods_train import JOINT, VARIANTS, tiny

CURVES = Path(__file__).parent / "curves.json"
NUM_STEPS = 20
BATCH_SIZE = 16
# Small: with a rate of 0.01 the rounding of another processor grows to percents of the loss in twenty steps.
LR = 2e-4
# What `test_methods_train` has no variant of, or one in which no stage can halt or rounding grows fast.
MORE: dict[str, dict[str, Any]] = {
    "rdi_net": {
        "method": {"name": "rdi_net", "router": {"dim": 8}},
        "phases": [JOINT | {"name": "warm-up", "train": "blocks", "paths": "uniform"}, JOINT],
    },
    "vanilla": {"method": {"name": "rdi_net", "router": {"dim": 8, "gamma": 0}, "srm": {"alpha": 0}}},
    # In its pre-activation networks rounding grows by ten with every step.
    "act": {"method": {"name": "act"}, "model": {"name": "cifar_resnet14"}},
    "sact": {"method": {"name": "sact"}, "model": {"name": "cifar_resnet14"}},
    "ranet": {
        "method": {"name": "ranet"},
        "model": {"name": "ranet", "scale_list": [1, 2], "blocks": 1, "block_step": 1, "step": 2}
        | {"channels": 8, "growth": 8, "gr_factor": [2, 1], "bn_factor": [2, 1]},
    },
    # It decides by a hash of the pixels, which no rounding may change.
    "random_drop": VARIANTS["random_drop"] | {"data": {"mean": [0.0] * 3, "std": [1.0] * 3}},
    "fixed_path": {"method": {"name": "fixed_path", "path": "1 0 1"}},
    "static": {"method": {"name": "static"}},
}


# Not gates by share, nor batch-shaping: ranks of the images of a batch hang on the last bits of their logits.
def _ranks(name: str) -> bool:
    method = (VARIANTS | MORE)[name]["method"]
    by_share = "share" in (method.get("gate_mode"), method.get("decisions")) or method["name"] == "certainty"
    return by_share or "shaping" in method.get("alive", {})


NAMES = tuple(name for name in dict.fromkeys((*VARIANTS, *MORE)) if not _ranks(name))


def recipe_of(name: str) -> sidestep.Recipe:
    """Return the recipe of twenty steps, shared by its phases."""
    recipe = tiny(name, MORE.get(name))
    phases = [replace(phase, epochs=1, lr=LR) for phase in recipe.training.phases]
    steps = NUM_STEPS // len(phases)
    training = replace(recipe.training, phases=phases, batch_size=BATCH_SIZE, max_steps=steps)
    # Random as it was when the file was made, which says nothing of what is held out.
    data = replace(recipe.data, limit=steps * BATCH_SIZE, workers=0, holdout="random")
    return replace(recipe, data=data, training=training)


def losses_of(recipe: sidestep.Recipe, folder: Path) -> list[float]:
    """Train a recipe into a new folder and return the loss of every step."""
    losses: list[float] = []
    backward = Fabric.backward

    def noting(fabric: Fabric, loss: Tensor, *arguments: Any, **options: Any) -> None:
        losses.append(loss.item())
        backward(fabric, loss, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fabric, "backward", noting)
        sidestep.train(recipe, folder)
    return losses


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: losses_of(recipe_of(name), Path(folder) / name) for name in NAMES}
    lines = [
        f"{json.dumps(name)}: {json.dumps([float(f'{x:.7g}') for x in curves[name]])}" for name in curves
    ]
    CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
