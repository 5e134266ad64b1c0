"""The command line: finds the command, and says errors in one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sidestep.cli.interrupts import heard_interrupts
from sidestep.errors import LoneProcessError, SidestepError, UsageError, understood

# Everything else is imported where an interrupt is caught.
if TYPE_CHECKING:
    from sidestep.cli.options import Command

_HELP = {"-h", "--help"}
# Exit code where the result was printed, and its file could not be written.
UNKEPT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    That is 0, 2 for a user's error or a file that could not be written, 130 after an interrupt, or 1 when
    another process of the run has ended. Of several processes the first speaks for all; another one tells
    what it has alone.

    Args:
        argv: what the user typed; by default that of this process, which then belongs to the command line.
    """
    with heard_interrupts() as heard:
        try:
            return _guarded(sys.argv[1:] if argv is None else argv, heard, own_process=argv is None)
        except KeyboardInterrupt:
            return _interrupted()


def script() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(main())


def commands() -> dict[str, Command]:
    """Return the commands by name, in the order in which a user meets them."""
    from sidestep.cli import (
        cascade_commands,
        evaluation_commands,
        hub_commands,
        plan_commands,
        result_commands,
        serve_commands,
        training_commands,
    )
    from sidestep.cli.options import command_of

    functions: dict[str, Callable[..., None]] = {
        "quickstart": training_commands.quickstart,
        "recipes": training_commands.recipes,
        "weights": training_commands.weights,
        "train": training_commands.train,
        "sweep": training_commands.sweep,
        "cascade": cascade_commands.cascade,
        "frontier": cascade_commands.frontier,
        "survey": cascade_commands.survey,
        "evaluate": evaluation_commands.evaluate,
        "calibrate": evaluation_commands.calibrate,
        "curve": evaluation_commands.curve,
        "bench": evaluation_commands.bench,
        "export": plan_commands.export,
        "run": plan_commands.run,
        "push": hub_commands.push,
        "import": hub_commands.import_,
        "serve": serve_commands.serve,
        "explore": serve_commands.explore,
        "methods": result_commands.methods,
        "results": result_commands.results,
        "report": result_commands.report,
        "ledger": result_commands.ledger,
    }
    return {name: command_of(name, function) for name, function in functions.items()}


def _guarded(arguments: Sequence[str], heard: Sequence[int], *, own_process: bool) -> int:
    """Run one command, and say in a sentence what has ended it."""
    try:
        return _told(arguments, own_process=own_process)
    except BrokenPipeError:
        # Whoever read has seen enough. What is left in the buffer must not be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if heard and not isinstance(error, SidestepError):
            # Libraries that are being imported turn an interrupt into errors of their own.
            return _interrupted()
        meant = understood(error)
        if meant is None:
            raise
        if _is_first() or isinstance(meant, LoneProcessError):
            print(f"sidestep: {meant}", file=sys.stderr)
        return meant.exit_code


def _told(arguments: Sequence[str], *, own_process: bool) -> int:
    """Run one command, and say in sentences on standard error what it does and what it could not keep."""
    from sidestep.cli.bars import bars_on_stderr
    from sidestep.cli.process import progress_on_stderr, unkept_on_stderr

    with unkept_on_stderr() as unkept, progress_on_stderr(_is_first), bars_on_stderr(_is_first):
        _run(arguments, own_process=own_process)
    sys.stdout.flush()
    return UNKEPT if unkept else 0


def _interrupted() -> int:
    # Modules may be half imported, so that nobody can be asked who speaks for several processes.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("sidestep: interrupted", file=sys.stderr)
    return 130


def _run(arguments: Sequence[str], *, own_process: bool) -> None:
    from sidestep.cli.process import set_up_process, share_cores

    if own_process:
        share_cores()

    from sidestep.cli.help import overview
    from sidestep.cli.parse import arguments_of, way_out, without_imports
    from sidestep.plugins import import_installed_plugins, import_plugins

    known = commands()
    arguments, plugins = without_imports(arguments)
    import_installed_plugins()
    import_plugins(plugins)
    name, *typed = arguments or ["--help"]
    if name in _HELP:
        print(overview(known.values()))
    elif name == "--version":
        from sidestep import __version__

        print(f"sidestep {__version__}")
    elif name not in known:
        raise UsageError(
            f"command must be one that there is, got {name}; {way_out(name, [*known, '--help', '--version'])}"
        )
    elif _HELP & set(typed):
        print(_help(known[name], [item for item in typed if item not in _HELP]))
    else:
        values = arguments_of(known[name], typed)
        if own_process:
            set_up_process(name)
        known[name].function(**values)


def _help(command: Command, typed: Sequence[str]) -> str:
    """Return the help of a command, or of the recipe that is named to it."""
    from sidestep.cli.help import command_help, recipe_help
    from sidestep.cli.parse import arguments_of

    positional = [option for option in command.options if option.is_positional]
    if command.overrides is None or not positional:
        return command_help(command)
    try:
        values = arguments_of(command, typed)
    except UsageError:
        return command_help(command)
    from sidestep.runs.recipe import load_recipe

    named = values[positional[0].name]
    path = named[0] if isinstance(named, list) else named
    return recipe_help(command.name, path, load_recipe(path, values[command.overrides[0]]))


def _is_first() -> bool:
    """Return whether this process speaks for all, without importing torch where that has not been."""
    distributed = sys.modules.get("sidestep.training.distributed")
    if distributed is None:
        return os.environ.get("LOCAL_RANK", "0") == "0"
    first: bool = distributed.is_first()
    return first
