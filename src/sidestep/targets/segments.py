"""A plan cut at its decisions: pieces without branches, which a host runs one after the other."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sidestep.plan.format import Op, Plan, inputs_of

# Operations that only segments have: what a host reads of a decision, as small as can be.
CHOICE, DOUBT, LABEL = "choice", "doubt", "label"
# Scores that ask for the classes which exits have named so far.
COUNTING = ("patience", "agreement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is decided behind a segment.

    Attributes:
        kind: an option of a unit, whether to leave at an exit, or nothing: the end.
        index: of the unit among all units, or of the exit among all exits.
        value: the option or the doubt that a segment computes; the logits at the end.
        logits: with which images leave, or None at a unit.
        criterion: of the doubt at an exit, else empty.
        temperature: by which logits are divided before they are probabilities.
    """

    kind: Literal["choose", "exit", "end"]
    index: int
    value: int
    logits: int | None = None
    criterion: str = ""
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One graph of a segment: what an image runs in one call.

    Attributes:
        option: of the unit in front that it belongs to; None where nothing was chosen.
        ops: operations in order, none of which is idle or repeats one that every image has behind it.
        reads: values from before.
        gives: values that are computed here, as later segments call them -> as operations here do.
        passes: values that are another one from before, under a new name: that of a skipped unit.
    """

    option: int | None
    ops: tuple[Op, ...]
    reads: tuple[int, ...]
    gives: dict[int, int]
    passes: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """All that may run between two decisions.

    Attributes:
        branches: one for every option of the unit in front, in order, or a single one.
        live: values that are known behind it and read later on, those of its decision included.
        fixed: units that run inside of it, frozen, with their options.
        decision: what is decided then.
    """

    branches: tuple[Branch, ...]
    live: tuple[int, ...]
    fixed: dict[int, int]
    decision: Decision


def cut(plan: Plan, frozen: Mapping[int, int], dropped: Collection[int] = ()) -> list[Segment]:
    """Return the segments of a plan, in order; an image runs one branch of each until it leaves.

    Args:
        plan: of any network.
        frozen: the option that all images take, for units that are no longer decided about.
        dropped: exits at which no one leaves any more.
    """
    blocks = _Blocks(plan, frozen, dropped).read()
    constants = {op["out"]: op for block in blocks for op in block.all_ops() if op["op"] == "vconst"}
    known: dict[str, int] = {}
    for block in blocks:
        block.options = [block.whole(known, *option) for option in block.options]
        for op in block.tail:  # which is in every branch
            known.setdefault(_content(op), op["out"])
    segments: list[Segment] = []
    later: set[int] = set()
    for block in reversed(blocks):
        decision = block.decision
        live = later | {decision.value} | ({decision.logits} if decision.logits is not None else set())
        segment = block.segment(tuple(sorted(live)), constants)
        segments.append(segment)
        later = set().union(*(_asked_before(branch, live) for branch in segment.branches))
    return segments[::-1]


def _asked_before(branch: Branch, live: set[int]) -> set[int]:
    """Return what must be known in front of a branch so that all of `live` is known behind it."""
    return (live - set(branch.gives) - set(branch.passes)) | set(branch.reads) | set(branch.passes.values())


def _content(op: Op) -> str:
    """Return what tells operations apart that compute different values."""
    return json.dumps({name: item for name, item in op.items() if name != "out"}, sort_keys=True)


@dataclass(slots=True)
class _Block:
    """What lies between two decisions, still with everything that the plan has there.

    Attributes:
        options: of the unit in front, with operations, and values that are another one there.
        tail: what follows, whatever the option.
    """

    options: list[tuple[int | None, list[Op], dict[int, int]]]
    tail: list[Op] = field(default_factory=list)
    fixed: dict[int, int] = field(default_factory=dict)
    decision: Any = None

    def all_ops(self) -> list[Op]:
        return [*self.tail, *(op for _, ops, _ in self.options for op in ops)]

    def whole(
        self, known: Mapping[str, int], option: int | None, ops: list[Op], same: dict[int, int]
    ) -> tuple[int | None, list[Op], dict[int, int]]:
        """Return an option with all that follows, less what repeats an operation: behind a unit that is
        skipped, frozen or not, a router takes the means of the map that the router before it has taken.

        Args:
            known: values that all images have behind the segments before, by their operations.
            option: of the unit in front.
            ops: of that option alone.
            same: its values that are another one.
        """
        same, inside, kept = dict(same), dict(known), []
        for op in (*ops, *self.tail):
            op = _renamed(op, same)
            first = inside.setdefault(_content(op), op["out"])
            # Constants lie in every graph that reads them.
            if first == op["out"] or op["op"] == "vconst":
                kept.append(op)
            else:
                same = {new: first if old == op["out"] else old for new, old in same.items()}
                same[op["out"]] = first
        return option, kept, same

    def segment(self, live: tuple[int, ...], constants: Mapping[int, Op]) -> Segment:
        branches = tuple(_branch(option, ops, same, live, constants) for option, ops, same in self.options)
        return Segment(branches=branches, live=live, fixed=self.fixed, decision=self.decision)


def _branch(
    option: int | None,
    ops: list[Op],
    same: Mapping[int, int],
    live: tuple[int, ...],
    constants: Mapping[int, Op],
) -> Branch:
    """Return a branch without operations that nothing reads, and with the constants that it does read."""
    computed = {op["out"] for op in ops}
    inside = {value: same.get(value, value) for value in live}
    gives = {value: held for value, held in inside.items() if held in computed or held in constants}
    passes = {value: held for value, held in inside.items() if value != held and value not in gives}
    needed, kept = set(gives.values()), []
    for op in reversed(ops):
        if op["out"] in needed:
            needed.update(inputs_of(op))
            kept.append(op)
    outside = needed - computed
    known = [constants[value] for value in sorted(outside) if value in constants]
    reads = sorted(value for value in outside if value not in constants)
    # A graph must know how many images there are, even if it looks at none.
    reads = reads or ([0] if gives else [])
    return Branch(
        option=option, ops=(*known, *reversed(kept)), reads=tuple(reads), gives=gives, passes=passes
    )


class _Blocks:
    """Reads the steps of a plan into blocks.

    Args:
        plan: as `cut` takes it, and the rest too.
    """

    def __init__(self, plan: Plan, frozen: Mapping[int, int], dropped: Collection[int]) -> None:
        self.plan, self.frozen, self.dropped = plan, frozen, dropped
        self.same: dict[int, int] = {}
        self.labels: list[int] = []
        self.blocks = [_Block([(None, [], {})])]
        self.next_value = 1 + max(_values(plan))

    def read(self) -> list[_Block]:
        unit = exits = 0
        for step in self.plan.steps:
            if "ops" in step:
                self._add(step["ops"])
            elif "choose" in step:
                self._choose(step, unit)
                unit += 1
            else:
                self._exit(step["exit"], exits)
                exits += 1
        output = self._now(self.plan.document["output"])
        temperature = self.plan.document.get("temperature", 1.0)
        self.blocks[-1].decision = Decision(
            kind="end", index=exits, value=output, logits=output, temperature=temperature
        )
        return self.blocks

    def _add(self, ops: list[Op]) -> None:
        self.blocks[-1].tail += [_renamed(op, self.same) for op in ops]

    def _now(self, value: int) -> int:
        return self.same.get(value, value)

    def _synthetic(self, op: str, read: list[int], **fields: Any) -> int:
        value, self.next_value = self.next_value, self.next_value + 1
        self.blocks[-1].tail.append({"op": op, "in": read, "out": value, **fields})
        return value

    def _choose(self, step: Any, unit: int) -> None:
        if unit in self.frozen:
            option = step["options"][self.frozen[unit]]
            self.blocks[-1].fixed[unit] = self.frozen[unit]
            self._add(option["ops"])
            self.same |= dict(zip(step["defines"], map(self._now, option["results"]), strict=True))
            return
        choice = self._synthetic(CHOICE, [self._now(step["choose"])], options=len(step["options"]))
        self.blocks[-1].decision = Decision(kind="choose", index=unit, value=choice)
        options: list[tuple[int | None, list[Op], dict[int, int]]] = [
            (
                index,
                [_renamed(op, self.same) for op in option["ops"]],
                dict(zip(step["defines"], map(self._now, option["results"]), strict=True)),
            )
            for index, option in enumerate(step["options"])
        ]
        self.blocks.append(_Block(options))

    def _exit(self, step: Any, index: int) -> None:
        logits = self._now(step["logits"])
        counts = step["criterion"] in COUNTING
        if counts:
            self.labels.append(self._synthetic(LABEL, [logits]))
        if index in self.dropped:
            return
        asked = {"criterion": step["criterion"], "temperature": step["temperature"]}
        doubt = self._synthetic(DOUBT, list(self.labels) if counts else [logits], **asked)
        self.blocks[-1].decision = Decision(kind="exit", index=index, value=doubt, logits=logits, **asked)
        self.blocks.append(_Block([(None, [], {})]))


def _values(plan: Plan) -> list[int]:
    found = [0]
    for step in plan.steps:
        ops = [*step.get("ops", ()), *(op for option in step.get("options", ()) for op in option["ops"])]
        found += [op["out"] for op in ops] + step.get("defines", [])
    return found


def _renamed(op: Op, same: Mapping[int, int]) -> Op:
    """Return an operation that reads other values for some."""

    def new(values: Any) -> Any:
        return [same.get(v, v) for v in values] if isinstance(values, list) else same.get(values, values)

    return {**op, **{name: new(op[name]) for name in ("in", "residual", "like") if op.get(name) is not None}}
