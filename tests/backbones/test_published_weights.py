"""The published static weights give their published accuracy on the real test set."""

import pytest
import torch

from sidestep.backbones.static_weights import load_static_weights
from sidestep.cost.macs import measure_cost
from sidestep.data import DataConfig, load_data
from sidestep.evaluation.report import evaluate_network
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from tests.paths import SHARED

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.skipif(not SHARED.is_dir(), reason="CIFAR-10 and the weights are not beside this checkout")
@pytest.mark.parametrize(
    ("depth", "published", "gflops"),
    [
        pytest.param(20, 0.9173, 0.0811, id="20", marks=pytest.mark.slow),
        pytest.param(32, 0.9263, 0.1377, id="32", marks=pytest.mark.exhaustive),
    ],
)
def test_static_weights_reach_their_accuracy_at_their_cost(
    depth: int, published: float, gflops: float
) -> None:
    path = SHARED / "weights" / f"resnet{depth}-cifar10.safetensors"
    backbone = build_backbone(ModelConfig(name=f"cifar_resnet{depth}"), 10)
    load_static_weights(backbone, path)
    network = RoutedNetwork(backbone).to(memory_format=torch.channels_last)
    data = load_data(DataConfig(source=f"hfds/{SHARED / 'data' / 'cifar10'}", **IMAGENET), splits=["test"])
    assert data.test is not None
    report = evaluate_network(
        network, data.test.eval_batches(batch_size=1000), measure_cost(network, (32, 32)), num_classes=10
    )
    assert report.num_images == 10_000
    assert report.accuracy == pytest.approx(published, abs=5e-4)
    assert report.gflops == pytest.approx(gflops, abs=5e-5)
    assert report.fraction_of_full == 1.0
    assert report.num_paths == 1
