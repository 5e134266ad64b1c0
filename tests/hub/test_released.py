"""Checkpoints of the papers' released codes become runs that say what these networks say."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sidestep
from sidestep.cli.main import main
from sidestep.errors import CheckpointError, ExportError, RecipeError
from sidestep.hub.released_code import renamed
from sidestep.networks.ranet import RaNetSettings
from sidestep.routing.samplers import GumbelSoftmax, Noise
from sidestep.runs import import_run as runs_import
from sidestep.runs.assemble import untrained
from sidestep.runs.import_run import CODES, import_run
from sidestep.runs.recipe import from_dict, load_recipe
from sidestep.runs.run_folder import open_run
from tests.hub.test_package import Bomb
from tests.reference import released, released_dense

DATA = ["--data.source=digits", "--data.limit=64", "--data.image_size=32"]
SMALL = ["--data.source=digits", "--data.limit=64", "--data.image_size=16"]
Forward = Callable[[dict[str, Tensor], Tensor], Tensor]
MADE: dict[str, tuple[str, Callable[[], dict[str, Tensor]], Forward]] = {
    "convnet_aig": (
        "convnet_aig",
        lambda: released.make_convnet_aig(2),
        lambda state, x: released.convnet_aig(state, x, 2),
    ),
    "rdi_net": ("rdi_net", lambda: released.make_rdi_net(2), lambda state, x: released.rdi_net(state, x, 2)),
    "codinet": ("codinet", lambda: released.make_codinet(2), lambda state, x: released.codinet(state, x, 2)),
    "blockdrop": (
        "blockdrop", lambda: released.make_blockdrop(2), lambda state, x: released.blockdrop(state, x, 2)
    ),
    **{
        f"skipnet {kind}": (
            "skipnet",
            lambda kind=kind: released.make_skipnet(2, kind),
            lambda state, x, kind=kind: released.skipnet(state, x, 2, kind),
        )
        for kind in ("recurrent", "feedforward1", "feedforward2")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", MADE)
def test_a_released_checkpoint_says_the_same_as_a_run(case: str, tmp_path: Path) -> None:
    code, make, forward = MADE[case]
    state = make()
    torch.save(state, tmp_path / "ckpt.pth")
    imported = import_run(tmp_path / "ckpt.pth", code, tmp_path / "run", DATA)
    images = torch.randn(16, 3, 32, 32)
    network = sidestep.load(tmp_path / "run")
    with torch.no_grad():
        output = network(images)
        wanted = forward(state, images)
    torch.testing.assert_close(output.logits, wanted, rtol=1e-4, atol=1e-4)
    assert 0 < output.decisions.execution().mean() < 1
    assert imported.report["accuracy"] == sidestep.evaluate(tmp_path / "run").accuracy


def wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return what training scripts save: a nest, the names of data parallelism, and much else."""
    names = {f"module.{name}": tensor for name, tensor in state.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "epoch": 7, "state_dict": names, "best_prec1": torch.tensor(0.9), "optimizer": optimizer,
        "args": Namespace(arch="x"),
    }  # fmt: skip


def test_nests_and_wrappers_are_passed_over_and_the_run_is_as_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = released.make_convnet_aig(1)
    torch.save(wrapped(state), tmp_path / "model_best.pth.tar")
    out = str(tmp_path / "run")
    training = ["--training.batch_size=32", "--training.max_steps=1"]
    file = str(tmp_path / "model_best.pth.tar")
    assert main(["import", file, "--as", "convnet_aig", "--out", out, *DATA, *training]) == 0
    assert f"wrote {out}; next: " in capsys.readouterr().out
    assert sidestep.load(out).state_dict()["backbone.fc.bias"].equal(state["linear.bias"])
    assert main(["results", out]) == 0
    page = capsys.readouterr().out
    assert "| run | convnet_aig | 0 |" in page
    assert main(["train", str(Path(out) / "recipe.yaml"), "--out", out, "--resume"]) == 0
    place = f"local-dir:{tmp_path / 'package'}"
    assert main(["push", out, place]) == 0


def test_blockdrop_networks_have_the_pixels_of_their_code(tmp_path: Path) -> None:
    torch.save(released.make_blockdrop(2), tmp_path / "file")
    import_run(tmp_path / "file", "blockdrop", tmp_path / "run", DATA)
    recipe = open_run(tmp_path / "run", "best").recipe
    assert recipe.data.mean == (0.0, 0.0, 0.0) and recipe.model.name == "cifar_resnet14"
    assert recipe.model.settings.shortcut == "pool_end" and recipe.model.init is None


def test_an_import_that_is_interrupted_is_not_in_the_way_of_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    torch.save(released.make_convnet_aig(1), tmp_path / "ckpt.pth")
    with monkeypatch.context() as patch:
        patch.setattr(runs_import, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            import_run(tmp_path / "ckpt.pth", "convnet_aig", tmp_path / "run", DATA)
    assert not (tmp_path / "run").exists()
    import_run(tmp_path / "ckpt.pth", "convnet_aig", tmp_path / "run", DATA)


def test_other_classes_than_the_files_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    torch.save(released.make_convnet_aig(1, classes=7), tmp_path / "file")
    with pytest.raises(RecipeError, match=r"must have the 7 classes of .*, got 10"):
        import_run(tmp_path / "file", "convnet_aig", tmp_path / "run", DATA)
    assert not (tmp_path / "run").exists()


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "another code": (lambda: released.make_codinet(1), "nothing in them has its names; choose another --as"),
    "a list": (lambda: [1, 2], "hold no tensors by name"),
    "a pickle": (lambda: {"state_dict": Bomb()}, "are damaged or hold more than tensors"),
    "no head": (
        lambda: {k: v for k, v in released.make_convnet_aig(1).items() if "linear" not in k},
        "cannot be made out",
    ),
    "a tensor less": (
        lambda: {k: v for k, v in released.make_convnet_aig(1).items() if k != "bn1.bias"},
        "do not fit: the file lacks backbone.bn1.bias",
    ),
    "a tensor more": (
        lambda: released.make_convnet_aig(1) | {"extra": torch.ones(1)}, "has extra, which the network lacks"
    ),
    "uneven stages": (
        lambda: {k: v for k, v in released.make_convnet_aig(2).items() if not k.startswith("layer3.1.")},
        "no ResNet here has stages of 2, 2, 1 blocks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_whole_network_of_the_code_is_refused(case: str, tmp_path: Path) -> None:
    make, sentence = WRONG[case]
    value = make()
    if case == "a pickle":
        (tmp_path / "file").write_bytes(pickle.dumps(value))
    else:
        torch.save(value, tmp_path / "file")
    with pytest.raises(CheckpointError, match=sentence):
        import_run(tmp_path / "file", "convnet_aig", tmp_path / "run", DATA)
    assert not (tmp_path / "run").exists()


def test_a_policy_alone_is_no_network(tmp_path: Path) -> None:
    state = {k: v for k, v in released.make_blockdrop(1).items() if k.startswith("agent.")}
    torch.save(state, tmp_path / "file")
    with pytest.raises(CheckpointError, match="it has a policy alone"):
        import_run(tmp_path / "file", "blockdrop", tmp_path / "run", DATA)


def test_the_command_line_names_all_codes() -> None:
    from sidestep.cli.main import commands

    option = next(option for option in commands()["import"].options if option.name == "as")
    assert all(repr(name) in str(option.hint) for name in CODES)


MSDNETS: dict[str, tuple[list[list[int]], list[int], tuple[Any, ...]]] = {
    "even": ([[2, 2, 2, 2], [1, 1], [1, 1]], [5], (3, 4, 2, "even", "max")),
    "lin_grow": ([[2, 2], [2, 2], [1, 1, 1]], [5], (3, 2, 1, "lin_grow", "max")),
    "min": ([[2, 2, 2, 2], [2, 1]], [2, 4], (2, 4, 2, "even", "min")),
}


@pytest.mark.parametrize("case", MSDNETS)
def test_an_msdnet_says_its_sizes_itself(case: str, tmp_path: Path) -> None:
    layers, halved, said = MSDNETS[case]
    state = released_dense.make_msdnet(layers, halved)
    torch.save(wrapped(state), tmp_path / "file")
    imported = import_run(tmp_path / "file", "msdnet", tmp_path / "run", SMALL)
    settings = open_run(imported.folder, "best").recipe.model.settings
    sizes = (settings.blocks, settings.base, settings.step, settings.stepmode, settings.prune)
    assert sizes == said and settings.gr_factor == settings.bn_factor == (1, 2)
    assert (settings.channels, settings.growth, settings.reduction) == (8, 4, 0.5)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        found = sidestep.load(imported.folder)(images).exit_logits
        wanted = torch.stack(released_dense.msdnet(state, images, layers, halved))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_ranet_says_its_sizes_itself(tmp_path: Path) -> None:
    state = released_dense.make_ranet()
    torch.save(wrapped(state), tmp_path / "file")
    imported = import_run(tmp_path / "file", "ranet", tmp_path / "run", SMALL)
    settings = open_run(imported.folder, "best").recipe.model.settings
    assert (settings.scale_list, settings.blocks, settings.block_step, settings.step) == ((1, 2), 2, 2, 2)
    assert settings.gr_factor == settings.bn_factor == (2, 1)
    assert (settings.channels, settings.growth, settings.compress) == (8, 8, 0.25)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        found = sidestep.load(imported.folder)(images).exit_logits
        wanted = torch.stack(released_dense.ranet(state, images))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ranet_cifar10", "ranet_small_cifar10"])
def test_sizes_of_the_papers_networks_are_found_in_their_tensors(name: str) -> None:
    recipe = load_recipe(name)
    state = untrained(recipe, num_classes=10, input_size=(32, 32)).state_dict()
    found = CODES["ranet"].read(as_released(state))
    settings = RaNetSettings(**{key: frozen(value) for key, value in found.changes["model"].items()})
    # A width that no bottleneck reaches can be any larger one.
    assert replace(settings, bn_factor=recipe.model.settings.bn_factor) == recipe.model.settings
    assert found.tensors.keys() == state.keys()


def frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def as_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a RANet's state dict under the released names."""
    block = r"networks\.(\d+\.\d+)"
    rules = {
        r"heads\.(\d+)\.conv1\.(.*)": r"classifier.\1.m.0.net.\2",
        r"heads\.(\d+)\.conv2\.(.*)": r"classifier.\1.m.1.net.\2",
        r"heads\.(\d+)\.fc\.(.*)": r"classifier.\1.linear.\2",
        rf"{block}\.layers\.(\d+)\.own\.(.*)": r"scale_flows.\1.layers.\2.conv_normal.net.\3",
        rf"{block}\.layers\.(\d+)\.low\.(.*)": r"scale_flows.\1.layers.\2.conv_up.net.\3",
        rf"{block}\.low\.(.*)": r"scale_flows.\1.conv_last.net.\2",
        rf"{block}\.transition\.(.*)": r"scale_flows.\1.trans.net.\2",
        r"first\.(\d+)\.(.*)": r"FirstLayer.layers.\1.net.\2",
    }
    return renamed(state, rules)


REST = {"data": {"source": "digits"}, "training": {"phases": []}}


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"router": {"form": "released", "reach": 3}}, "reach has no effect with form 'released', got 3"),
        ({"router": {"form": "released", "gamma": "auto"}}, "gamma must be a number with form 'released'"),
        ({"router": {"form": "released"}, "gate_mode": "share"}, "gate_mode must be soft or hard with"),
        ({"router": {"form": "released"}, "sees_exits": True}, "budgets.low and sees_exits have no effect"),
    ],
)
def test_what_the_released_router_does_not_know_is_refused(method: dict[str, Any], sentence: str) -> None:
    values = {"method": {"name": "rdi_net", **method}, "model": {"name": "cifar_resnet8"}}
    with pytest.raises(RecipeError, match=sentence):
        untrained(from_dict({**values, **REST}), num_classes=10)


@pytest.mark.parametrize("execution", [sidestep.masked, sidestep.gathered])
def test_the_released_router_learns_and_runs_gathered(execution: Any) -> None:
    router = {"form": "released", "dim": 8}
    values = {
        "method": {"name": "rdi_net", "router": router},
        "model": {"name": "cifar_resnet8", "options": 3},
    }
    network = untrained(from_dict({**values, **REST}), num_classes=10).eval()
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        wanted, found = network(images), network(images, execution=execution)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    output = network.train()(images, sampler=GumbelSoftmax(noise=Noise(torch.Generator())))
    output.logits.square().sum().backward()
    grads = [parameter.grad for parameter in network.router.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_no_plan_can_say_what_the_released_router_decides(tmp_path: Path) -> None:
    torch.save(released.make_rdi_net(1), tmp_path / "file")
    run = import_run(tmp_path / "file", "rdi_net", tmp_path / "run", DATA).folder
    with pytest.raises(ExportError, match="relate soft decisions, for which plans have no operation"):
        sidestep.export_run(run)
