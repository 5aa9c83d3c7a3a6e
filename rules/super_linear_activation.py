"""GL401 super-linear-activation: activations that grow faster than their argument follow each other, and their powers multiply.

What it finds:
    Squares, cubes, other powers above 1, exponentials, and products of a signal with itself, in layers that no norm and no
    bounded activation separates, so that the output is a polynomial of degree 8 or more in the scale of the signal. An
    exponential of the result of a layer counts as a square, which it outgrows; products of the results of two layers (gates) are
    not counted. It is an error from degree 16 on in a model of drawn weights without residual sums between. A single square, or
    one in each block behind a norm (squared ReLU), is far below.

Why it explodes:
    Three squares in a row are x^8: a signal twice as large gives 256 times the output, and one half as large a 256th. Weights
    that every step scales by a per cent change the output by that many per cent. Trained with Adam and SGD, networks of degree 4
    learn, of degree 8 and 9 part of them diverges under SGD at 0.1, and from degree 16 none of 45 does more than the base rate.

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

from gradlint.rule import (
    Confidence,
    Example,
    Finding,
    GraphBuilder,
    Kind,
    Node,
    Rule,
    Severity,
    Subject,
    is_weight_layer,
    kind_of,
    operator,
)

HIGH = 8.0  # degree: 234 standard architectures stay below
FAILS = 16.0  # degree: 45 of 45 small networks fail
LARGEST = 1e9
RAISES = 1.5  # times: what counts as a power
ROOTS = {"sqrt": 0.5, "rsqrt": 0.0, "reciprocal": 0.0, "log": 0.0}


@dataclass(frozen=True, slots=True)
class _Power:
    """The degree of a signal in the scale of what it was made from, and what raised it.

    `by` are the operators that raised it, and `summed` is whether sums lie between.
    """

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


def _products(depth: int, *, gated: bool = False) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(depth):
        h = builder.linear(x)
        x = builder.op("mul", h, builder.linear(x) if gated else h, shape=(8, 64))
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
        Example(lambda: _products(3), fires_on=("mul0", "mul1", "mul2")),
        Example(lambda: _products(8, gated=True)),
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
    degree = min(_degree(subject, node, before, top.degree), LARGEST)
    by = tuple(dict.fromkeys(name for item in before for name in item.by)) if degree > top.degree else top.by
    by = (*by, node.id) if degree >= RAISES * top.degree > 0.0 and degree > 1.0 else by
    sums = kind is Kind.ADD and sum(item.degree > 0.0 for item in before) > 1
    return _Power(degree, by if degree > 1.0 else (), top.summed or sums)


def _degree(subject: Subject, node: Node, before: list[_Power], top: float) -> float:
    constant = node.attrs.get("constant", node.attrs.get("exponent"))
    exponent = constant if isinstance(constant, (int, float)) else None
    parents = subject.graph.parents(node.id)
    if node.op == "square" or (node.op == "exp" and len(parents) == 1 and is_weight_layer(parents[0])):
        return 2.0 * top
    if node.op == "pow" and exponent is not None and node.inputs and node.inputs[0] is not None:
        return max(float(exponent), 0.0) * top
    if node.op in ROOTS:
        return ROOTS[node.op] * top
    if node.op == "div" and len(before) == 2:
        return max(before[0].degree - before[1].degree, 0.0)
    if node.op == "mul" and len(parents) == 2 and (parents[0] is parents[1] or _is_power_of(subject, *parents)):
        return sum(item.degree for item in before)
    return top


def _is_power_of(subject: Subject, one: Node, other: Node) -> bool:
    """Whether one factor is the other or a product of it, as in x * (x * x)."""
    return one in subject.graph.parents(other.id) or other in subject.graph.parents(one.id)
