"""GL401 super-linear-activation: activations that grow faster than their argument follow each other, and their powers multiply.

What it finds:
    Squares, cubes, other powers above 1, exponentials, and products of signals, in layers that no norm and no bounded activation
    separates, so that the output is a polynomial of degree 8 or more in the scale of the signal. An exponential counts as a
    square, which it outgrows. It is an error from degree 16 on in a model of drawn weights without residual sums between; a
    single square, or one in each block behind a norm (squared ReLU, gated units), is far below.

Why it explodes:
    Three squares in a row are x^8: a signal twice as large gives 256 times the output, and one half as large a 256th. Weights
    that every step scales by a per cent change the output by that many per cent. Trained with Adam and SGD, networks of degree 4
    learn, of degree 8 and 9 they diverge for SGD at 0.1 in part, and from degree 16 none of 24 does more than the base rate.

How to fix it:
    Put a norm before each power, or take an activation that grows no faster than its argument.

References:
    Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202; So et al. 2021, Primer, arXiv 2109.08668 (squared ReLU
    behind a norm).
    Chrysos et al. 2020, Pi-nets: Deep Polynomial Neural Networks, arXiv 2003.03828.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Kind, Node, Rule, Severity, Subject, is_weight_layer
from gradlint.rule import kind_of, operator

HIGH = 8.0  # degree: of 88 standard architectures the highest is 4
FAILS = 16.0  # degree: 24 of 24 networks fail
LARGEST = 1e9
RAISES = 1.5  # times: what counts as a power
ROOTS = {"sqrt": 0.5, "rsqrt": 0.0, "reciprocal": 0.0, "log": 0.0}


@dataclass(frozen=True, slots=True)
class _Power:
    """The degree of a signal in the scale of what it was made from, the operators that raised it, and whether sums lie between."""

    degree: float
    by: tuple[str, ...] = ()
    summed: bool = False


def _powers(depth: int, exponent: float = 2.0, *, norm: bool = False, residual: bool = False) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(depth):
        h = builder.linear(builder.norm(x) if norm else x)
        h = builder.op("pow", h, None, constant=exponent, shape=(8, 64))
        x = builder.op("add", x, h, shape=(8, 64)) if residual else h
    builder.linear(x)
    return builder


class SuperLinearActivation(Rule):
    """Powers of powers."""

    code = "GL401"
    name = "super-linear-activation"
    severity = Severity.ERROR
    explains = ("GL107", "GL703", "GL801", "GL802", "GL807")
    examples = (
        Example(lambda: _powers(3), fires_on=("pow0", "pow1", "pow2")),
        Example(lambda: _powers(4), fires_on=("pow0", "pow1", "pow2", "pow3")),
        Example(lambda: _powers(3, 3.0), fires_on=("pow0", "pow1", "pow2")),
        Example(lambda: _powers(4, residual=True), fires_on=("pow0", "pow1", "pow2", "pow3")),
        Example(lambda: _powers(2)),
        Example(lambda: _powers(12, norm=True)),
        Example(lambda: _powers(12, 1.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding, for the highest degree."""
        found: dict[str, _Power] = {}
        worst = _Power(0.0)
        for node in subject.graph:
            if node.is_float:
                found[node.id] = _power(subject, node, found)
                worst = max(worst, found[node.id], key=lambda item: item.degree)
        if worst.degree < HIGH or len(worst.by) < 2:
            return
        sure = worst.degree >= FAILS and not worst.summed and subject.is_initialized(subject.structure.signal)
        yield self.finding(
            subject,
            list(worst.by),
            f"{len(worst.by)} powers follow each other without a norm between: the signal behind them is of degree "
            f"{worst.degree:.3g} in the scale of what enters",
            severity=Severity.ERROR if sure else Severity.WARNING,
            confidence=Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED,
            remedy="put a norm before each of them, or take an activation that grows no faster than its argument",
            degree=worst.degree,
        )


def _power(subject: Subject, node: Node, found: dict[str, _Power]) -> _Power:
    """The power of a node's output, from those of what it reads."""
    before = [found[parent.id] for parent in subject.graph.parents(node.id) if parent.id in found]
    top = max(before, key=lambda item: item.degree, default=_Power(0.0))
    kind, row = kind_of(node), operator(node.op)
    if node.op == "input" or kind is Kind.EMBEDDING or subject.normalizes(node):
        return _Power(1.0)
    if row.bounded or kind is Kind.SOFTMAX or row.cuts or kind is Kind.CUT:
        return _Power(0.0)
    if kind is Kind.RNN or kind is Kind.ATTENTION:
        return _Power(max(1.0, before[-1].degree if before else 1.0), top.by, top.summed)
    if is_weight_layer(node):
        return _Power(max(top.degree, 1.0), top.by, top.summed)
    degree = min(_degree(node, before, top.degree), LARGEST)
    by = tuple(dict.fromkeys(name for item in before for name in item.by)) if degree > top.degree else top.by
    by = (*by, node.id) if degree >= RAISES * top.degree > 0.0 and degree > 1.0 else by
    sums = kind is Kind.ADD and sum(item.degree > 0.0 for item in before) > 1
    return _Power(degree, by if degree > 1.0 else (), top.summed or sums)


def _degree(node: Node, before: list[_Power], top: float) -> float:
    constant = node.attrs.get("constant", node.attrs.get("exponent"))
    exponent = constant if isinstance(constant, (int, float)) else None
    if node.op == "square" or (node.op == "exp" and top > 0.0):
        return 2.0 * top
    if node.op == "pow" and exponent is not None and node.inputs and node.inputs[0] is not None:
        return max(float(exponent), 0.0) * top
    if node.op in ROOTS:
        return ROOTS[node.op] * top
    if node.op == "div" and len(before) == 2:
        return max(before[0].degree - before[1].degree, 0.0)
    if node.op == "mul" or kind_of(node) is Kind.MATMUL:
        parts = [item.degree for item in before]
        return 2.0 * parts[0] if len(parts) == 1 and _squares(node) else sum(parts)
    return top


def _squares(node: Node) -> bool:
    """Whether a product is of a signal with itself."""
    refs = [ref for ref in node.inputs if ref is not None]
    return len(refs) == 2 and refs[0] == refs[1]
