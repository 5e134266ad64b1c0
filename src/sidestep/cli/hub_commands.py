"""Commands about packages: push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sidestep.cli.groups import Trained
from sidestep.cli.options import Only


def push(
    run: Path, to: str, *, private: bool = False, trained: Annotated[Trained, Only("checkpoint")]
) -> None:
    """Write a run's network as a package with a model card, for others to load.

    Commands take a package where they take a run: hf-hub:org/name[@revision], or local-dir:path.

    Args:
        run: run folder.
        to: org/name on the Hugging Face hub, or local-dir:path of a new folder.
        private: let nobody else see it on the hub.
        trained: which weights.
    """
    from sidestep.runs.push import push as push_run

    pushed = push_run(run, to, private=private, checkpoint=trained.checkpoint)
    print(f"wrote {pushed.url}: {pushed.num_bytes / 1e6:.2f} MB; `sidestep evaluate {pushed.place}` loads it")
