"""The default number of threads: affinity and the CPU quotas of containers."""

from __future__ import annotations

import os
from pathlib import Path

import plans
import pytest
from sidestep_engine import Engine, available_processors, processors

V2 = "30 24 0:26 {within} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 32 0:30 {within} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = (
    "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
    "31 32 0:28 {within} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "broken line\n"
)


@pytest.fixture(autouse=True)
def sixty_four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_allowed", lambda: 64)


def machine(root: Path, groups: str, mounts: str, within: str = "/", **files: str) -> Path:
    """Write the files of a system; names of quota files are `folder__file`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text((OTHERS + mounts).format(within=within))
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def v1(root: Path, folder: str, quota: int, period: int) -> None:
    place = root / "sys/fs/cgroup/cpu,cpuacct" / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (place / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.parametrize(
    ("quota", "wanted"),
    [
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 50000", 32),
        ("9900000 100000", 64),
        ("max 100000", 64),
        ("", 64),
        ("nonsense", 64),
        ("0 0", 64),
    ],
)
def test_a_quota_of_version_2(quota: str, wanted: int, tmp_path: Path) -> None:
    assert available_processors(machine(tmp_path, "0::/a\n", V2, a__cpu_max=quota)) == wanted


def test_the_least_of_nested_groups_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/a/b/c\n",
        V2,
        a__cpu_max="300000 100000",
        a__b__cpu_max="max 100000",
        a__b__c__cpu_max="800000 100000",
    )
    assert available_processors(root) == 3


def test_inside_of_a_container_the_top_is_its_own_group(tmp_path: Path) -> None:
    assert available_processors(machine(tmp_path / "a", "0::/\n", V2, cpu_max="400000 100000")) == 4
    # The container's runtime has mounted its group, and the process sees the host's name of it.
    within = machine(tmp_path / "b", "0::/docker/1\n", V2, "/docker/1", cpu_max="500000 100000")
    assert available_processors(within) == 5
    nested = machine(tmp_path / "c", "0::/docker/1/job\n", V2, "/docker/1", job__cpu_max="200000 100000")
    assert available_processors(nested) == 2
    # Its own group lies outside of what it sees.
    outside = machine(tmp_path / "d", "0::/../other\n", V2, cpu_max="600000 100000")
    assert available_processors(outside) == 6


def test_quotas_of_version_1(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:cpu,cpuacct:/a/b\n3:memory:/a\n0::/a/b\n", V1)
    v1(root, "a", 300000, 100000)
    v1(root, "a/b", -1, 100000)
    assert available_processors(root) == 3
    v1(root, "a/b", 100000, 50000)
    assert available_processors(root) == 2


def test_version_1_inside_of_a_container(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:cpu,cpuacct:/docker/1\n", V1, "/docker/1")
    v1(root, ".", 700000, 100000)
    assert available_processors(root) == 7


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:cpu,cpuacct:/a\n0::/b\n", V1 + V2.replace("/cgroup ", "/cgroup/unified "))
    v1(root, "a", 600000, 100000)
    assert available_processors(root) == 6


def test_without_groups_affinity_decides(tmp_path: Path) -> None:
    assert available_processors(tmp_path) == 64


def test_names_with_blanks(tmp_path: Path) -> None:
    mounts = V2.replace("/sys/fs/cgroup", "/sys/fs/my\\040groups")
    root = machine(tmp_path, "0::/a job\n", mounts)
    (root / "sys/fs/my groups/a job").mkdir(parents=True)
    (root / "sys/fs/my groups/a job/cpu.max").write_text("200000 100000\n")
    assert available_processors(root) == 2


def test_engines_take_so_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep_engine.engine.available_processors", lambda: 3)
    plan = plans.routed_resnet(1, (16,))
    assert Engine(plan).num_threads == 3
    assert Engine(plan, num_threads=5).num_threads == 5
    monkeypatch.setattr("sidestep_engine.engine.available_processors", lambda: 5000)
    assert Engine(plan).num_threads <= 1024


def test_affinity_is_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    if hasattr(os, "sched_getaffinity"):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            assert available_processors(tmp_path) == 1
        finally:
            os.sched_setaffinity(0, before)
