"""The command line's own words and exit codes; what the commands do is tested with the runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sidestep
from sidestep.cli import process
from sidestep.cli.main import main
from tests.paths import RECIPES


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one sentence with which a command line is refused."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sidestep: ") and captured.err.count("\n") == 1
    return captured.err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sidestep {sidestep.__version__}\n"
    assert sidestep.__version__[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "got trian; did you mean train?"),
        (["--versoin"], "got --versoin; did you mean --version?"),
        (["frobnicate"], "got frobnicate; see `sidestep --help`"),
        (["evaluate"], "evaluate needs RUN; see `sidestep evaluate --help`"),
        (["evaluate", "x", "--executoin", "gathered"], "did you mean --execution?"),
        (["sweep", "x.yaml", "--tagret", "1"], "a key of a recipe has a dot, such as --method.target"),
        (["bench", "x", "--batch-sizes", "0"], "batch-sizes must be whole numbers from 1"),
        (["bench", "x", "--batch-sizes", "1,x"], "batch-sizes must be whole numbers from 1"),
        (["bench", "x", "--batch-sizes="], "batch-sizes must be whole numbers from 1"),
    ],
)
def test_what_was_mistyped_is_one_sentence_and_exit_code_two(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(capsys, *arguments)


def test_results_of_a_folder_that_is_no_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "must be a run folder with a recipe.yaml" in refused(capsys, "results", str(tmp_path))


def test_all_wrong_keys_of_a_recipe_are_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPES / "rdi_net_resnet20_cifar10_short.yaml"
    wrong = ["--method.tagret", "0.4", "--training.batchsize=1", "--data.limit", "many"]
    for arguments in (["train", str(recipe), *wrong], ["train", str(recipe), "--help", *wrong]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "did you mean target?" in error
        assert "did you mean batch_size?" in error
        assert "data.limit must be a" in error


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.4, 0.8])
def test_an_interrupt_while_torch_is_imported_leaves_no_traceback(delay: float, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, threading\n"
        # A shell that starts jobs in the background lets them ignore interrupts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from sidestep.cli.main import script\n"
        f"sys.argv[1:] = ['train', {str(RECIPES / 'act_resnet110_cifar10.yaml')!r}]\n"
        f"timer = threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT))\n"
        "timer.daemon = True\n"
        "timer.start()\n"
        "script()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "sidestep: interrupted\n")


def test_only_a_process_of_its_own_is_set_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []
    monkeypatch.setattr(process, "share_cores", lambda: called.append("share_cores"))
    monkeypatch.setattr(process, "set_up_process", called.append)
    assert main(["methods"]) == 0
    assert called == []
    monkeypatch.setattr(sys, "argv", ["sidestep", "methods"])
    assert main() == 0
    assert called == ["share_cores", "methods"]


def test_a_process_of_its_own_needs_no_screen_and_keeps_what_the_user_has_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPLBACKEND", "svg")
    process.set_up_process("results")
    assert os.environ["MPLBACKEND"] == "svg"
    monkeypatch.delenv("MPLBACKEND")
    process.set_up_process("results")
    assert os.environ["MPLBACKEND"] == "Agg"


@pytest.mark.parametrize(
    ("given", "looks"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "a count", "a policy"],
)
def test_waiting_threads_sleep_soon_before_torch_can_read_how_they_wait(
    given: dict[str, str], looks: str
) -> None:
    code = (
        "import os, sys\n"
        "from sidestep.cli import process\n"
        "from sidestep.cli.main import main\n"
        "share = process.share_cores\n"
        "process.share_cores = lambda: (print('torch' in sys.modules), share())\n"
        "sys.argv[1:] = ['--version']\n"
        "main()\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    kept = {
        name: os.environ[name] for name in os.environ if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept | given)
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == ("False", looks)
