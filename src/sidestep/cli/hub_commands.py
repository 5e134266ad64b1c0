"""Commands about networks of others, and for others: push, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from sidestep.cli.groups import Trained
from sidestep.cli.options import Only, Overrides
from sidestep.cli.tables import report_table, show, tell
from sidestep.errors import UsageError, typed


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
    command = f"sidestep evaluate {typed(pushed.place)}"
    print(f"wrote {pushed.url}: {pushed.num_bytes / 1e6:.2f} MB; `{command}` loads it")


def import_(
    file: Path,
    *,
    as_: Literal["convnet_aig", "rdi_net", "codinet", "skipnet", "blockdrop", "msdnet", "ranet"]
    | None = None,
    overrides: Overrides,
    out: Path = Path("runs/imported"),
    json: bool = False,
) -> None:
    """Make a run of a checkpoint that a paper's released code has saved.

    It is reported on the test split, and every command takes the run as any other.

    Args:
        file: as torch.save has left it.
        as_: whose code it is from; has to be given.
        overrides: a key of the paper's recipe that the file does not say, such as --data.source.
        out: run folder.
        json: print one JSON object and nothing else.
    """
    from sidestep.runs.import_run import import_run

    if as_ is None:
        raise UsageError("import needs --as, whose code the file is from; see `sidestep import --help`")
    imported = import_run(file, as_, out, overrides)
    show(imported.report, report_table(imported.report, f"{out} (test split)"), json)
    tell(f"wrote {out}; next: `sidestep bench {typed(out)}`, `sidestep push {typed(out)} ORG/NAME`", json)
