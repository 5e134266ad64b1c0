"""Bars on terminals, and at most one line per part in files and pipes."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import pytest
from rich.console import Console

from sidestep.cli import bars
from sidestep.cli.bars import bars_on_stderr
from sidestep.cli.process import progress_on_stderr
from sidestep.progress import Pace, through


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what a narrow terminal has got."""
    file = io.StringIO()

    def narrow(**options: Any) -> Console:
        return Console(file=file, width=80, force_terminal=True, force_interactive=True, color_system=None)

    monkeypatch.setattr(bars, "Console", narrow)
    monkeypatch.setattr(bars, "_BAR_AFTER", 0.0)
    return file


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything behind a step be a minute."""
    monkeypatch.setattr(Pace, "seconds", 60.0)


def images(numbers: Any = (1, 2, 3, 4)) -> None:
    for _ in through(numbers, "running the network", 4):
        pass


def lines(text: str) -> list[str]:
    """Return the lines that a terminal has shown, without what moves its cursor."""
    return [line.rstrip() for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[\d?;]*[a-zA-Z]", "", text))]


@pytest.mark.usefixtures("slow")
def test_a_bar_says_what_how_far_and_how_long(
    terminal: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars_on_stderr(lambda: True):
        for _ in through(range(2), "runs", 2):
            images()
            print("a result")
    shown = lines(terminal.getvalue())
    assert any(re.fullmatch(r"running the network \S+ +25% about 3 min left", line) for line in shown), shown
    assert any(re.fullmatch(r"runs +\S+ +50% about 1 min left", line) for line in shown), shown
    assert max(map(len, shown)) <= 80
    # Results stay where they belong, whatever the terminal shows.
    assert capsys.readouterr() == ("a result\na result\n", "")


@pytest.mark.usefixtures("slow")
def test_an_error_takes_the_bars_away(terminal: io.StringIO) -> None:
    def fail() -> None:
        with bars_on_stderr(lambda: True):
            for number in through((1, 0), "quotients", 4):
                images()
                assert number, "the second is 0"

    with pytest.raises(AssertionError, match="the second is 0") as error:
        fail()
    hidden, visible = (terminal.getvalue().rfind(code) for code in ("\x1b[?25l", "\x1b[?25h"))
    assert visible > hidden >= 0
    before = terminal.getvalue()
    del error  # the frames of the loops end with it
    assert terminal.getvalue() == before


@pytest.mark.usefixtures("terminal")
def test_the_first_of_several_processes_has_the_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with bars_on_stderr(lambda: False):
        assert not isinstance(bars.Bars(lambda: False)("runs", 2), bars._Bar)
        images()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("slow")
def test_elsewhere_a_part_that_takes_long_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on_stderr(lambda: True), bars_on_stderr(lambda: True):
        images()
    assert capsys.readouterr() == ("", "running the network: 25 %, about 3 min left\n")


def test_elsewhere_what_is_over_soon_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on_stderr(lambda: True), bars_on_stderr(lambda: True):
        images()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("slow")
def test_handlers_of_other_libraries_say_nothing_again(caplog: pytest.LogCaptureFixture) -> None:
    # Those of pytest and NNCF are the root logger's.
    with progress_on_stderr(lambda: True), bars_on_stderr(lambda: True):
        images()
    assert caplog.messages == []
    logging.getLogger("sidestep").warning("behind it")
    assert caplog.messages == ["behind it"]
