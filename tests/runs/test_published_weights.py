"""Weights that others have published: downloaded, checked, converted; recipes that start from them."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sidestep
from sidestep.backbones.static_weights import load_static_weights
from sidestep.cli.main import main
from sidestep.errors import CheckpointError, OutputError, RecipeError
from sidestep.files import read_safetensors
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.runs import published_weights
from sidestep.runs.members import member_of
from sidestep.runs.published_weights import (
    PUBLISHED,
    PublishedWeights,
    check_start,
    fetch_weights,
    weights_path,
)
from sidestep.runs.recipe import from_dict

RECIPE: dict[str, Any] = {
    "method": {"name": "static"},
    "model": {"name": "cifar_resnet20", "init": "weights/resnet20-cifar10.safetensors"},
    "data": {
        "source": "digits", "image_size": 8, "limit": 64, "workers": 0, "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "training": {"phases": [], "batch_size": 32},
}  # fmt: skip


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublishedWeights]:
    """Publish a ResNet-20 as Idelbayev's code saves one, on a server of this machine."""
    folder = tmp_path / "server"
    folder.mkdir()
    state = build_backbone(ModelConfig(name="cifar_resnet20"), 10).state_dict()
    named = {f"module.{name}".replace("module.fc.", "module.linear."): t for name, t in state.items()}
    torch.save({"state_dict": named, "best_prec1": 91.7}, folder / "resnet20.th")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    weights = replace(
        PUBLISHED["resnet20-cifar10"],
        url=f"http://127.0.0.1:{server.server_port}/resnet20.th",
        sha256=sha256((folder / "resnet20.th").read_bytes()).hexdigest()[:8],
    )
    monkeypatch.setitem(published_weights.PUBLISHED, "resnet20-cifar10", weights)
    monkeypatch.chdir(tmp_path)
    yield weights
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "about", ["[", "[]", '{"data": 3}', '{"else": {}}', '{"data": {"std": [NaN]}}', "{}"]
)
def test_what_weights_say_of_themselves_is_not_trusted(about: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = build_backbone(ModelConfig(name="cifar_resnet8"), 10).state_dict()
    save_file(state, path, metadata={"sidestep_static": about})
    recipe = from_dict({**RECIPE, "model": {"name": "cifar_resnet8", "init": str(path)}})
    for start in (
        lambda: check_start(recipe, path),
        lambda: member_of(f"cifar_resnet8={path}", recipe.data),
    ):
        with nullcontext() if about == "{}" else pytest.raises(CheckpointError, match="say in their header"):
            start()


def test_a_recipe_starts_from_what_the_command_downloads(
    published: PublishedWeights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=r"`sidestep weights resnet20-cifar10 --out weights/resnet20"):
        sidestep.train(from_dict(RECIPE), "run")
    assert not Path("run").exists()
    assert main(["weights", "resnet20-cifar10"]) == 0
    assert capsys.readouterr().out == "wrote weights/resnet20-cifar10.safetensors\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server", "weights"]
    backbone = build_backbone(ModelConfig(name="cifar_resnet20"), 10)
    load_static_weights(backbone, weights_path("resnet20-cifar10"))
    assert (sidestep.train(from_dict(RECIPE), "run") / "report.json").is_file()


def test_a_file_that_was_changed_is_refused(published: PublishedWeights) -> None:
    path = Path("server/resnet20.th")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="SHA-256 that begins with"):
        fetch_weights("resnet20-cifar10")
    with pytest.raises(CheckpointError, match="SHA-256 that begins with"):
        fetch_weights("resnet20-cifar10", file=path)
    assert not Path("weights").exists()


def test_a_copy_is_as_good_as_a_download(published: PublishedWeights) -> None:
    out = fetch_weights("resnet20-cifar10", Path("here.safetensors"), file=Path("server/resnet20.th"))
    assert "stem.0.weight" in read_safetensors(out)[0] or len(read_safetensors(out)[0]) > 20
    with pytest.raises(OutputError, match=r"must be a new file, and there is one"):
        fetch_weights("resnet20-cifar10", out)


def test_no_network_is_one_sentence(published: PublishedWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(published, url="http://127.0.0.1:9/resnet20.th")
    monkeypatch.setitem(published_weights.PUBLISHED, "resnet20-cifar10", gone)
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(.*\); give a copy"):
        fetch_weights("resnet20-cifar10")


@pytest.mark.parametrize(
    ("section", "key", "value"), [("model", "shortcut", "pool_end"), ("data", "mean", [0.5, 0.5, 0.5])]
)
def test_settings_that_the_weights_were_not_trained_with_are_refused(
    section: str, key: str, value: Any, published: PublishedWeights
) -> None:
    fetch_weights("resnet20-cifar10")
    with pytest.raises(RecipeError, match=rf"{section}\.{key} must be .* for the weights in weights/"):
        sidestep.train(from_dict({**RECIPE, section: {**RECIPE[section], key: value}}), "run")
    assert not Path("run").exists()


def test_names_that_nothing_was_published_under_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean resnet32-cifar10"):
        fetch_weights("resnet32_cifar10")
    with pytest.raises(RecipeError, match="file has no effect on 'timm/resnet18"):
        fetch_weights("timm/resnet18.a1_in1k", file=Path("x"))
    with pytest.raises(RecipeError, match="must be that of a network in timm"):
        fetch_weights("timm/resnet18x.a1_in1k")


def test_every_recipe_that_starts_from_weights_says_how_to_get_them() -> None:
    from tests.paths import RECIPES

    for path in RECIPES.glob("*.yaml"):
        recipe = sidestep.load_recipe(path)
        if recipe.model.init is not None:
            assert "\n# Start: " in path.read_text(), path.name
