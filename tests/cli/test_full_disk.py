"""What a command tells on its way goes to a full disk: it does what it is told all the same."""

import errno
import logging
import sys
from io import StringIO

import pytest

from sidestep.cli.process import progress_on_stderr


class Broken(StringIO):
    """A standard error that takes nothing."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, "no")


def test_a_full_disk_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_on_stderr(lambda: True):
        monkeypatch.setattr(sys, "stderr", Broken(errno.ENOSPC))
        logging.getLogger("sidestep.any").info("on its way")
        monkeypatch.setattr(sys, "stderr", Broken(errno.EPIPE))
        with pytest.raises(BrokenPipeError):
            logging.getLogger("sidestep.any").info("nobody reads")
