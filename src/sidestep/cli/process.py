"""What the command line does to its own process. Functions of the library leave their caller's as it is."""

from __future__ import annotations

import os


def set_up_process(command: str) -> None:
    """Prepare a process that runs one command and ends: figures need no screen, Optuna shows errors alone.

    Memory, threads and garbage collection stay as they are: benchmarks/results/fused_passes found nothing in
    changing them. The other processes of one training run the same command line, and come here too.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    if command == "sweep":
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
