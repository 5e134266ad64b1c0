"""What is private in other libraries is used in two files, and still is what those files take it for."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import sidestep
from sidestep import internals
from sidestep.fused import compiler

PACKAGE = Path(sidestep.__file__).parent
FILES = {"internals.py", "fused/compiler.py"}


def uses_of_private_names() -> Iterator[tuple[str, str]]:
    """Yield file and text of every use of a name with an underscore that this package does not define."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {
        node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    for path, tree in trees.items():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("sidestep"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            private = [n for n in names if n.startswith("_") and not n.startswith("__") and n not in own]
            if private:
                yield path.relative_to(PACKAGE).as_posix(), ast.unparse(node)


def test_private_names_of_other_libraries_are_used_in_two_files_alone() -> None:
    found = set(uses_of_private_names())
    assert {file for file, _ in found} == FILES, sorted(found)


def nests_keep_their_form() -> None:
    nest = {"a": [1, (2,)], "b": 3}
    leaves, form = internals.tree_flatten(nest)
    assert leaves == internals.tree_leaves(nest) == [1, 2, 3]
    assert internals.tree_unflatten(leaves, form) == nest
    assert internals.tree_map(lambda leaf: -leaf, nest) == {"a": [-1, (-2,)], "b": -3}


def a_dispatch_mode_sees_every_operation() -> None:
    class Seen(internals.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[object] = []
    with Seen():
        torch.ones(2).relu()
    assert torch.ops.aten.relu.default in seen


def every_batch_norm_has_one_base() -> None:
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(kind, internals.BatchNorm)
    assert not issubclass(nn.LayerNorm, internals.BatchNorm)


def aten_has_the_operators_of_traces() -> None:
    ones = torch.ones(1, 1, 2, 2)
    assert internals.ADAPTIVE_AVG_POOL2D.default(ones, [1, 1]).shape == (1, 1, 1, 1)
    assert internals.UNSAFE_VIEW.default(ones, [4]).shape == (4,)
    attended, _ = internals.ATTENTION_ON_CPU.default(ones, ones, ones)
    assert torch.equal(attended, ones)
    one = torch.ones(1)
    out, *_ = internals.BATCH_NORM_INFERENCE.default(ones, one, one, one, one, 0.1, 0.0)
    assert torch.equal(out, ones)


def operations_say_that_they_write() -> None:
    aten = torch.ops.aten
    assert internals.writes_in_place(aten.relu_.default) and internals.writes_in_place(aten.add.out)
    assert not internals.writes_in_place(aten.relu.default) and not internals.writes_in_place("output")


def timm_adds_positions_to_patches() -> None:
    network = timm.create_model("test_vit").eval()
    images = torch.randn(1, 3, 160, 160)
    tokens = internals.with_positions(network, network.patch_embed(images))
    behind = network.norm(network.blocks(network.norm_pre(network.patch_drop(tokens))))
    torch.testing.assert_close(behind, network.forward_features(images))


def dynamo_has_a_limit_of_shapes() -> None:
    before = torch._dynamo.config.recompile_limit
    first, second = compiler.many_shapes(), compiler.many_shapes()
    # As two trainings in threads overlap.
    for training in (first, second):
        training.__enter__()
        assert torch._dynamo.config.recompile_limit > before
    first.__exit__(None, None, None)
    assert torch._dynamo.config.recompile_limit > before
    second.__exit__(None, None, None)
    assert torch._dynamo.config.recompile_limit == before


def inductor_knows_the_options() -> None:
    known = torch._inductor.list_options()
    assert set(compiler._OPTIONS) <= set(known), set(compiler._OPTIONS) - set(known)


@pytest.mark.parametrize(
    "use",
    [
        nests_keep_their_form,
        a_dispatch_mode_sees_every_operation,
        every_batch_norm_has_one_base,
        aten_has_the_operators_of_traces,
        operations_say_that_they_write,
        timm_adds_positions_to_patches,
        dynamo_has_a_limit_of_shapes,
        inductor_knows_the_options,
    ],
    ids=lambda use: use.__name__,
)
def test_what_is_private_is_as_it_was(use: Callable[[], None]) -> None:
    use()
