"""Efficient networks of timm as plans: the engine says what they say in PyTorch."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from sidestep.networks.whole_network import WholeNetwork
from tests.plan.networks import plan_of
from tests.reference.plan import run_plan

engine = pytest.importorskip("sidestep_engine")

# Narrow ones, and one of every family: ReLU6, hard-swish with squeeze-and-excite, SiLU with it, TensorFlow's
# padding, a head behind the pooling.
NAMES = (
    "efficientnet_lite0",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "mobilenetv4_conv_small_050",
)


def lively(name: str, images: Tensor) -> nn.Module:
    """Return a network in evaluation mode with the statistics of images."""
    torch.manual_seed(3)
    network: nn.Module = timm.create_model(name, num_classes=7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    return network.eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_says_what_the_network_says(name: str) -> None:
    images = torch.randn(3, 3, 50, 64, generator=torch.Generator().manual_seed(1))
    network = lively(name, images)
    plan = plan_of(WholeNetwork(network), (50, 64))
    assert plan.document["version"] == (1 if "v4" in name else 2)
    # Activations are ends of what is in front of them, and squeeze-and-excite is on vectors.
    assert not any(op["op"] == "activate" for step in plan.steps for op in step["ops"])
    with torch.no_grad():
        expected = network(images)
    scale = expected.abs().max()
    loaded = engine.Engine(engine.parse_plan(plan.as_bytes()), precision="float32", num_threads=2)
    for count in (3, 1):
        said = torch.from_numpy(loaded(images[:count].numpy()).logits)
        torch.testing.assert_close(said / scale, expected[:count] / scale, atol=1e-4, rtol=0)
    literal, _, _ = run_plan(plan.document, plan.tensors, images[0])
    torch.testing.assert_close(literal / scale, expected[0] / scale, atol=1e-4, rtol=0)


def test_padding_as_tensorflow_pads_holds_for_other_sizes() -> None:
    images = torch.randn(2, 3, 50, 64, generator=torch.Generator().manual_seed(1))
    network = lively("tf_efficientnet_lite0", images)
    loaded = engine.Engine(
        engine.parse_plan(plan_of(WholeNetwork(network), (50, 64)).as_bytes()), precision="float32"
    )
    for size in ((64, 50), (33, 47)):
        other = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = network(other).numpy()
        assert np.allclose(loaded(other.numpy()).logits, expected, atol=1e-4 * abs(expected).max())
