"""One writer for a run folder, and no lock that outlives its process."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sidestep.errors import OutputError, RunLockedError
from sidestep.runs.run_lock import LOCK, locked

HOLD = (
    "import sys, time; from pathlib import Path; from sidestep.runs.run_lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with (
            pytest.raises(
                RunLockedError, match=rf"process {process.pid} on .* writes into it; wait for its end"
            ),
            locked(tmp_path),
        ):
            raise AssertionError
    finally:
        process.communicate("")
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        pass


def test_two_runs_of_one_process_do_not_share_a_folder_either(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunLockedError), locked(tmp_path):
        raise AssertionError


def test_writers_that_wait_for_one_another_never_meet(tmp_path: Path) -> None:
    inside = []
    most = []

    def work() -> None:
        for _ in range(50):
            try:
                with locked(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except RunLockedError:
                continue

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_folder_that_cannot_be_written_into_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="must be one that can be written into"),
        locked(tmp_path / "absent"),
    ):
        raise AssertionError
