"""Interrupts in the first seconds of every command: exit code 130, one sentence, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

import sidestep
from sidestep.cli.main import commands, main
from tests.cli.test_faults import TINY, good

COMMANDS = commands()
SIGNALS = (signal.SIGINT, signal.SIGTERM)
START = (
    "import os, signal, sys, threading\n"
    # A shell that starts jobs in the background lets them ignore interrupts.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from sidestep.cli.main import script\n"
    "delay, number, *sys.argv[1:] = sys.argv[1:]\n"
    "timer = threading.Timer(float(delay), os.kill, (os.getpid(), int(number)))\n"
    # Python waits for other threads at the end.
    "timer.daemon = True\n"
    "timer.start()\n"
    "script()"
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what commands take."""
    from PIL import Image

    root = tmp_path_factory.mktemp("house")
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    sidestep.export_run(sidestep.train(root / "tiny.yaml", root / "run"), root / "tiny.plan")
    Image.new("RGB", (8, 8)).save(root / "good.png")
    return root


def interrupts() -> Iterator[Any]:
    """Yield command, seconds and signal; all of one command are slow, and of each other one late interrupt.

    Early on all commands do the same: they import.
    """
    for (place, name), delay, number in product(enumerate(COMMANDS), ("0.5", "2.5"), SIGNALS):
        turn = SIGNALS[place % 2]
        slow = place == 0 or (delay == "2.5" and number == turn)
        mark = pytest.mark.slow if slow else pytest.mark.exhaustive
        yield pytest.param(name, delay, number, marks=mark, id=f"{name}-{delay}-{number.name}")


@pytest.mark.parametrize(("name", "delay", "number"), list(interrupts()))
def test_an_early_interrupt_is_one_sentence(name: str, delay: str, number: int, house: Path) -> None:
    arguments = [name, *good(COMMANDS[name])]
    command = [sys.executable, "-c", START, delay, str(int(number)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=house)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    # Quick commands are done before; one that is offline has its own sentence.
    assert done.returncode in (0, 2, 130), done.stderr
    if done.returncode == 130:
        assert done.stderr.splitlines()[-1].startswith("sidestep: ")
        assert "interrupted" in done.stderr
    assert not list(house.rglob("*.partial"))


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("then", ["time.sleep(30)", "import swallows_too"])
def test_an_interrupt_that_an_import_swallows_arrives_all_the_same(
    number: signal.Signals, then: str, tmp_path: Path
) -> None:
    swallows = f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\nexcept:\n    pass\n"
    (tmp_path / "swallows.py").write_text(swallows)
    (tmp_path / "swallows_too.py").write_text("import time\ntry:\n    time.sleep(30)\nexcept:\n    pass\n")
    code = (
        "import signal, time\n"
        "from sidestep.cli.interrupts import heard_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    with heard_interrupts() as heard:\n"
        f"        import swallows\n        {then}\n        time.sleep(30)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(0.3)\n"  # nothing is repeated any more
        "    print(sorted(set(heard)))"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"[{int(number)}]\n", "")
    assert time.monotonic() - begun < 20


def test_cleaning_up_behind_an_interrupted_import_is_not_interrupted(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text("import os\nos.kill(os.getpid(), 2)\nimport time\ntime.sleep(30)\n")
    code = (
        "import signal, time\n"
        "from sidestep.cli.interrupts import heard_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    with heard_interrupts():\n"
        "        try:\n            import killed\n"
        "        finally:\n            time.sleep(0.5)\n            print('clean')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("clean\ninterrupted\n", "")


@pytest.mark.exhaustive
@pytest.mark.parametrize("seconds", [4, 7, 12])
def test_workers_of_a_sweep_are_told_too_and_say_nothing(seconds: float, house: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sidestep", "sweep", "tiny.yaml", "--over", "seed=0,1", "--workers", "2"]
    out = ["--out", str(tmp_path / "sweep"), "--training.phases.0.epochs", "500"]
    with subprocess.Popen(
        [*command, *out], stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=house
    ) as process:
        assert process.stderr is not None
        time.sleep(seconds)
        # As a terminal does.
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in said.splitlines()[-1] and "Traceback" not in said


def test_a_reader_that_has_seen_enough_is_no_fault(tmp_path: Path) -> None:
    pipe = f"{sys.executable} -m sidestep recipes | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {pipe}"], capture_output=True, text=True)
    assert done.stderr == ""
    assert main(["methods"]) == 0
