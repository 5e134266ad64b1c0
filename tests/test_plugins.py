"""Modules of users, imported by name or by file before a command runs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sidestep
from sidestep.cli.main import main
from sidestep.errors import UsageError
from sidestep.plugins import import_plugins, imported_plugins

MODULE = """
from dataclasses import dataclass, replace
import sidestep

@dataclass(frozen=True, kw_only=True)
class Settings(sidestep.METHODS["rdi_net"].settings):
    pass

sidestep.register_method(
    replace(sidestep.METHODS["rdi_net"], name="{name}", summary="one of mine", settings=Settings)
)
"""
RECIPE = """
method: {{name: {name}, target: 0.6, router: {{dim: 8}}}}
model: {{name: cifar_resnet8}}
data: {{source: digits, image_size: 8, limit: 64, workers: 0, flip: false}}
training: {{batch_size: 32, phases: [{{name: joint, epochs: 1, lr: 0.05}}]}}
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget what the modules have registered."""
    before = set(sidestep.METHODS)
    yield
    for name in set(sidestep.METHODS) - before:
        sidestep.METHODS.remove(name)


def write(folder: Path, name: str) -> Path:
    (folder / f"{name}.py").write_text(MODULE.format(name=name))
    (folder / "recipe.yaml").write_text(RECIPE.format(name=name))
    return folder / f"{name}.py"


def test_a_method_of_ones_own_is_trained_evaluated_swept_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "mine_by_name")
    assert main(["train", "recipe.yaml"]) == 2
    assert "`--import MODULE` adds those of your own" in capsys.readouterr().err
    assert main(["--import", "mine_by_name", "train", "recipe.yaml", "--out", "run"]) == 0
    for command in (["evaluate", "run"], ["export", "run"], ["sweep", "recipe.yaml", "--out", "sweep"]):
        assert main([*command, "--import=mine_by_name"]) == 0
    assert "mine_by_name" in imported_plugins()
    capsys.readouterr()
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mine_by_name"] == "one of mine"


@pytest.mark.exhaustive
def test_workers_of_a_sweep_know_it_too(tmp_path: Path) -> None:
    write(tmp_path, "mine_in_workers")
    command = [
        sys.executable,
        "-m",
        "sidestep",
        "sweep",
        "recipe.yaml",
        "--over",
        "seed=0,1",
        "--workers",
        "2",
    ]
    done = subprocess.run(
        [*command, "--import", "mine_in_workers.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_file_is_imported_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    import_plugins([str(write(tmp_path / "deep", "mine_by_file"))])
    assert "mine_by_file" in sidestep.METHODS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine_absent", None, "got mine_absent, and there is none"),
        ("absent/mine.py", None, "and there is none"),
        ("mine_broken.py", "1 / 0", "ZeroDivisionError: division by zero"),
        ("mine_torn.py", "def f(:", "SyntaxError"),
        ("mine_needs.py", "import mine_needs_this", "No module named 'mine_needs_this'"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(
    name: str, content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=r"--import must name a module that can be imported") as caught:
        import_plugins([name])
    assert message in str(caught.value)


def test_an_import_needs_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--import"], ["train", "--import="], ["--import", "--help"]):
        assert main(arguments) == 2
        assert "--import needs a module" in capsys.readouterr().err
