"""Every method on networks of every kind: it runs, in training and gathered, or is refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sidestep
from sidestep.methods import METHODS
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import from_dict
from tests import strategies
from tests.doubles import noise

NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"name": "cifar_resnet8"},
    "plain, three options": {"name": "cifar_resnet8", "options": 3},
    "plain, branches": {"name": "cifar_resnet8", "mix": "branch"},
    "plain, exits": {"name": "cifar_resnet8", "exits": {"at": ["layer1"]}},
    "preact": {"name": "cifar_preact_resnet8"},
    "photographs": {"name": "resnet10"},
    "timm's ResNet": {"name": "timm/test_resnet"},
    "ConvNeXt": {"name": "timm/test_convnext"},
    "ViT": {"name": "timm/test_vit"},
    "sublayers": {"name": "timm/test_vit", "units": "sublayers"},
}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "certainty": [{"shares": [1, 0.5, 0]}],
    "codinet": [{"num_units": 1}],
    "skipnet": [{}, {"gate": "feedforward1"}, {"gate": "feedforward2"}],
    "blockdrop": [{}, {"policy_depth": 10, "shrink": 2}],
    "fixed_path": [{"num_units": 1, "order": "first"}],
    "random_drop": [{}, {"evaluate": "all", "keep_rate": 0.8}],
}
# Networks that a method refuses, or a variant of it that one of its settings names.
HALTING = {"plain, three options", "plain, exits", "ViT", "sublayers"}
TOKENS = {"ViT", "sublayers"}
REFUSED: dict[str, set[str]] = {
    # Its gates need an exit in front, and these networks have none, or not three units.
    "certainty": NETWORKS.keys() - {"plain, exits"},
    "act": HALTING,
    "sact": HALTING,
    "fixed_path": {"plain, three options"},
    "skipnet": {"plain, three options"},
    "blockdrop": {"plain, three options"},
    "random_drop": {"plain, three options"},
    "feedforward1": TOKENS,
    "feedforward2": TOKENS,
    # It scales branches, which these networks do not let it.
    "all": {"plain", "plain, exits", "photographs"},
}
METHODS_OF_UNITS = [name for name, method in METHODS.items() if method.model is None]
CASES = [(name, settings) for name in METHODS_OF_UNITS for settings in VARIANTS.get(name, [{}])]


def runs(method: str, settings: dict[str, Any], model: dict[str, Any]) -> bool:
    """Run a method on a network in every way, and return False where it is refused."""
    try:
        recipe = from_dict(
            {"method": {"name": method, **settings}, "model": model, "training": {"phases": []}}
        )
        size = 160 if "vit" in model["name"] else 64
        network = untrained(recipe, num_classes=5, input_size=(size, size)).eval()
        assert sidestep.measure_cost(network, (size, size)).full > 0
    except sidestep.RecipeError:
        return False
    images = strategies.images(2, 0, size=size)
    with torch.no_grad():
        output, gathered = network(images), network(images, execution=sidestep.gathered)
        torch.testing.assert_close(gathered.logits, output.logits, rtol=1e-3, atol=1e-3)
    assert output.logits.shape == (2, 5)
    trained = network.train()(images, sampler=METHODS[method].sampler(recipe.settings, noise()))
    trained.logits.sum().backward()
    return True


@pytest.mark.parametrize(("method", "settings"), CASES, ids=lambda part: str(part))
def test_a_method_runs_on_a_network_or_is_refused(method: str, settings: dict[str, Any]) -> None:
    refused = {name for name, model in NETWORKS.items() if not runs(method, settings, model)}
    variant = settings.get("gate", settings.get("evaluate", ""))
    assert refused == REFUSED.get(method, set()) | REFUSED.get(variant, set())
