"""Whether images that leave early save time: the cascade at half of the full cost against running all exits.

For the runs that are named, trained RANets and MSDNets or any with early exits, on images of their test
split; without one for the two small recipes, untrained, on random images. Networks are prepared (BatchNorm
folded, channels_last). Thresholds are solved on the timed images themselves, so that these cost half of the
full network; no accuracy is taken on them. The same images come as one batch, and one by one as a stream.
"""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import Ratio, interleave, options, report
from torch import nn

from sidestep.cost.macs import measure_cost
from sidestep.evaluation.bench import batches_of
from sidestep.evaluation.exit_curve import calibrate, survey_exits
from sidestep.evaluation.goals import ExitGoal
from sidestep.execution.execution import cascade
from sidestep.execution.prepare import prepare
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import load_recipe
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run
from sidestep.types import Batch, CostModel

AIMS = {256: 0.65, 1: 0.6}
NUM_IMAGES, BUDGET = 256, 0.5
RECIPES = Path(__file__).parent.parent / "recipes"
SMALL = ("ranet_small_cifar10", "msdnet_small_cifar10")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network, prepared, and the images that it is timed on.

    Attributes:
        name: for the table.
        network: in evaluation mode.
        cost: its price list.
        batch: the images.
        rule: where they leave.
    """

    name: str
    network: DynamicNetwork
    cost: CostModel
    batch: Batch
    rule: ExitRule

    @classmethod
    def of(cls, name: str, network: DynamicNetwork, cost: CostModel, batch: Batch) -> Case:
        """Return a case whose images cost half of the full network."""
        prepared = prepare(network, batch.images[:2])
        survey = survey_exits(prepared, [batch], cost)
        rule = calibrate(survey, ExitGoal(macs=BUDGET * cost.full), scale=False).rule
        return cls(name=name, network=prepared, cost=cost, batch=batch, rule=rule)


def trained(run: Path, source: str | None) -> Case:
    """Return a run's network with the first images of its test split."""
    opened = open_run(run, "best")
    if not opened.network.has_early_exits:
        raise SystemExit(f"run {run} must have early exits, and has none; name another")
    test = data_of(opened, "test", source).test
    assert test is not None  # all sources have one
    return Case.of(
        run.name, opened.network, opened.cost, next(iter(test.eval_batches(batch_size=NUM_IMAGES)))
    )


def fresh(recipe: str) -> Case:
    """Return the network of a recipe with random weights, BatchNorm settled on random images."""
    images = torch.randn(NUM_IMAGES, 3, 32, 32)
    network = untrained(load_recipe(RECIPES / f"{recipe}.yaml"), num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.inference_mode():
        network.train()(images)
    batch = Batch(images=images, labels=torch.zeros(NUM_IMAGES, dtype=torch.long))
    return Case.of(f"{recipe}, untrained", network.eval(), measure_cost(network, (32, 32)), batch)


def compare(case: Case, batch_size: int, seconds: float) -> Ratio:
    """Return the cascade against all exits at one batch size, in milliseconds a batch, the mean of all."""
    network, rule = case.network, case.rule
    batches = [
        images.contiguous(memory_format=torch.channels_last)
        for images in batches_of(case.batch.images, batch_size)
    ]
    with torch.inference_mode():
        outputs = [network(images, rule=rule, execution=cascade) for images in batches]
        macs = torch.cat([case.cost.per_sample(output.decisions) for output in outputs])
        ms = interleave(
            {
                "cascade": lambda: [network(images, rule=rule, execution=cascade) for images in batches],
                "all exits": lambda: [network(images, rule=rule) for images in batches],
            },
            seconds=seconds,
        )
    return Ratio(
        what=f"{case.name}: cascade, batch {batch_size}, {macs.mean() / case.cost.full:.1%} of the MACs",
        median_ms=ms["cascade"] / len(batches),
        against="all exits",
        against_ms=ms["all exits"] / len(batches),
        aim=AIMS[batch_size],
    )


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument(
        "runs", nargs="*", type=Path, help="run folders; the small recipes without weights if none"
    )
    parser.add_argument("--source", help="where the runs' data lies now (as data.source)")


def main() -> None:
    chosen = options("Cascade at half of the full cost against all exits", seconds=30.0, more=arguments)
    torch.manual_seed(0)
    cases = [trained(run, chosen.source) for run in chosen.runs] or [fresh(recipe) for recipe in SMALL]
    lines = [compare(case, batch_size, chosen.seconds) for case in cases for batch_size in AIMS]
    report("Cascade at half of the full cost against running all exits, float32, CPU", lines, chosen)


if __name__ == "__main__":
    main()
