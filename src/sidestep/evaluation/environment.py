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

_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)


def describe_environment() -> dict[str, Any]:
    """Return `hardware`, `versions` and `commit`, ready for JSON."""
    return {"hardware": hardware(), "versions": versions(), "commit": commit()}


def hardware(device: torch.device | None = None) -> dict[str, Any]:
    """Return processor, its relevant instruction sets, cores and threads in use, and the GPU of a device."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    values = {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device is not None and device.type == "cuda":
        values["gpu"] = torch.cuda.get_device_name(device)
    return values


def versions(packages: Sequence[str] = ("sidestep", "timm", "onnxruntime", "openvino")) -> dict[str, str]:
    """Return the versions of Python, torch and those packages that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit of the checkout that this package runs from, or "unknown" for an installed one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def in_words(hardware: dict[str, Any]) -> str:
    """Return what `hardware` found as one phrase."""
    flags = f" ({', '.join(hardware['flags'])})" if hardware["flags"] else ""
    gpu = f", {hardware['gpu']}" if "gpu" in hardware else ""
    return f"{hardware['cpu']}{flags}, {hardware['cores']} cores, {hardware['threads']} threads used{gpu}"


def _cpuinfo() -> dict[str, str]:
    """Return Linux's description of the last core; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
