"""Plans of every version run in PyTorch, a batch at a time, in which nothing is computed for who skips it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidestep.plan.byte_maps import grids_of
from sidestep.plan.format import Op, Plan, Step, inputs_of
from sidestep.targets.byte_ops import Known, run_byte_op, runs_on_bytes
from sidestep.targets.map_shapes import shapes_of
from sidestep.targets.torch_ops import run_op

# Called behind every operation: with the operation, what was known, and what it has computed.
Observe = Callable[[Op, Mapping[int, Tensor], Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOutput:
    """What a plan says about a batch, in the words of the engine.

    Attributes:
        logits: (B, C) float32 of the exit that an image has taken.
        options: (B, L) option of every unit, -1 where an image left before.
        exits: (B) exit that it has taken, counted from 0; the last is the end.
        temperatures: (B) of that exit.
    """

    logits: Any
    options: Any
    exits: Any
    temperatures: Any


class TorchPlan:
    """A plan in PyTorch; `torch_plan(images)` is what the engine says, and `plan` what it runs.

    Bytes are computed in exact integers as docs/plan.md says, everything else in float32.

    Args:
        plan: of any version.
        observe: is shown every operation that runs, or None.
    """

    def __init__(self, plan: Plan, observe: Observe | None = None) -> None:
        self.plan = plan
        self.observe = observe
        self.grids = grids_of(plan.steps)
        self.shapes = shapes_of(plan)
        self._last_read = _last_read(plan.steps, plan.document["output"])

    def __call__(self, images: Any) -> PlanOutput:
        """Return what the plan says about (B, C, H, W) normalised images of the plan's size."""
        with torch.inference_mode():
            return self._run(torch.as_tensor(images))

    def _run(self, images: Tensor) -> PlanOutput:
        said = _Said(len(images), self.plan)
        values: dict[int, Tensor] = {0: images}
        rows, named, num_chosen = torch.arange(len(images)), torch.zeros(len(images), 0, dtype=torch.long), 0
        for place, step in enumerate(self.plan.steps):
            if "ops" in step:
                self.run_ops(step["ops"], values, len(rows))
            elif "choose" in step:
                chosen = values[step["choose"]].argmax(dim=1).expand(len(rows))
                said.options[rows, num_chosen] = chosen
                self.run_options(step, chosen, values)
                num_chosen += 1
            else:
                logits = values[step["exit"]["logits"]]
                named = torch.cat([named, logits.argmax(dim=1, keepdim=True)], dim=1)
                leaving = leaves(step["exit"], logits, named)
                said.leave(rows[leaving], logits[leaving], named.shape[1] - 1, step["exit"]["temperature"])
                rows, named = rows[~leaving], named[~leaving]
                values = {value: x[~leaving] for value, x in values.items()}
            for value in [value for value in values if self._last_read.get(value, -1) <= place]:
                del values[value]
            if not len(rows):
                return said.output()
        temperature = self.plan.document.get("temperature", 1.0)
        said.leave(rows, values[self.plan.document["output"]], named.shape[1], temperature)
        return said.output()

    def run_ops(self, ops: Iterable[Op], values: dict[int, Tensor], count: int) -> None:
        """Run operations on values, and add what they compute to these.

        Args:
            ops: in order.
            values: (B, ...) by their numbers.
            count: B.
        """
        for op in ops:
            if runs_on_bytes(op, self.grids):
                known = Known(values=values, weights=self.plan.tensors, shapes=self.shapes, grids=self.grids)
                out = run_byte_op(op, known)
            else:
                out = run_op(op, values, self.plan.tensors, self.shapes, count)
                # Constants are the same for all images, and a plan may show them as logits.
                out = out if len(out) == count else out.expand(count, *out.shape[1:])
            if self.observe is not None:
                self.observe(op, values, out)
            values[op["out"]] = out

    def run_options(self, step: Step, chosen: Tensor, values: dict[int, Tensor]) -> None:
        """Run every option of a choice for the images that have chosen it, and add what it defines to values.

        Args:
            step: the choice.
            chosen: (B) options.
            values: (B, ...) by their numbers.
        """
        parts: list[tuple[Tensor, list[Tensor]]] = []
        for number, option in enumerate(step["options"]):
            rows = (chosen == number).nonzero()[:, 0]
            if not len(rows):
                continue
            read = {value for op in option["ops"] for value in inputs_of(op)} | set(option["results"])
            inside = {value: values[value][rows] for value in read if value in values}
            self.run_ops(option["ops"], inside, len(rows))
            parts.append((rows, [inside[result] for result in option["results"]]))
        for index, value in enumerate(step["defines"]):
            first = parts[0][1][index]
            made = first.new_empty(len(chosen), *first.shape[1:])
            for rows, results in parts:
                made[rows] = results[index]
            values[value] = made


class _Said:
    """Collects what is said of a batch's images, whenever they leave."""

    def __init__(self, count: int, plan: Plan) -> None:
        self.options = torch.full((count, plan.num_units), -1)
        self.exits = torch.zeros(count, dtype=torch.long)
        self.temperatures = torch.ones(count)
        self.logits: Tensor | None = None

    def leave(self, rows: Tensor, logits: Tensor, index: int, temperature: float) -> None:
        if self.logits is None:
            self.logits = logits.new_zeros(len(self.exits), logits.shape[1])
        self.logits[rows] = logits
        self.exits[rows] = index
        self.temperatures[rows] = temperature

    def output(self) -> PlanOutput:
        assert self.logits is not None
        arrays = {name: getattr(self, name).numpy() for name in ("options", "exits", "temperatures")}
        return PlanOutput(logits=self.logits.numpy(), **arrays)


def leaves(exit_: dict[str, Any], logits: Tensor, named: Tensor) -> Tensor:
    """Return (B,) which images leave at an exit.

    Args:
        exit_: as a plan's step has it.
        logits: (B, C) of the exit.
        named: (B, E) classes that all exits so far have named, this one included.
    """
    criterion, threshold = str(exit_["criterion"]), float(exit_["threshold"])
    same = named == named[:, -1:]
    if criterion == "agreement":
        return (same.sum(dim=1) >= 2).float() >= threshold
    if criterion == "patience":
        return same.flip(1).long().cumprod(dim=1).sum(dim=1) >= threshold
    shares: Tensor = (logits.double() / exit_["temperature"]).softmax(dim=1)
    if criterion == "entropy":
        entropy: Tensor = -torch.special.xlogy(shares, shares).sum(dim=1)
        return entropy <= threshold
    largest = shares.topk(2, dim=1).values
    score = largest[:, 0] if criterion == "confidence" else largest[:, 0] - largest[:, 1]
    return score >= threshold


def _last_read(steps: Sequence[Step], output: int) -> dict[int, int]:
    """Return the step that reads a value last."""
    found: dict[int, int] = {}
    for place, step in enumerate(steps):
        read = [step["choose"]] if "choose" in step else []
        if "exit" in step:
            read.append(step["exit"]["logits"])
        for ops in (step.get("ops", ()), *(option["ops"] for option in step.get("options", ()))):
            read += [value for op in ops for value in inputs_of(op)]
        read += [value for option in step.get("options", ()) for value in option["results"]]
        found.update(dict.fromkeys(read, place))
    return found | {output: len(steps)}
