"""The exception tree: every error a user can cause, as one sentence with name, rule, value and way out."""


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


class TrainingError(SidestepError):
    """Training that cannot go on, such as a loss that is not finite."""


class InterruptedRunError(TrainingError):
    """The user stopped a run; it can be resumed."""

    exit_code = 130


class LostProcessError(TrainingError):
    """Another process of the run has ended; the run can be resumed."""

    exit_code = 1


class LoneProcessError(TrainingError):
    """One process of a run has an error that the others do not have."""
