"""What a figure was measured on: hardware, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_environment(packages: Sequence[str] = ("sidestep", "torch", "timm")) -> dict[str, Any]:
    """Return `hardware` and `commit` as text and `versions` of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"hardware": _hardware(), "versions": versions, "commit": _commit()}


def _hardware() -> str:
    flags = [flag for flag in _CPU_FLAGS if flag in _cpu_lines("flags").split()]
    name = _cpu_lines("model name") or platform.processor() or platform.machine()
    text = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if flags:
        text += f", {' '.join(flags)}"
    if torch.cuda.is_available():
        text += f"; {torch.cuda.get_device_name()}"
    return text


def _cpu_lines(key: str) -> str:
    """Return the value of the first line of /proc/cpuinfo with this key, or nothing where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _commit() -> str:
    """Return the commit of the checkout that this package runs from, or "unknown" for an installed one."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
