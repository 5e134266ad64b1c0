"""The exception tree: every error a user can cause, as one sentence with name, rule, value and way out."""

from __future__ import annotations

import shlex

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class SidestepError(Exception):
    """Base of all errors raised on purpose; the command line prints it and exits with its code."""

    exit_code = 2


class UsageError(SidestepError):
    """A command line with an option, a value or a command that there is not."""


class RecipeError(SidestepError):
    """A recipe that cannot be run: unknown keys, wrong types, values outside their range."""


class DataError(SidestepError):
    """Data that is missing, undecodable, or does not fit the recipe."""


class CheckpointError(SidestepError):
    """Weights or a run folder that cannot be read, written, or matched to the network."""


class ExecutionError(SidestepError):
    """An execution that the network or its mode does not allow."""


class ExportError(SidestepError):
    """A network that cannot be written as a plan, or a plan that cannot be written to a file."""


class OutputError(SidestepError):
    """A file that cannot be written."""


class ServeError(SidestepError):
    """A server that cannot be started as asked."""


class TrainingError(SidestepError):
    """Training that cannot go on, such as a loss that is not finite."""


class InterruptedRunError(TrainingError):
    """The user stopped a run; it can be resumed."""

    exit_code = 130


class RunLockedError(OutputError):
    """A run folder that another process writes into."""


class MemoryShortageError(SidestepError):
    """A network, a batch or a set of images that does not fit into memory."""


class LostProcessError(TrainingError):
    """Another process of the run has ended; the run can be resumed."""

    exit_code = 1


class LoneProcessError(TrainingError):
    """One process of a run has an error that the others do not have."""


class UnkeptWarning(UserWarning):
    """What was found is returned, and the file that should have kept it could not be written."""


def understood(error: BaseException) -> SidestepError | None:
    """Return what a foreign exception means to a user, or None where it means a fault of this package.

    Libraries and the operating system say in their own words that memory, disk or permissions are short, and
    that a process which decodes images has died.
    """
    text = str(error)
    if isinstance(error, SidestepError):
        return error
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text.lower() for words in _NO_MEMORY)
    ):
        return MemoryShortageError(
            f"memory must hold the network, a batch and its images, and it ran out ({first_line(error)}); "
            "lower training.batch_size or the width of the network, or set data.storage: stream"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return DataError(
            f"processes that decode images must live until their end, and one died ({first_line(error)});"
            " lower data.workers, 0 decodes in the main process"
        )
    if isinstance(error, OSError):
        place = f"{error.filename} " if error.filename else "a file "
        return OutputError(
            f"{place}could not be read or written ({error.strerror or first_line(error)}); check the path, "
            "permissions and free space"
        )
    return None


def typed(text: object) -> str:
    """Return a text as it is typed into a shell, for commands that a sentence advises.

    >>> print(typed("runs/a"), typed("my runs/a"))
    runs/a 'my runs/a'
    """
    return shlex.quote(str(text))


def one_line(text: object) -> str:
    """Return a text with all white space as single spaces, so that it fits into a sentence."""
    return " ".join(str(text).split())


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or else its type, for a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
