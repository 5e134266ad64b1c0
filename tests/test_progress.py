"""Where long work is: told to whoever watches it in this thread, to its end in any case."""

from __future__ import annotations

import threading

import pytest

from sidestep import progress
from sidestep.progress import Pace, Shown, through, time_left, under_way, watched


class Heard:
    """Notes what is told to it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, what: str, total: float) -> Shown:
        self.lines.append(f"{what} of {total:g}")
        return Part(self, what)


class Part:
    def __init__(self, heard: Heard, what: str) -> None:
        self.heard, self.what = heard, what

    def advance(self, amount: float) -> None:
        self.heard.lines.append(f"{self.what} +{amount:g}")

    def end(self) -> None:
        self.heard.lines.append(f"{self.what} ends")


def test_parts_are_told_from_their_beginning_to_their_end() -> None:
    heard = Heard()
    with watched(heard):
        for word in through(["a", "bcd"], "words", 4, len):
            heard.lines.append(word)
            assert list(through([1], "inner", 1)) == [1]
    inner = ["inner of 1", "inner +1", "inner ends"]
    assert heard.lines == ["words of 4", "a", *inner, "words +1", "bcd", *inner, "words +3", "words ends"]


def test_what_is_given_up_ends() -> None:
    heard = Heard()
    with watched(heard):
        for _ in through(range(3), "numbers", 3):
            break
        with pytest.raises(ZeroDivisionError), under_way("sums", 2) as advance:
            advance(1 / 0)
    assert heard.lines == ["numbers of 3", "numbers ends", "sums of 2", "sums ends"]


def test_nobody_else_hears_of_it() -> None:
    heard = Heard()
    assert list(through("ab", "letters", 2)) == ["a", "b"]
    with watched(heard):
        beside = threading.Thread(target=lambda: list(through("ab", "letters", 2)))
        beside.start()
        beside.join()
        assert list(through("", "nothing", 0)) == []
    assert list(through("ab", "letters", 2)) == ["a", "b"]
    assert heard.lines == []


def test_the_rest_takes_as_long_as_what_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.seconds_left(0, 4) is None and pace.clause(0, 4) == ""
    now[0] += 90
    assert pace.seconds_left(3, 4) == 30
    assert pace.clause(1, 4) == ", about 4 min left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (59, "59 s"), (61, "1 min"), (3000, "50 min"), (3660, "1 h 1 min"), (86400, "24 h 0 min")],
)
def test_estimates_have_few_digits(seconds: float, text: str) -> None:
    assert time_left(seconds) == f"about {text} left"
