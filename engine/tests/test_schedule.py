"""Maps that are too large for a core's cache: convolutions made some rows at a time, images one by one."""

from __future__ import annotations

import numpy as np
import plans
import pytest
from sidestep_engine import Engine, Plan
from test_ops import agree, images

# Rows of which a chain takes a third or half at a time, whatever the precision.
SIZES = [(31, 100), (40, 81)]


def answers_agree(plan: Plan, x: np.ndarray, kernels: dict[str, str]) -> None:
    """Check all images, and those of a batch against each alone, for which two threads make whole maps."""
    agree(plan, x, kernels)
    together, alone = Engine(plan, num_threads=1, **kernels), Engine(plan, num_threads=2, **kernels)
    output = together(x)
    for i in range(len(x)):
        np.testing.assert_array_equal(output.logits[i], alone(x[i : i + 1]).logits[0])


def ended(maker: plans.Maker, x: int, inputs: int) -> Plan:
    x = maker.op("avg_pool", **{"in": maker.conv(x, inputs, 8, 1, relu=False)}, kernel=3, stride=3, ceil=True)
    return maker.plan(maker.op("flatten", **{"in": x}), 8)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_inverted_residuals(kernels: dict[str, str], kernel: int, stride: int, same: bool) -> None:
    maker = plans.Maker(seed=kernel)
    x = maker.conv(0, 3, 16, 3)
    a = maker.conv(x, 16, 96, 1, relu=False, activation="relu6")
    padding = {"same": True, "padding": 0} if same else {"padding": kernel // 2}
    b = maker.conv(a, 96, 96, kernel, stride, groups=96, relu=False, activation="hard_swish", **padding)
    keeps_size = stride == 1 and (same or kernel % 2)
    c = maker.conv(b, 96, 16, 1, relu=False, residual=x if keeps_size else None)
    plan = ended(maker, c, 16)
    answers_agree(plan, images(plan, 2, size=SIZES[stride % 2]), kernels)


@pytest.mark.parametrize("size", SIZES)
def test_rows_that_are_read_again_are_not_overwritten(kernels: dict[str, str], size: tuple[int, int]) -> None:
    """What is made lies where a convolution of several rows reads, and maps follow each other without end."""
    maker = plans.Maker()
    x = maker.conv(0, 3, 80, 3)
    for kernel, stride in ((3, 1), (5, 1), (3, 2), (1, 2)):
        a = maker.conv(x, 80, 80, kernel, stride, groups=80, padding=kernel // 2)
        x = maker.conv(a, 80, 80, 1, relu=False, residual=x if stride == 1 else None)
    plan = ended(maker, x, 80)
    answers_agree(plan, images(plan, 2, size=size), kernels)


def test_maps_that_grow_and_shrink(kernels: dict[str, str]) -> None:
    """By as much padding as a convolution may have, by none, and by a stride larger than the kernel."""
    maker = plans.Maker()
    x = maker.conv(0, 3, 16, 3)
    a = maker.conv(x, 16, 96, 1)
    b = maker.conv(a, 96, 96, 3, padding=2, groups=96)
    c = maker.conv(b, 96, 16, 5, padding=0)
    d = maker.conv(c, 16, 16, 1, 3, padding=0, relu=False)
    plan = ended(maker, d, 16)
    answers_agree(plan, images(plan, 2, size=(31, 100)), kernels)


def test_images_on_paths_of_their_own(kernels: dict[str, str]) -> None:
    """Some execute a block with squeeze and excitation, whose operations one image goes through at a time."""
    maker = plans.Maker(seed=1)
    x = maker.conv(0, 3, 16, 3)
    for _ in range(3):
        scores = maker.linear(maker.op("gap", **{"in": x}), 16, 2)

        def execute(x: int = x) -> list[int]:
            a = maker.conv(x, 16, 72, 1)
            a = maker.conv(a, 72, 72, 5, groups=72)
            squeezed = maker.linear(maker.op("gap", **{"in": a}), 72, 24, relu=True)
            excited = maker.op("vmap", **{"in": maker.linear(squeezed, 24, 72)}, function="hard_sigmoid")
            a = maker.op("scale", **{"in": [a, excited]})
            return [maker.conv(a, 72, 16, 1, relu=False, residual=x)]

        x = maker.choose(scores, [lambda x=x: [x], execute])[0]
    plan = ended(maker, x, 16)
    x_images = images(plan, 6, size=(33, 100))
    agree(plan, x_images[:1], kernels)
    paths = {"options": np.array([[0, 1, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])}
    paths["exits"] = np.zeros(6, np.int64)
    engine = Engine(plan, num_threads=1, **kernels)
    output = engine(x_images, **paths)
    for i in range(6):
        alone = engine(x_images[i : i + 1], **{name: path[i : i + 1] for name, path in paths.items()})
        np.testing.assert_array_equal(output.logits[i], alone.logits[0])
