"""What a figure was measured on, in values and in words."""

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from sidestep.evaluation import environment
from sidestep.evaluation.environment import commit, describe_environment, hardware, in_words, versions

INTEL = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 amx_bf16 avx512f\n\nprocessor : 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a file that is read instead of Linux's description of the processor."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(environment, "Path", lambda name: path if name == "/proc/cpuinfo" else Path(name))
    return path


@pytest.mark.parametrize(
    ("text", "flags"), [(INTEL, ["avx2", "avx512f", "amx_bf16"]), (ARM, ["asimd", "sve", "bf16"])]
)
def test_instruction_sets_that_matter_are_named(text: str, flags: list[str], cpuinfo: Path) -> None:
    cpuinfo.write_text(text)
    found = hardware()
    assert found["flags"] == flags
    assert found["threads"] == torch.get_num_threads() and found["cores"] >= 1
    assert "gpu" not in found


def test_the_processor_has_a_name_everywhere(cpuinfo: Path) -> None:
    cpuinfo.write_text(INTEL)
    assert hardware()["cpu"] == "Some CPU"
    cpuinfo.unlink()
    assert hardware()["cpu"] and hardware()["flags"] == []


def test_a_gpu_is_named_where_a_device_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU {device.index}")
    assert hardware(torch.device("cuda", 1))["gpu"] == "Some GPU 1"
    assert "gpu" not in hardware(torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Some CPU (avx2, sve), 4 cores, 2 threads used"),
        ({"flags": []}, "Some CPU, 4 cores, 2 threads used"),
        ({"gpu": "Some GPU"}, "Some CPU (avx2, sve), 4 cores, 2 threads used, Some GPU"),
    ],
)
def test_hardware_in_words(changes: dict[str, Any], words: str) -> None:
    assert (
        in_words({"cpu": "Some CPU", "flags": ["avx2", "sve"], "cores": 4, "threads": 2} | changes) == words
    )


def test_versions_are_those_of_installed_packages_in_their_order() -> None:
    found = versions(["hypothesis", "no-such-package-anywhere"])
    assert list(found) == ["python", "torch", "hypothesis"]
    assert found["torch"] == torch.__version__ and found["hypothesis"] == version("hypothesis")


def test_the_commit_is_that_of_the_checkout_or_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    git("init", "-q")
    (tmp_path / "environment.py").write_text("a")
    git("add", "environment.py")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "--short=12", "HEAD")
    assert commit() == head
    (tmp_path / "environment.py").write_text("b")
    assert commit() == f"{head}-dirty"


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"


def test_an_environment_has_all_three() -> None:
    assert list(describe_environment()) == ["hardware", "versions", "commit"]
