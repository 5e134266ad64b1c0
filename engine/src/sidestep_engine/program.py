"""Steps of a plan, given to the engine's builder one by one."""

from __future__ import annotations

from typing import Any

from sidestep_engine._engine import Builder, PlanError
from sidestep_engine.plan import Plan

_MOST = 2**31
_FUNCTIONS = ("relu", "sigmoid", "tanh", "sqrt", "exp")
_CRITERIA = ("confidence", "margin", "entropy")

# The settings of every op that has some, in the builder's order: whole numbers, then numbers.
_INTS: dict[str, tuple[str, ...]] = {
    "conv": ("stride", "padding", "groups", "relu"),
    "max_pool": ("kernel", "stride", "padding"),
    "avg_pool": ("kernel", "stride", "ceil"),
    "pad": ("stride", "before", "after"),
    "affine": ("relu",),
    "add": ("relu",),
    "resize": ("height", "width", "align_corners"),
    "linear": ("relu",),
    "vadd": ("relu",),
}
_FLOATS: dict[str, tuple[str, ...]] = {
    "conv": ("slope",),
    "affine": ("slope",),
    "add": ("slope",),
    "relu": ("slope",),
    "linear": ("slope",),
    "vadd": ("slope", "alpha"),
    "vmap": ("slope",),
    "vaffine": ("mul", "add"),
    "vclamp_min": ("min",),
}
_DEFAULTS = {"slope": 0.0, "alpha": 1.0}
_WEIGHTED = ("conv", "affine", "linear", "vconst")
_LISTS = ("concat", "vgather", "add", "scale", "vadd", "vmul", "vdiv")


def build(plan: Plan, precision: str, isa: str, num_threads: int) -> Any:
    """Return the native engine of a plan.

    Raises:
        PlanError: when the plan cannot be run.
    """
    maker = _Maker(plan)
    for step in plan.steps:
        maker.step(step)
    return maker.builder.build(_id(plan.output), precision, isa, num_threads)


class _Maker:
    def __init__(self, plan: Plan) -> None:
        self.builder = Builder(plan.channels, plan.mean, plan.std, 1 + _count(plan.steps))
        self.ids = {name: self.builder.tensor(array) for name, array in plan.tensors.items()}

    def step(self, step: Any) -> None:
        if not isinstance(step, dict):
            raise PlanError("a step must be an object")
        if "ops" in step:
            self.ops(step["ops"])
        elif "choose" in step:
            self.choose(step)
        elif "exit" in step:
            self.exit(step["exit"])
        else:
            raise PlanError(f"a step must have ops, choose or exit, got {sorted(step)}")

    def ops(self, ops: Any) -> None:
        for op in _list(ops, "ops"):
            if not isinstance(op, dict) or not isinstance(op.get("op"), str):
                raise PlanError("an op must be an object with a name")
            self.op(op, op["op"])

    def op(self, op: dict[str, Any], kind: str) -> None:
        ints = [_whole(op.get(name, 0), name) for name in _INTS.get(kind, ())]
        if kind == "resize" and op.get("like") is None:
            ints[:2] = [_whole(side, "size") for side in _list(op.get("size"), "size")][:2]
        if kind == "vgather":
            ints = [_whole(index, "indices") for index in _list(op.get("indices"), "indices")]
        if kind == "vmap":
            ints = [_index(op.get("function"), _FUNCTIONS, "function")]
        floats = [_number(op.get(name, _DEFAULTS.get(name)), name) for name in _FLOATS.get(kind, ())]
        weight = self.tensor(op.get("weight")) if kind in _WEIGHTED else -1
        bias = self.tensor(op.get("bias")) if kind in _WEIGHTED else -1
        self.builder.op(kind, _inputs(op, kind), _id(op.get("out")), ints, floats, weight, bias)

    def tensor(self, name: Any) -> int:
        if name is None:
            return -1
        if not isinstance(name, str) or name not in self.ids:
            raise PlanError(f"tensor {name!r} is not in the plan")
        return int(self.ids[name])

    def choose(self, step: dict[str, Any]) -> None:
        self.builder.choose(_id(step["choose"]), [_id(id) for id in _list(step.get("defines"), "defines")])
        for option in _list(step.get("options"), "options"):
            if not isinstance(option, dict):
                raise PlanError("an option must be an object")
            self.builder.option([_id(id) for id in _list(option.get("results"), "results")])
            self.ops(option.get("ops"))
        self.builder.end_choice()

    def exit(self, exit: Any) -> None:
        if not isinstance(exit, dict):
            raise PlanError("an exit must be an object")
        self.builder.leave(
            _id(exit.get("logits")),
            _index(exit.get("criterion"), _CRITERIA, "criterion"),
            _number(exit.get("threshold"), "threshold"),
            _number(exit.get("temperature", 1.0), "temperature"),
        )


def _inputs(op: dict[str, Any], kind: str) -> list[int]:
    if kind == "vconst":
        return []
    value = op.get("in")
    inputs = [_id(id) for id in _list(value, "in")] if kind in _LISTS else [_id(value)]
    second = {"conv": "residual", "resize": "like"}.get(kind)
    if second is not None and op.get(second) is not None:
        inputs.append(_id(op[second]))
    return inputs


def _count(steps: list[Any]) -> int:
    """Return the largest id that the steps define, at most as many as they have entries."""
    largest = 0
    for step in _dicts(steps):
        blocks = [step, *_dicts(step.get("options"))]
        defines = step.get("defines")
        ids = [op.get("out") for block in blocks for op in _dicts(block.get("ops"))]
        ids += defines if isinstance(defines, list) else []
        largest = max([largest, *[id for id in ids if isinstance(id, int)]])
    return min(largest, _MOST)


def _dicts(values: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; what else there is will be refused where it is used."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise PlanError(f"{name} must be a list, got {type(value).__name__}")
    return value


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or abs(value) > _MOST:
        raise PlanError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def _id(value: Any) -> int:
    if isinstance(value, bool):
        raise PlanError(f"a value must be a whole number, got {value!r}")
    return _whole(value, "a value")


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 3.4e38:
        raise PlanError(f"{name} must be a number, got {value!r}")
    return float(value)


def _index(value: Any, known: tuple[str, ...], name: str) -> int:
    if value not in known:
        raise PlanError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return known.index(value)
