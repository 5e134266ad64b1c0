"""Sums of vectors without factors, which move into the weights around them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from sidestep.plan.format import Op, Plan, inputs_of, lists_of_ops

# How far apart the scales of values that depend on each other may lie; float32 reaches from 1e-38 to 1e38.
_WIDEST = 1e24
# The value whose scale is 1, as are those of all that no weights can scale.
_PINNED = -1


def with_plain_sums(plan: Plan) -> Plan:
    """Return a plan that computes the same, and adds vectors as they are wherever it has added multiples.

    A router that sees the ones before it adds their features with factors (RDI-Net eq. 7: z_n = s~_n +
    sum_k gamma^k s_{n-k}), and runtimes that know no such sum multiply first. Since c relu(x) is relu(c x)
    for c > 0, a linear layer can yield c times its features, with weights and bias times c, if the weights of
    the layers that read these are divided by c. Scales c are chosen so that factors become 1.

    Args:
        plan: left untouched.
    """
    ops = [op for ops in lists_of_ops(plan.steps) for op in ops]
    if not any(op["op"] == "vadd" and op["alpha"] != 1 for op in ops):
        return plan
    scales = _scales(plan, ops)
    tensors = dict(plan.tensors)
    steps = [dict(step) for step in plan.steps]
    for step in steps:
        if "ops" in step:
            step["ops"] = [_rescaled(op, scales, tensors) for op in step["ops"]]
        if "options" in step:
            step["options"] = [
                {**option, "ops": [_rescaled(op, scales, tensors) for op in option["ops"]]}
                for option in step["options"]
            ]
    return replace(plan, document={**plan.document, "steps": steps}, tensors=tensors)


def _rescaled(op: Op, scales: dict[int, float], tensors: dict[str, Tensor]) -> Op:
    """Return an operation between scaled values; a linear layer's weights are replaced by scaled ones."""
    out = scales.get(op["out"], 1.0)
    if op["op"] == "linear" and {out, scales.get(op["in"], 1.0)} != {1.0}:
        tensors[op["weight"]] = tensors[op["weight"]] * (out / scales.get(op["in"], 1.0))
        if op["bias"] is not None:
            tensors[op["bias"]] = tensors[op["bias"]] * out
    if op["op"] == "vadd":
        factor = op["alpha"] * out / scales.get(op["in"][1], 1.0)
        return {**op, "alpha": 1.0 if math.isclose(factor, 1, rel_tol=1e-9) else factor}
    return op


def _scales(plan: Plan, ops: list[Op]) -> dict[int, float]:
    """Return the scale of every vector that has another one than 1."""
    known = _Ratios()
    used = Counter(name for op in ops for name in (op.get("weight"), op.get("bias")))
    for value in _read_by_decisions(plan):
        known.join(value, _PINNED, 1)
    for op in ops:
        if op["op"] == "vadd":
            known.join(op["out"], op["in"][0], 1)
            continue
        # A factor passes a ReLU, and no other function; weights that others have too stay as they are.
        passes = op["op"] == "linear" and not op.get("activation") and used[op["weight"]] == 1
        passes = passes and (op["bias"] is None or used[op["bias"]] == 1)
        for value in () if passes else (op["out"], *inputs_of(op)):
            known.join(value, _PINNED, 1)
    for op in ops:
        if op["op"] == "vadd" and op["alpha"] > 0:
            known.join(op["in"][1], op["in"][0], op["alpha"])
    return known.scales()


def _read_by_decisions(plan: Plan) -> Iterator[int]:
    yield plan.document["output"]
    for step in plan.steps:
        if "choose" in step:
            yield step["choose"]
            yield from step["defines"]
        if "exit" in step:
            yield step["exit"]["logits"]
        for option in step.get("options", ()):
            yield from option["results"]


@dataclass(slots=True)
class _Ratios:
    """Values whose scales stand in known ratios to each other.

    Attributes:
        parents: of values, each with the ratio of the value's scale to the parent's.
    """

    parents: dict[int, tuple[int, float]] = field(default_factory=dict)

    def root(self, value: int) -> tuple[int, float]:
        """Return the one value that speaks for all in ratio to this one, and the ratio of this one to it."""
        ratio = 1.0
        while value in self.parents:
            value, more = self.parents[value]
            ratio *= more
        return value, ratio

    def join(self, value: int, other: int, ratio: float) -> None:
        """Let the scale of a value be that of another times a ratio, unless they stand in another one."""
        (mine, by), (theirs, times) = self.root(value), self.root(other)
        if mine != theirs:
            if mine == _PINNED:
                self.parents[theirs] = mine, by / (ratio * times)
            else:
                self.parents[mine] = theirs, ratio * times / by

    def scales(self) -> dict[int, float]:
        """Return the scales of values that are not 1, powers of two times their ratios, around 1."""
        together: dict[int, dict[int, float]] = defaultdict(dict)
        for value in self.parents:
            root, ratio = self.root(value)
            together[root] |= {value: ratio, root: 1.0}
        found: dict[int, float] = {}
        for root, ratios in together.items():
            least, most = min(ratios.values()), max(ratios.values())
            if most / least > _WIDEST:
                continue
            middle = 1.0 if root == _PINNED else 2.0 ** -round(math.log2(least * most) / 2)
            found |= {value: ratio * middle for value, ratio in ratios.items()}
        return found
