"""How long the search for a frontier takes: 200 candidates as pairs, 40 budgets, 10,000 images."""

from __future__ import annotations

import time

import torch
from measure import options, publish, table

from sidestep.evaluation.frontier import Scores, front, frontier_points

AIM_SECONDS = 60.0
NUM_CANDIDATES, NUM_BUDGETS, NUM_IMAGES, NUM_CLASSES = 200, 40, 10_000, 10


def candidates(labels: torch.Tensor) -> list[Scores]:
    """Return simulated classifiers; dearer ones are more accurate, and all err on the same images."""
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(NUM_IMAGES, generator=generator)
    found = []
    for place in range(NUM_CANDIDATES):
        logits = torch.randn(NUM_IMAGES, NUM_CLASSES, generator=generator)
        logits[torch.arange(NUM_IMAGES), labels] += (3 + 3 * place / NUM_CANDIDATES) * (1.5 - hard)
        macs = torch.full((NUM_IMAGES,), 1e7 * 1.02**place, dtype=torch.float64)
        found.append(Scores(name=str(place), log_probs=logits.log_softmax(dim=1), macs=macs))
    return found


def main() -> None:
    chosen = options("The search for a frontier", seconds=0.0)
    labels = torch.arange(NUM_IMAGES) % NUM_CLASSES
    scores = candidates(labels)
    start = time.monotonic()
    points = frontier_points(scores, labels, num_budgets=NUM_BUDGETS, triples=False)
    pairs = time.monotonic() - start
    cells = [
        f"{NUM_CANDIDATES} candidates, {NUM_BUDGETS} budgets, {NUM_IMAGES:,} images",
        f"{len(points):,}",
        str(len(front(points))),
        f"{pairs:.1f}",
        f"{AIM_SECONDS:.0f}",
        "yes" if pairs <= AIM_SECONDS else "no",
    ]
    heads = ["what", "points", "on the front", "seconds", "aim", "met"]
    publish("The search for a frontier, pairs", [table(heads, [cells])], chosen)


if __name__ == "__main__":
    main()
