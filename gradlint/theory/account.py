"""The arithmetic of one operator: what makes its signal and its gradient, as equations whose results are those of the prediction."""

from __future__ import annotations

@dataclass(frozen=True, slots=True)
class Back:
    """What an operator hands to one operand: the squared gradient factor, and the share of that operand's gradient it makes."""

    operand: str
    factor: Equation
    share: float | None = None  # None where nothing else reads the operand


@dataclass(frozen=True, slots=True)
class Account:
    """The second moment of a signal and the squared gradient factors, as equations; None where there is no formula."""

    forward: Equation | None
    backward: tuple[Back, ...] = ()
    source: str = ""


def account(structure: Structure, prediction: Prediction, node_id: str) -> Account:
    """What theory says of a node, as arithmetic whose results are those of the prediction."""
    node, behind = structure.graph[node_id], prediction.signals.get(node_id)
    if behind is None:
        return Account(None)
    operands = tuple(prediction.signals.get(ref.node) if ref is not None else None for ref in node.inputs)
    case = Case(
        Call(node, operands, behind.sizes, structure.graph.mode == "train"), behind, prediction.cotangents.get(node_id)
    )
    if node.op == "input":
        return Account(Equation("q' = 1, as inputs are standardised", ((number(1.0),),)).equal_to(behind.log_q))
    found = _formulas(case)
    back: dict[str, Back] = {}
    equations = found.backward if len(found.backward) > 1 else found.backward * len(case.call.signals)
    for (slot, _), equation in zip(case.call.signals, equations, strict=False):
        operand = case.call.ref(slot).node
        if operand not in back and node_id in structure.signal_set and operand in structure.signal_set:
            back[operand] = _back(structure, prediction, node_id, operand, equation)
    return Account(found.forward.equal_to(behind.log_q), tuple(back.values()), found.source)


def _back(structure: Structure, prediction: Prediction, node: str, operand: str, equation: Equation) -> Back:
    behind, before = prediction.cotangents.get(node), prediction.cotangents.get(operand)
    if behind is None or before is None:
        return Back(operand, equation)
    ratio = before.energy - behind.energy
    readers = [child for child in structure.graph.children(operand) if child.id in prediction.cotangents]
    if len(readers) == 1 and all(ref.node != operand for ref in structure.trunk):
        return Back(operand, equation.equal_to(ratio))
    return Back(operand, equation, min(10.0 ** min(equation.result - ratio, 0.0), 1.0))


def _formulas(case: Case) -> Formulas:
    kind = kind_of(case.node)
    if kind is Kind.EMBEDDING:
        second = number(mean_square(case.weight("weight")))
        return Formulas(Equation("q' = E[W^2] of the rows", ((second,),)))
    if not case.call.signals:
        return Formulas(Equation("q', no operand of it is a signal", ((Number(case.behind.log_q),),)))
    made = _BY_OP.get(case.node.op) or _BY_KIND.get(kind)
    found = made(case) if made is not None else None
    return found if found is not None else _other(case)


def _other(case: Case) -> Formulas:
    """An operator whose rule is no closed formula: what it multiplies by, as predicted."""
    known = {Kind.RNN: "the cell, run over time", Kind.SHAPE: "what it keeps of the elements"}
    what = known.get(kind_of(case.node), "what its transfer rule says")
    unity = Kind.SHAPE is kind_of(case.node)
    widest = max((signal for _, signal in case.call.signals), key=lambda signal: signal.size)
    forward = Equation("q' = q", ((Number(widest.log_q),),), what)
    source = _RECURRENT if kind_of(case.node) is Kind.RNN else ""
    return Formulas(forward, (Equation("1", ((number(1.0),),), what if not unity else "copies or shares of the elements"),), source)


_Maker = Callable[[Case], Formulas | None]
_BY_KIND: dict[Kind, _Maker] = {
    Kind.LINEAR: layer,
    Kind.CONV: layer,
    Kind.NORM: norm,
    Kind.ACTIVATION: function,
    Kind.MATH: function,
    Kind.ADD: add,
    Kind.MUL: multiply,
    Kind.DROPOUT: dropout,
    Kind.SOFTMAX: softmax,
    Kind.ATTENTION: attend,
    Kind.MATMUL: product,
    Kind.CONCAT: concat,
    Kind.POOL: pool,
    Kind.REDUCE: reduce,
}
_BY_OP: dict[str, _Maker] = {"neg": function, "glu": lambda _: None, "multi_head_attention": lambda _: None}
