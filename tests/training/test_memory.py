from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref

import pytest

from sidestep.training.malloc import settled_objects

SCRIPT = """
import resource, sys, torch
from sidestep.training.malloc import keep_freed_memory

def round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (4, 8, 64):
        torch.ones(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if "keep" in sys.argv:
    assert keep_freed_memory()
for _ in range(10):
    round()
print(sum(round() for _ in range(10)))
"""


def faults(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_a_freed_map_is_used_again_without_page_faults() -> None:
    assert faults("keep") < faults() / 100


class Ring:
    """An object that only a garbage collection frees."""

    def __init__(self) -> None:
        self.ring = self


def test_what_lives_is_settled_and_new_garbage_is_collected() -> None:
    with settled_objects():
        assert gc.get_freeze_count() > 0
        garbage = weakref.ref(Ring())
        gc.collect()
        assert garbage() is None
    assert gc.get_freeze_count() == 0


def test_nothing_stays_settled_behind_an_error() -> None:
    with pytest.raises(KeyError), settled_objects():
        raise KeyError
    assert gc.get_freeze_count() == 0
