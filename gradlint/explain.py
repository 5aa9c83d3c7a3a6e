"""Explain one operator: how its signal and its gradient are computed, in numbers, next to what was measured."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from gradlint.agreement import repeated_stack
from gradlint.engine import Progress, examine
from gradlint.errors import TargetError
from gradlint.graph import Graph, Node
from gradlint.options import Options
from gradlint.result import Gains
from gradlint.rule import Subject
from gradlint.signal_path import is_weight_layer
from gradlint.theory.arithmetic.derivation import Derivation, derive
from gradlint.theory.prediction import Predicted
from gradlint.theory.reading.stacks import Stack
from gradlint.theory.recurrence.loops import Loop
from gradlint.theory.transfer.signal import Signal

_CLOSE = 3  # similar names that an error offers for an unknown name
_LISTED = 5  # names that a message lists before it abridges


@dataclass(frozen=True)
class Explanation:
    """The explanation of one operator.

    `before` holds the predicted signal of each operand, `behind` that of the operator's output (None: the theory has none).
    `backward` holds the predicted gradient, in decades, and `gains` the measured gains of the operator and its operands, by
    node. `reasons` say why the prediction has an interval. `stack` and `loop` are the stack of repeated layers and the
    recurrence that contain the operator, if any.
    """

    node: Node
    derivation: Derivation
    predicted: Predicted | None
    before: tuple[tuple[str, Signal], ...]
    behind: Signal | None
    backward: dict[str, float | None]
    gains: dict[str, Gains]
    reasons: tuple[str, ...]
    stack: Stack | None = None
    loop: Loop | None = None


def explain(target: object, name: str, options: Options, *, progress: Progress | None = None) -> list[Explanation]:
    """Explain the operators that `name` denotes: a node id, a module path, or the unique beginning or end of one.

    Raises TargetError if no operator has the name or if it is not unique, GradlintError if the target cannot be read or run.
    """
    _, subject = examine(target, options, progress)
    stack = repeated_stack(subject)
    return [_explained(subject, node, stack) for node in find(subject.graph, name)]


def find(graph: Graph, name: str) -> list[Node]:
    """Return the nodes that `name` denotes: one node by its id, or all nodes of one module by its path.

    A unique beginning or end of an id or a path is enough. Raises TargetError if there is none or if it is not unique.
    """
    if name in graph:
        return [graph[name]]
    labels = {label: None for node in graph for label in (node.id, node.module) if label}
    matches = [name] if name in labels else [label for label in labels if label.startswith(name) or label.endswith(name)]
    found = [node for node in graph if node.id in matches or node.module in matches] if name else []
    if not found:
        close = difflib.get_close_matches(name, labels, _CLOSE, cutoff=0.4)
        raise TargetError(
            f"no operator or module is called {name!r}", hint=f"the nearest: {', '.join(close or [*labels][:_CLOSE])}"
        )
    if len({node.module or node.id for node in found}) > 1:
        raise TargetError(f"{name!r} stands for {len(found)} operators", hint=f"name one of {_some(node.id for node in found)}")
    return found


def _some(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:_LISTED]) + (", ..." if len(unique) > _LISTED else "")


def _explained(subject: Subject, node: Node, stack: Stack | None) -> Explanation:
    prediction, structure = subject.prediction, subject.structure
    operands = list(dict.fromkeys(ref.node for ref in node.inputs if ref is not None and ref.node in prediction.signals))
    measured = subject.measurement.gains if subject.measurement is not None else {}
    places = structure.spine_index
    inside = stack is not None and node.id in places and places[stack.start] <= places[node.id] <= places[stack.end]
    return Explanation(
        node,
        derive(structure, prediction, node.id),
        prediction.nodes.get(node.id),
        tuple((operand, prediction.signals[operand]) for operand in operands),
        prediction.signals.get(node.id),
        {item: prediction.nodes[item].backward for item in (node.id, *operands) if item in prediction.nodes},
        {item: measured[item] for item in (node.id, *operands) if item in measured},
        tuple(_reasons(subject, node)),
        stack if inside else None,
        next((loop for loop in subject.time.loops if node.id in loop.nodes), None),
    )


def _reasons(subject: Subject, node: Node) -> Iterable[str]:
    """Say why the predicted gradient of a node has an interval: finite layers after it, and operators without a rule."""
    behind = [found for found in subject.graph.descendants(node.id) if found.id in subject.structure.signal_set]
    fans = [
        weight.fan_in for layer in behind if is_weight_layer(layer) for role, weight in layer.weights.items() if role == "weight"
    ]
    if fans:
        several = f"{len(fans)} weight layers" if len(fans) > 1 else "one weight layer"
        yield f"{several} of {min(fans)} or more inputs behind it: gains of finite layers vary (Hanin 2018, arXiv 1801.03744)"
    named = {because: None for item in behind for because in _because(subject, item)}
    if named:
        yield f"behind it: {_some(named)}"
    own = _because(subject, node)
    if own:
        yield f"here: {_some(own)}"


def _because(subject: Subject, node: Node) -> tuple[str, ...]:
    found = subject.prediction.nodes.get(node.id)
    return found.because if found is not None else ()
