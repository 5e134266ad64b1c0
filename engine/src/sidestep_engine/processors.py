"""How many processors a process may use: its affinity, and the quota of the container that it is in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_processors(root: Path | str = "/") -> int:
    """Return how many processors this process can keep busy, at least 1.

    That is the number that it may run on, or the whole processors that the CPU quotas of its control groups
    pay for (cgroup v2 `cpu.max`, v1 `cpu.cfs_quota_us`; the least of all enclosing groups), where they are
    fewer: with more threads than that all of them stand still for a part of every period.

    Args:
        root: where `proc` and the control groups are found.
    """
    quota = min(_quotas(Path(root)), default=math.inf)
    allowed = _allowed()
    return allowed if quota >= allowed else max(1, math.floor(quota))


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas in processors of the groups that this process is in, and of those around them."""
    groups = _groups(root)
    for version, within, mounted in _mounts(root):
        group = groups.get(version)
        if group is None:
            continue
        for folder in _folders(group, within, root / mounted.lstrip("/")):
            quota = _quota_v2(folder) if version == 2 else _quota_v1(folder)
            if quota is not None:
                yield quota


def _groups(root: Path) -> dict[int, str]:
    """Return the process's group by version of control groups: of lines like `4:cpu,cpuacct:/a`, `0::/a`."""
    found = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            found[2] = group
        elif "cpu" in controllers.split(","):
            found[1] = group
    return found


def _mounts(root: Path) -> Iterator[tuple[int, str, str]]:
    """Yield version, group at the top and folder of every mounted tree of groups that may hold quotas."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        within, mounted = _unescaped(fields[3]), _unescaped(fields[4])
        if kind[0] == "cgroup2":
            yield 2, within, mounted
        elif kind[0] == "cgroup" and "cpu" in kind[-1].split(","):
            yield 1, within, mounted


def _folders(group: str, within: str, top: Path) -> list[Path]:
    """Return the folders of a group and of all around it, as far as they are mounted.

    Args:
        group: of the process.
        within: the group that is mounted.
        top: where it is mounted.
    """
    inside = os.path.relpath(group, within) if group.startswith("/") and within.startswith("/") else "."
    # Of another container's view of the tree only the top is known.
    parts = [] if inside.startswith("..") else [part for part in inside.split("/") if part != "."]
    return [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _quota_v2(folder: Path) -> float | None:
    for line in _lines(folder / "cpu.max"):
        return _share(line.split())
    return None


def _quota_v1(folder: Path) -> float | None:
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return _share([line for name in names for line in _lines(folder / name)[:1]])


def _share(words: list[str]) -> float | None:
    """Return quota over period, or None where there is none (`max`, `-1`)."""
    try:
        quota, period = map(int, words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(name: str) -> str:
    """Return a name of mountinfo, which writes blanks and backslashes as octal numbers."""
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        name = name.replace(f"\\{code}", character)
    return name
