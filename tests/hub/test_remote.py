"""Packages pushed to and loaded from a fake hub on loopback, which also refuses, breaks off and delays."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
import torch
import yaml

import sidestep
from sidestep.cli.main import main
from sidestep.errors import CheckpointError, OutputError
from sidestep.runs.recipe import from_dict
from sidestep.serve.served_model import open_models
from sidestep.serve.settings import ServeSettings
from tests.hub.fake_hub import FakeHub, served
from tests.hub.test_package import TINY, Bomb

NAME = "someone/tiny"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {**TINY, "model": {"name": "cifar_resnet8"}}
    return sidestep.train(from_dict(values), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def files(run: Path) -> dict[str, bytes]:
    """Return the files of the run's package."""
    folder = run.parent / "package"
    sidestep.push(run, f"local-dir:{folder}")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Yield a fake hub that this process takes for the hub, with empty caches."""
    monkeypatch.setenv("SIDESTEP_CACHE", str(tmp_path / "unpacked"))
    constants = huggingface_hub.constants
    with served() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "downloaded"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_fake")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def same(first: Path | str, second: Path | str) -> None:
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        logits = [sidestep.load(each)(images).logits for each in (first, second)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_what_is_pushed_is_loaded_bit_for_bit(
    hub: FakeHub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), NAME]) == 0
    out = capsys.readouterr().out
    assert f"wrote {hub.url}/{NAME}: " in out and f"`sidestep evaluate hf-hub:{NAME}` loads it" in out
    same(run, f"hf-hub:{NAME}")
    held = hub.commits[NAME, hub.branches[NAME, "main"]]
    assert set(held) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    header = yaml.safe_load(held["README.md"].decode().split("---")[1])
    assert header["model-index"][0]["name"] == "tiny"
    assert main(["evaluate", f"hf-hub:{NAME}", "--json"]) == 0
    assert [model.name for model in open_models([f"hf-hub:{NAME}@main"], ServeSettings())] == ["tiny"]


def test_a_revision_is_a_branch_or_a_commit(hub: FakeHub, run: Path) -> None:
    assert sidestep.push(run, NAME).place == f"hf-hub:{NAME}"
    first = hub.branches[NAME, "main"]
    sidestep.push(run, f"{NAME}@other", checkpoint="last")
    assert hub.branches[NAME, "main"] == first != hub.branches[NAME, "other"]
    same(run, f"hf-hub:{NAME}@{first}")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        other = sidestep.load(f"hf-hub:{NAME}@other")(images).logits
        last = sidestep.load(run, checkpoint="last")(images).logits
    torch.testing.assert_close(other, last, rtol=0, atol=0)


def test_a_private_repository_is_private(hub: FakeHub, run: Path) -> None:
    sidestep.push(run, NAME, private=True)
    assert hub.repos[NAME] == "private"
    hub.add("someone/seen", {})
    with pytest.raises(
        OutputError, match="must be private to be pushed to with --private, and others can see"
    ):
        sidestep.push(run, "someone/seen", private=True)
    assert hub.commits["someone/seen", hub.branches["someone/seen", "main"]] == {}


def test_what_is_in_the_cache_needs_no_hub(
    hub: FakeHub, files: dict[str, bytes], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    sidestep.load(f"hf-hub:{NAME}")
    before = len(hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    same(run, f"hf-hub:{NAME}")
    assert len(hub.requests) == before
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        sidestep.load("hf-hub:someone/other")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.status = 503
    same(run, f"hf-hub:{NAME}")


def test_weights_are_those_of_the_configurations_commit(hub: FakeHub, files: dict[str, bytes]) -> None:
    commit = hub.add(NAME, files)
    sidestep.load(f"hf-hub:{NAME}")
    asked = [request for request in hub.requests if request.endswith("model.safetensors")]
    assert asked and all(f"/resolve/{commit}/" in request for request in asked)


def test_a_download_that_breaks_off_goes_on(
    hub: FakeHub, files: dict[str, bytes], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    hub.add(NAME, files)
    hub.broken_at, hub.breaks = len(files["model.safetensors"]) // 2, 1
    same(run, f"hf-hub:{NAME}")
    assert hub.breaks == 0


def test_a_download_that_always_breaks_off_is_a_sentence(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    hub.add(NAME, files)
    hub.broken_at, hub.breaks = 30_000, 1000
    with pytest.raises(CheckpointError, match=f"package hf-hub:{NAME} could not be downloaded: "):
        sidestep.load(f"hf-hub:{NAME}")
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "no such repository, or no access"),
        (403, "no such repository, or no access"),
        (500, "status 500"),
    ],
)
def test_a_hub_that_refuses_is_a_sentence(
    status: int, sentence: str, hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    hub.status = status
    with pytest.raises(OutputError, match=f"package hf-hub:{NAME} could not be uploaded: .*{sentence}"):
        sidestep.push(run, NAME)
    with pytest.raises(CheckpointError, match=f"package hf-hub:{NAME} could not be downloaded: "):
        sidestep.load(f"hf-hub:{NAME}")


def test_a_hub_that_delays_is_waited_for_only_where_nothing_is_in_the_cache(
    hub: FakeHub, files: dict[str, bytes], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.add(NAME, files)
    hub.delay = 0.3
    same(run, f"hf-hub:{NAME}")
    hub.delay, before = 60.0, time.monotonic()
    same(run, f"hf-hub:{NAME}")
    assert time.monotonic() - before < 30


def test_what_is_no_package_is_refused_before_its_weights_are_asked_for(
    hub: FakeHub, files: dict[str, bytes]
) -> None:
    hub.add("timm/other", {"config.json": b'{"architecture": "resnet50"}', "model.safetensors": b"x"})
    with pytest.raises(CheckpointError, match="for weights of timm name timm/<name>"):
        sidestep.load("hf-hub:timm/other")
    assert not any(request.endswith("model.safetensors") for request in hub.requests)
    hub.add("someone/empty", {"README.md": b"x"})
    with pytest.raises(CheckpointError, match=r"it lacks config\.json or model\.safetensors"):
        sidestep.load("hf-hub:someone/empty")
    hub.add("someone/pickle", {**files, "model.safetensors": pickle.dumps(Bomb())})
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        sidestep.load("hf-hub:someone/pickle")
    hub.add(
        "someone/pickled", {"config.json": files["config.json"], "pytorch_model.bin": pickle.dumps(Bomb())}
    )
    with pytest.raises(CheckpointError, match=r"it lacks config\.json or model\.safetensors"):
        sidestep.load("hf-hub:someone/pickled")
    assert not any("pytorch_model" in request for request in hub.requests)
    with pytest.raises(CheckpointError, match="it has no such revision"):
        sidestep.load("hf-hub:someone/pickle@absent")


@pytest.mark.parametrize(
    "name",
    ["", "tiny", "a/b/c", "../x/y", "/etc/passwd", "a/..", "a/b@../../x", "a/b@", "a b/c", "https://a/b"],
)
def test_names_that_are_none_are_refused_without_asking(name: str, hub: FakeHub, run: Path) -> None:
    with pytest.raises(CheckpointError, match="must be named hf-hub:org/name or hf-hub:org/name@revision"):
        sidestep.load(f"hf-hub:{name}")
    with pytest.raises(CheckpointError, match="must be named hf-hub:org/name"):
        sidestep.push(run, name)
    assert hub.requests == []


def test_a_process_of_its_own_pushes(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")
    }  # fmt: skip
    command = [sys.executable, "-m", "sidestep", "push", str(run), NAME]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    same(run, f"hf-hub:{NAME}")
