"""The trained network of a run, as Python takes it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from sidestep.errors import ExecutionError, RecipeError
from sidestep.evaluation.budget_points import asked_for
from sidestep.networks.network import DynamicNetwork
from sidestep.runs.run_folder import open_run
from sidestep.runs.saved import is_saved, open_saved


def load(
    run: Path | str, *, checkpoint: str = "best", budget: float | None = None, model: nn.Module | None = None
) -> DynamicNetwork:
    """Return the trained network of a run, in evaluation mode, ready for `network(images)`.

    Images leave a network with early exits where `calibrate` has said: that is its `exit_rule`. A network for
    all budgets decides at the one that `calibrate` or else the recipe has said, gates with the biases that
    `calibrate` has left. Where `curve` has kept budgets of gates, `network(images, budget=0.5)` takes one.

    Args:
        run: a run folder, `hf-hub:org/name[@revision]`, `local-dir:path`, or a file that `save` has written.
        checkpoint: "best" or "last".
        budget: of a network for all budgets, or of gates whose budgets `curve` has kept, instead: a fraction
            of the full network's MACs.
        model: the static network of a file that `save` has written, where that is not timm's.

    Raises:
        CheckpointError: when the folder holds no such checkpoint, or it is damaged.
        SidestepError: for a budget that the network was not trained for.
    """
    if is_saved(run) and budget is None:
        return open_saved(Path(run), model).network
    if model is not None:
        raise RecipeError(f"model must go with a file that save has written, got run {run}; drop it")
    opened = open_run(run, checkpoint)
    if budget is not None:
        if opened.network.lets_leave:
            raise ExecutionError(
                f"a budget of early exits is solved on images, got {budget} for run {run}; calibrate the run "
                "with it, and load it without"
            )
        cost, frontier = opened.cost, opened.frontier
        if opened.given is not None:
            opened.ask(asked_for(opened.given, cost, cost, budget * cost.full))
        elif frontier is not None:
            opened.turn(frontier.at(budget).biases)
        else:
            raise ExecutionError(
                f"a budget of gates is solved on images, got {budget} for run {run} whose checkpoint has "
                f"kept none; `sidestep curve {run}` keeps some, `sidestep calibrate {run} --budget {budget}` "
                "that one"
            )
    opened.network.exit_rule = opened.exit_rule
    opened.network.frontier = opened.frontier
    return opened.network
