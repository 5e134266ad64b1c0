"""A network in one ONNX graph that decides with `If`, for one image at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidestep.errors import ExportError
from sidestep.files import write_file
from sidestep.plan.format import Plan
from sidestep.targets.export_target import Exportable, plan_of
from sidestep.targets.map_shapes import Shape
from sidestep.targets.onnx_graph import OnnxGraph, Port, check_onnx
from sidestep.targets.onnx_ops import operations_without_onnx, write_op
from sidestep.targets.onnx_segments import value_name
from sidestep.targets.plain_sums import with_plain_sums
from sidestep.targets.segment_folder import all_shapes, check_cut, frozen, summary_of
from sidestep.targets.segment_route import decided, limits_of_rule
from sidestep.targets.segments import Branch, Segment, cut

LOGITS, EXIT, OPTIONS = "logits", "exit", "options"
# Values by number -> their names in a graph.
_Names = dict[int, str]


def write_onnx_if(exportable: Exportable, path: Path) -> str:
    """Write a network as one ONNX file and return a few words about it.

    Its input is one normalised image, (1, C, H, W); its outputs are the (1, C) logits, the (1,) exit and the
    (L,) options of units, -1 of those behind the exit.

    Args:
        exportable: a network that has a plan.
        path: of the file.

    Raises:
        ExportError: for a network that cannot be cut.
    """
    check_onnx()
    check_cut(exportable)
    plan, freezing = plan_of(exportable), frozen(exportable)
    if unknown := operations_without_onnx(plan):
        raise ExportError(
            f"onnx-if must be of operations that it knows, and this network has {', '.join(unknown)}; "
            "export it to onnx, or to a plan"
        )
    plan = with_plain_sums(plan)
    segments = cut(plan, freezing.units, freezing.exits)
    limits = limits_of_rule(exportable.rule, freezing, len(plan.document["classes"]))
    model = _IfWriter(plan, segments, all_shapes(plan, segments), limits).model()
    metadata = {
        **decided(plan.document, exportable.rule, freezing),
        "temperatures": [segment.decision.temperature for segment in segments if segment.decision.logits],
    }
    content = _with_metadata(model, metadata)
    write_file(path, content, what="file", way_out="choose another with --out", error=ExportError)
    count = sum(segment.decision.kind != "end" for segment in segments)
    return f"{count} decision{'s' * (count != 1)}{summary_of(freezing)}"


def _with_metadata(model: bytes, metadata: dict[str, Any]) -> bytes:
    import onnx

    proto = onnx.ModelProto.FromString(model)
    onnx.helper.set_model_props(proto, {"sidestep": json.dumps(metadata, allow_nan=False)})
    content: bytes = proto.SerializeToString()
    return content


@dataclass(slots=True)
class _IfWriter:
    """Writes segments one inside of the other.

    Attributes:
        plan: of the network.
        segments: in order.
        shapes: of all values.
        limits: largest doubt with which images leave at every exit.
        num_graphs: that were begun so far, which keeps names apart.
    """

    plan: Plan
    segments: Sequence[Segment]
    shapes: Mapping[int, Shape]
    limits: Sequence[float]
    num_graphs: int = 0

    def model(self) -> bytes:
        """Return the ONNX file."""
        graph, (branch,) = self._graph(), self.segments[0].branches
        names: _Names = {0: value_name(0)}
        graph.first = names[0]
        said = self._decide(0, graph, self._run(branch, graph, names))
        for name, found in zip((LOGITS, EXIT, OPTIONS), said, strict=False):
            graph.node("Identity", [found], name)
        outputs = self._outputs(0, (LOGITS, EXIT, OPTIONS))
        return graph.model("network", [(value_name(0), self.shapes[0], "float")], outputs)

    def _graph(self) -> OnnxGraph:
        self.num_graphs += 1
        return OnnxGraph(self.plan.tensors, self.shapes, None, prefix=f"g{self.num_graphs}_", num_images=1)

    def _run(self, branch: Branch, graph: OnnxGraph, names: _Names) -> _Names:
        """Write a branch and return the names that are known behind it."""
        known = dict(names)
        for op in branch.ops:
            known[op["out"]] = write_op(graph, op, known)
        given = {new: known[old] for new, old in (branch.gives | branch.passes).items()}
        return names | given

    def _decide(self, index: int, graph: OnnxGraph, names: _Names) -> list[str]:
        """Write all behind a segment; return the names of logits, exit and, if any are left, options."""
        segment = self.segments[index]
        decision, fixed = segment.decision, list(segment.fixed.values())
        options = [graph.numbers(*fixed)] if fixed else []
        if decision.kind == "end":
            said = [names[decision.value], graph.numbers(decision.index)]
        elif decision.kind == "exit":
            said = self._leave(index, graph, names)
        else:
            options.append(names[decision.value])
            said = self._decide(index + 1, graph, self._choose(index, graph, names))
        options += said[2:]
        if len(options) > 1:
            options = [graph.node("Concat", options, axis=0)]
        return [*said[:2], *options]

    def _leave(self, index: int, graph: OnnxGraph, names: _Names) -> list[str]:
        decision = self.segments[index].decision
        assert decision.logits is not None  # an exit has some
        logits, ports = names[decision.logits], self._outputs(index + 1, ("x", "y", "z"))

        def leave(inside: OnnxGraph) -> list[str]:
            said = [inside.node("Identity", [logits]), inside.numbers(decision.index)]
            return said + [inside.numbers(*[-1] * shape[0]) for _, shape, _ in ports[2:]]

        def stay(inside: OnnxGraph) -> list[str]:
            (branch,) = self.segments[index + 1].branches
            return self._decide(index + 1, inside, self._run(branch, inside, names))

        limit = graph.number(self.limits[decision.index])
        condition = graph.node("LessOrEqual", [names[decision.value], limit])
        return self._if(graph, condition, leave, stay, ports)

    def _choose(self, index: int, graph: OnnxGraph, names: _Names) -> _Names:
        """Write the options of a unit and return the names behind it."""
        choice, branches = names[self.segments[index].decision.value], self.segments[index + 1].branches
        changed = sorted({value for branch in branches for value in branch.gives | branch.passes})
        ports: list[Port] = [(value_name(value), self.shapes[value], self._kind(value)) for value in changed]

        def option(branch: Branch) -> Callable[[OnnxGraph], list[str]]:
            def run(inside: OnnxGraph) -> list[str]:
                known = self._run(branch, inside, names)
                return [known[value] for value in changed]

            return run

        def among(left: Sequence[Branch]) -> Callable[[OnnxGraph], list[str]]:
            *others, last = left
            if not others:
                return option(last)

            def run(inside: OnnxGraph) -> list[str]:
                wanted = inside.numbers(len(others))
                same = inside.node("Equal", [choice, wanted])
                return self._if(inside, same, option(last), among(others), ports)

            return run

        return names | dict(zip(changed, among(branches)(graph), strict=True))

    def _if(
        self,
        graph: OnnxGraph,
        condition: str,
        then: Callable[[OnnxGraph], list[str]],
        otherwise: Callable[[OnnxGraph], list[str]],
        ports: Sequence[Port],
    ) -> list[str]:
        bodies = []
        for write in (then, otherwise):
            inside = self._graph()
            # An output must be made inside: what only passes is copied.
            names = [inside.node("Identity", [name]) for name in write(inside)]
            bodies.append(inside.body([(name, *port[1:]) for name, port in zip(names, ports, strict=True)]))
        return graph.several("If", [condition], len(ports), then_branch=bodies[0], else_branch=bodies[1])

    def _kind(self, value: int) -> str:
        decisions = [segment.decision for segment in self.segments]
        return (
            "int64" if any(each.kind == "choose" and each.value == value for each in decisions) else "float"
        )

    def _outputs(self, index: int, names: tuple[str, str, str]) -> list[Port]:
        """Return what is known in the end, from a segment on."""
        rest = self.segments[index:]
        units = sum(len(segment.fixed) + (segment.decision.kind == "choose") for segment in rest)
        logits = rest[-1].decision.value
        found: list[Port] = [(names[0], self.shapes[logits], "float"), (names[1], (), "int64")]
        return [*found, (names[2], (units,), "list")] if units else found
