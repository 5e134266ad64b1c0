"""Single operations: what a plan makes of a function of the image, against the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.errors import ExportError
from sidestep.plan.lowering import Constant
from sidestep.plan.simplify import simplify
from sidestep.plan.tracing import call, symbolic_image, traced_of
from sidestep.plan.writer import Writer
from tests import strategies
from tests.doubles import enliven
from tests.reference.plan import run_plan

WEIGHT = strategies.images(1, 7, size=4)[0, :, :3, :3].contiguous()
POSITIONS = strategies.images(1, 2, size=9).flatten(2).transpose(1, 2).contiguous()
NORM = nn.BatchNorm2d(3).eval()
CELL = nn.LSTMCell(3, 4)
VECTOR_NORM = nn.BatchNorm1d(3).eval()
enliven(nn.ModuleList([NORM, VECTOR_NORM]))


def pooled(images: Tensor) -> Tensor:
    return images.mean((2, 3))


def in_place(images: Tensor) -> Tensor:
    """Change a part of a vector, which a view of it then shows."""
    vector = pooled(images) + 1
    part = vector[:, 1:]
    part.mul_(3).relu_()
    return vector + part.sum()


def recurrent(images: Tensor) -> Tensor:
    """Return the state behind two steps, the first of which begins with zeros."""
    state = CELL(pooled(images))
    return torch.cat(CELL(pooled(images) * 2, state), dim=1)


def pixels(images: Tensor) -> Tensor:
    """Return a linear layer written as timm does."""
    weight = WEIGHT[:, :, 0].view(3, 3, 1, 1)
    return F.conv2d(images.mean((2, 3), keepdim=True), weight, WEIGHT[0, 0])[..., 0, 0]


def middle_of(images: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of images."""
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def same(images: Tensor, stride: int) -> Tensor:
    """Return a convolution of timm that pads as TensorFlow does."""
    return conv2d_same(images, WEIGHT[:, None], stride=(stride, stride), groups=3)


def layers(images: Tensor) -> Tensor:
    normal = F.layer_norm(pooled(images), (3,))
    return F.layer_norm(normal + pooled(images), (3,), WEIGHT[0, 0], WEIGHT[1, 1], 1e-3)


def linear_pixels(images: Tensor) -> Tensor:
    """Return what a ConvNeXt does with pixels whose channels lie last, added to them."""
    normal = F.layer_norm(images.permute(0, 2, 3, 1), (3,), WEIGHT[0, 0], WEIGHT[1, 0], 1e-3)
    hidden = F.gelu(F.linear(normal, WEIGHT[0])) + F.gelu(F.linear(normal, WEIGHT[1]), approximate="tanh")
    return images + (F.linear(hidden, WEIGHT[1], WEIGHT[2, 0]) * WEIGHT[2, 1]).permute(0, 3, 1, 2)


def tokens_of(images: Tensor) -> Tensor:
    return images.flatten(2).transpose(1, 2)


def attending(images: Tensor, **settings: Any) -> Tensor:
    """Return attention of pixels to each other by three heads, whose parts are made together."""
    parts = F.linear(tokens_of(images), WEIGHT.view(9, 3)).view(1, -1, 3, 3, 1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(*parts.unbind(0), **settings)
    return attended.transpose(1, 2).flatten(2).transpose(1, 2).reshape(images.shape)


def attending_apart(images: Tensor) -> Tensor:
    """Return the same by one head, whose parts are made apart."""
    parts = [F.linear(tokens_of(images), weight)[:, None] for weight in WEIGHT]
    return F.scaled_dot_product_attention(*parts)[:, 0].transpose(1, 2).reshape(images.shape)


def with_tokens(images: Tensor) -> Tensor:
    """Return a token in front of pixels with positions, and the mean of some, behind layers."""
    tokens = torch.cat([WEIGHT[:1, :1], tokens_of(images) + POSITIONS], dim=1)
    tokens = F.relu(F.linear(tokens + torch.cat([WEIGHT[:1, 1:2], POSITIONS], dim=1), WEIGHT[2]))
    return torch.cat([tokens[:, 0], tokens[:, 2:].mean(1), tokens.mean(dim=1)], dim=1)


VECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "views": lambda x: pooled(x).view(3, 1).permute(1, 0).unsqueeze(2).squeeze(0).expand(3, 2).flatten()[1:5],
    "stacks": lambda x: torch.stack([pooled(x), torch.ones(1, 3)], dim=2).transpose(1, 2)[:, 1] * pooled(x),
    "splits": lambda x: torch.cat(pooled(x).split([1, 2], dim=1)[::-1], dim=1).flip(1).exp(),
    "chunks": lambda x: sum(pooled(x).chunk(3, dim=1)) - 1,
    "unbinds": lambda x: torch.stack(pooled(x)[0].unbind()[::2]).tanh(),
    "normalises_pixels": lambda x: NORM(x.mean((2, 3), keepdim=True)),
    "spreads": lambda x: pooled(x)[:, :1] * pooled(x) - pooled(x)[:, :, None],
    "numbers": lambda x: (2 - pooled(x)) / 3 + (-pooled(x)) * 1.5 - 1,
    "divides": lambda x: pooled(x) / (pooled(x).norm(dim=1, keepdim=True).clamp_min(1e-3) + 1),
    "means": lambda x: pooled(x).mean() + pooled(x).sum(dim=1) - pooled(x).mean(dim=1, keepdim=True),
    "compares": lambda x: F.cosine_similarity(pooled(x), pooled(x).sigmoid(), dim=1),
    "activates": lambda x: F.relu6(pooled(x)) + F.silu(pooled(x)) * F.hardswish(4 * pooled(x)),
    "gates": lambda x: F.hardsigmoid(pooled(x)) + F.silu(F.linear(pooled(x), WEIGHT[0])).exp().log(),
    "softmax": lambda x: torch.logaddexp(pooled(x).log_softmax(dim=1), (2 * pooled(x)).log_softmax(dim=-1)),
    "gelu": lambda x: F.gelu(4 * pooled(x)) + F.gelu(9 * pooled(x), approximate="tanh"),
    "normalises_layers": layers,
    "selects_tokens": with_tokens,
    "rectifies": lambda x: F.leaky_relu(pooled(x), 0.2) + F.relu(pooled(x)).sqrt(),
    "normalises": lambda x: VECTOR_NORM(pooled(x)),
    "multiplies": lambda x: F.linear(pooled(x), WEIGHT[0], WEIGHT[1, 0]),
    "multiplies_pixels": pixels,
    "flattens": lambda x: F.max_pool2d(x, 4, padding=1).flatten(1),
    "recurs": recurrent,
    "in_place": in_place,
    "constant": lambda x: torch.full_like(pooled(x), -torch.inf).index_fill(1, torch.tensor([1]), 2.0),
}  # fmt: skip
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "convolves": lambda x: F.conv2d(x, WEIGHT[:, None], stride=2, padding=1, groups=3),
    "normalises": lambda x: NORM(F.conv2d(x, WEIGHT[:, None], groups=3, padding=1)) + NORM(x),
    "scales": lambda x: x * pooled(x).sigmoid()[..., None, None],
    "shifts": lambda x: 2 * x * WEIGHT[:, :1, :1] + 1,
    "pools": lambda x: F.avg_pool2d(F.max_pool2d(x, 3, stride=2, padding=1), 2, ceil_mode=True),
    "pads": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)),
    "strides": lambda x: F.relu(x[:, :, ::3, ::3]),
    "joins": lambda x: torch.cat([x, F.leaky_relu(x, 0.3)], dim=1),
    "activates": lambda x: F.silu(4 * x) + F.hardswish(4 * x) + F.hardsigmoid(x) + x.sigmoid(),
    "cuts_off": lambda x: F.relu6(F.conv2d(8 * x, WEIGHT[:, None], groups=3, padding=1)) + x.clamp(min=0),
    "excites": lambda x: x * pixels(F.silu(x))[..., None, None].sigmoid(),
    "linear_pixels": linear_pixels,
    "attends": attending,
    "attends_apart": attending_apart,
    "crops": lambda x: F.relu(middle_of(x, 5, 4)),
    "smooths": lambda x: F.interpolate(middle_of(x, 6, 6), (4, 3), mode="bilinear", antialias=True),
    "smooths_cubic": lambda x: F.interpolate(x, (5, 16), mode="bicubic", antialias=True),
    "pads_as_tensorflow": lambda x: F.silu(same(same(x, 2), 2)),
    "pads_evenly": lambda x: F.conv2d(F.pad(x, [1, 1, 1, 1]), WEIGHT[:, None], groups=3, padding=1),
    "permutes": lambda x: x.permute(0, 2, 3, 1).clone().permute(0, 3, 1, 2).relu(),
}
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "rows": (lambda x: F.relu(x[:, :, ::2]), r"takes rows and columns in steps \(2, 1\)"),
    "order": (
        lambda x: F.max_pool2d(x.permute(0, 2, 3, 1), 2),
        "uses aten.max_pool2d_with_indices.default on",
    ),
    "layers": (lambda x: F.layer_norm(x, (9, 9)), "uses aten.native_layer_norm.default on maps"),
    "columns": (
        lambda x: F.layer_norm(tokens_of(x).transpose(1, 2), (81,)),
        "normalises along other dimensions",
    ),
    "mask": (lambda x: attending(x, is_causal=True), "attends with a mask|uses aten"),
    "scale": (lambda x: attending(x, scale=0.3), "scales attention by 0.3"),
    "weights_of_parts": (
        lambda x: torch.bmm(tokens_of(x).expand(3, -1, -1), WEIGHT.view(3, 3, 3)),
        "multiplies parts of a map by weights of their own",
    ),
    "tokens": (lambda x: torch.cat([tokens_of(x), tokens_of(x)], dim=1), "joins maps in another order"),
    "sums": (
        lambda x: tokens_of(x) + x.flatten(2).flip(2).transpose(1, 2),
        "computes with two maps in different",
    ),
    "gates_pixels": (lambda x: tokens_of(x) * torch.rand(1, 81, 3), "multiplies every pixel|draws random"),
    "noise": (lambda x: pooled(x) + torch.rand(3), "draws random numbers"),
    "part": (lambda x: x[:, :, 1:], "takes a part of a map"),
    "kernel": (lambda x: F.max_pool2d(x, (3, 1)), r"takes maxima by \[3, 1\], and plans by one number"),
    "dilation": (
        lambda x: F.conv2d(x, WEIGHT[:, None], groups=3, dilation=2),
        "convolves transposed, dilated",
    ),
    "space": (lambda x: x.mean(3), r"averages a map over dimensions \[3\], and plans over space"),
    "pixels": (lambda x: F.adaptive_avg_pool2d(x, 2), "uses aten._adaptive_avg_pool2d|averages to"),
    "border": (lambda x: F.relu(F.pad(x, (1, 1, 1, 1))), r"pads a map by \[1, 1, 1, 1\]"),
    "one_side": (
        lambda x: F.conv2d(F.pad(x, (0, 2, 0, 2)), WEIGHT[:, None], groups=3),
        r"pads a map by \[0, 2, 0, 2\], and plans all sides alike",
    ),
    "cut": (lambda x: x.clamp(-1, 1), "cuts numbers off at -1 and 1"),
    "strides": (lambda x: torch.as_strided(pooled(x), (2, 2), (1, 1)) * 1, "shows a vector by strides"),
    "softmax": (lambda x: x.flatten(1).view(3, -1).softmax(dim=1), "uses aten._softmax|over a part"),
    "corners": (
        lambda x: F.interpolate(x, (4, 4), mode="bilinear", antialias=True, align_corners=True),
        "antialiases with aligned corners",
    ),
    "products": (lambda x: pooled(x).t() @ pooled(x), "multiplies matrices, and plans weights with vectors"),
    "one_sum": (lambda x: torch.stack([pooled(x)] * 2).sum(dim=0), r"sums a vector to shape \(1, 3\)"),
    "norm": (lambda x: pooled(x).norm(p=3, dim=1), "takes a norm of order 3"),
    "double": (lambda x: pooled(x).double(), "uses aten._to_copy.default on vectors"),
    "mixed": (
        lambda x: x + pooled(x)[..., None, None],
        "computes with a map and what is no number per channel",
    ),
    "batch": (lambda x: F.batch_norm(x, None, None, training=True), "uses aten|normalises by the statistics"),
}


def written(function: Callable[[Tensor], Tensor]) -> tuple[Writer, object]:
    writer = Writer(nn.Module())
    return writer, traced_of(call(writer, "the test", function, symbolic_image((9, 9))))


def outcome(writer: Writer, value: int, image: Tensor) -> Tensor:
    steps, output = simplify(writer.steps, value)
    return run_plan({"steps": steps, "output": output}, writer.weights.tensors, image)[0]


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_are_what_the_function_computes(name: str) -> None:
    image = strategies.images(1, 0, size=9)
    writer, traced = written(VECTORS[name])
    with torch.no_grad():
        expected = VECTORS[name](image).flatten().clamp(-3e38, 3e38)
    torch.testing.assert_close(outcome(writer, writer.dense(traced), image[0]), expected)


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_what_the_function_computes_at_every_size(name: str) -> None:
    writer, traced = written(MAPS[name])
    value = writer.plain(traced)
    for image in (strategies.images(1, 0, size=9), strategies.images(1, 0, size=13)[..., :6]):
        steps = [{"ops": [dict(op) for op in step["ops"]]} for step in writer.steps]
        shadow = Writer(nn.Module())
        shadow.steps, shadow.weights = steps, writer.weights
        with torch.no_grad():
            torch.testing.assert_close(outcome(shadow, value, image[0]), MAPS[name](image)[0])


@pytest.mark.parametrize("name", REFUSED)
def test_what_plans_do_not_know_is_refused_by_name(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(ExportError, match=f"the test .*{message}"):
        written(function)


def test_constants_come_back_as_tensors() -> None:
    _, traced = written(lambda x: torch.ones(1, 2) + torch.zeros_like(x).sum())
    assert isinstance(traced, Constant)
    assert torch.equal(traced.tensor, torch.ones(1, 2))
