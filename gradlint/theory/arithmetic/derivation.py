"""The derivation of one operator's prediction: equations for its signal and its gradients that evaluate to the prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradlint.ops import Kind
from gradlint.signal_path import kind_of
from gradlint.structure import Structure
from gradlint.theory.arithmetic import formulas, mixing
from gradlint.theory.arithmetic.equations import Equation, Number, number
from gradlint.theory.arithmetic.formulas import FORMULAS, Case, Formulas
from gradlint.theory.prediction import Prediction
from gradlint.theory.transfer import fluctuation
from gradlint.theory.transfer.rule import TRANSFER, Call, mean_square

FAMILIES = (formulas, mixing)
"""The modules whose import fills the table of formulas."""

_RECURRENT = "Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063"


@dataclass(frozen=True, slots=True)
class BackwardFactor:
    """The squared gradient factor from an operator to one operand.

    `share` is the part of the operand's squared gradient that comes from this operator. It is None if no other node reads the
    operand.
    """

    operand: str
    factor: Equation
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Derivation:
    """The second moment of an operator's output, and its squared gradient factors, as equations.

    `forward` is None for a node that no signal reaches. `source` names the paper that derives the formulas, or is "".
    """

    forward: Equation | None
    backward: tuple[BackwardFactor, ...] = ()
    source: str = ""


def derive(structure: Structure, prediction: Prediction, node_id: str) -> Derivation:
    """Derive the prediction of a node as equations, whose results are those of the prediction.

    Args:
        structure: The structure of the graph.
        prediction: The prediction of the graph.
        node_id: Id of the node.

    Raises:
        KeyError: The graph has no such node.
    """
    node, output = structure.graph[node_id], prediction.signals.get(node_id)
    if output is None:
        return Derivation(None)
    operands = tuple(prediction.signals.get(ref.node) if ref is not None else None for ref in node.inputs)
    case = Case(Call(node, operands, output.sizes, structure.graph.mode == "train"), output, prediction.cotangents.get(node_id))
    if node.op == "input":
        return Derivation(Equation("q' = 1, as inputs are standardized", ((number(1.0),),)).equal_to(output.log_q))
    found = _formulas(case)
    back: dict[str, BackwardFactor] = {}
    equations = found.backward if len(found.backward) > 1 else found.backward * len(case.call.signals)
    for (slot, _), equation in zip(case.call.signals, equations, strict=False):
        operand = case.call.ref(slot).node
        if operand not in back and node_id in structure.signal_set and operand in structure.signal_set:
            back[operand] = _back(structure, prediction, (node_id, operand), equation, random=found.random)
    return Derivation(found.forward.equal_to(output.log_q), tuple(back.values()), found.source)


def _back(
    structure: Structure, prediction: Prediction, ends: tuple[str, str], equation: Equation, *, random: bool
) -> BackwardFactor:
    node, operand = ends
    output, before = prediction.cotangents.get(node), prediction.cotangents.get(operand)
    if output is None or before is None:
        return BackwardFactor(operand, equation)
    ratio = before.energy - output.energy
    readers = [child for child in structure.graph.children(operand) if child.id in prediction.cotangents]
    if len(readers) == 1 and all(ref.node != operand for ref in structure.trunk):
        drawn = replace(equation, typical=fluctuation.shift_of(before.variance - output.variance)) if random else equation
        return BackwardFactor(operand, drawn.equal_to(ratio))
    return BackwardFactor(operand, equation, min(10.0 ** min(equation.result - ratio, 0.0), 1.0))


def _formulas(case: Case) -> Formulas:
    kind = kind_of(case.node)
    if kind is Kind.EMBEDDING:
        second = number(mean_square(case.weight("weight")))
        return Formulas(Equation("q' = E[W^2] of the rows", ((second,),)))
    if not case.call.signals:
        return Formulas(Equation("q', no operand of it is a signal", ((Number(case.output.log_q),),)))
    special = TRANSFER.own(case.node.op) is not None  # its transfer rule is not that of its kind, so neither is its formula
    made = FORMULAS.own(case.node.op) if special else FORMULAS.find(case.node.op)
    found = made(case) if made is not None else None
    return found if found is not None else _other(case)


def _other(case: Case) -> Formulas:
    """Return formulas for an operator whose transfer rule has no closed form: the predicted factors alone."""
    recurs, moves = (kind_of(case.node) is kind for kind in (Kind.RNN, Kind.SHAPE))
    what = "the cell, run over time" if recurs else "the elements that it keeps" if moves else "what its transfer rule says"
    widest = max((signal for _, signal in case.call.signals), key=lambda signal: signal.size)
    forward, backward = Equation("q' = q", ((Number(widest.log_q),),), what), Equation("1", ((number(1.0),),), what)
    return Formulas(forward, (backward,), _RECURRENT if recurs else "")
