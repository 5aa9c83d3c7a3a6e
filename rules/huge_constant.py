"""GL606 huge-constant: a constant in the graph drowns the signal, blows it up, or does not fit its number format.

What it finds:
    A constant that is added to a signal over 10^6 times smaller, which then keeps less than a digit of float32 (and over
    10^2 times in bfloat16, 10^3 in float16); a factor of 10^4 or more, or of 10^-4 or less, on a signal that no norm follows and
    no other factor undoes; a constant beyond 65504 in a float16 graph, where it is infinite, such as a mask of -10^9.
    Other masks of logits are left out, for a softmax takes them away again.

Why it matters:
    An addition rounds to the larger operand: what is lost there is lost for what follows. A factor multiplies signal and
    gradient alike, so that layers before and behind it need learning rates that differ by its square. An infinity in a mask
    makes a row of nothing but masked positions NaN.

How to fix it:
    Normalize the data before the model instead of scaling in it; take torch.finfo(x.dtype).min or -inf for masks, with rows
    that are masked wholly left out; drop offsets that are subtracted again later.

References:
    Goldberg 1991, What Every Computer Scientist Should Know About Floating-Point Arithmetic (absorption).
    Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740 (range of float16).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Node, Rule, Severity, Subject

DROWNED = {"float32": 6.0, "float64": 15.0, "float16": 3.0, "bfloat16": 2.0}  # decades: all but the last digit is lost
FACTOR = 4.0  # decades
HALF = 65504.0  # the largest float16
SCALES = frozenset({"mul", "div"})
ADDS = frozenset({"add", "sub"})
NEAR = 12  # operators on each side among which another factor may undo one


def _chain(op: str, constant: float, *, dtype: str = "float32", behind: str = "relu") -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    builder.linear(builder.op(behind, builder.op(op, x, None, shape=(8, 64), constant=constant, dtype=dtype), shape=(8, 64)))
    return builder


def _masked() -> GraphBuilder:
    """A mask of zeros and ones, which a factor turns into zeros and -1e9 before it is added to logits."""
    builder = GraphBuilder()
    logits, mask = builder.linear(builder.input(8, 64)), builder.input(8, 64, name="mask")
    mask = builder.op("mul", builder.op("sub", None, mask, shape=(8, 64), constant=1.0), None, shape=(8, 64), constant=-1e9)
    builder.op("softmax", builder.op("add", logits, mask, shape=(8, 64)), shape=(8, 64), dim=-1)
    return builder


class HugeConstant(Rule):
    """Constants out of proportion to the signal."""

    code = "GL606"
    name = "huge-constant"
    severity = Severity.WARNING
    examples = (
        Example(lambda: _chain("add", 1e8).measured(), fires_on=("add0",)),
        Example(lambda: _chain("mul", 1e5), fires_on=("mul0",)),
        Example(lambda: _chain("div", 1e5), fires_on=("div0",)),
        Example(lambda: _chain("add", -1e9, dtype="float16"), fires_on=("add0",)),
        Example(lambda: _chain("add", 1e5).measured()),
        Example(lambda: _chain("mul", 1e3)),
        Example(lambda: _chain("mul", 1e5, behind="layer_norm")),
        Example(lambda: _chain("add", -1e9, behind="softmax").measured()),
        Example(_masked),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per node."""
        for node in subject.graph:
            constant = _constant(node)
            text = _said(subject, node, constant) if constant else None
            if text is not None:
                yield self.finding(
                    subject,
                    [node.id],
                    text,
                    remedy="scale the data before the model, or drop the constant"
                    if node.op in SCALES
                    else "take torch.finfo(x.dtype).min for a mask; drop an offset that the signal does not survive",
                    confidence=Confidence.MEASURED if subject.measurement is not None else Confidence.PREDICTED,
                    constant=constant,
                )


def _said(subject: Subject, node: Node, constant: float) -> str | None:
    """What is wrong with a constant, None where nothing is."""
    if node.dtype == "float16" and abs(constant) > HALF:
        return f"{constant:.3g} is infinite in float16, whose largest number is {HALF:.0f}"
    if node.id not in subject.structure.signal_set or node.id in subject.masks.made:
        return None
    decades, held = math.log10(abs(constant)), node.dtype or "float32"
    if node.op in ADDS and not _is_masked(subject, node):
        level = _level(subject, node)
        if level is not None and decades - level >= DROWNED.get(held, 6.0):
            return f"{constant:.3g} is added to a signal of {10**level:.1e}, which {held} cannot hold beside it"
    if abs(_factor(node)) >= FACTOR and not _is_undone(subject, node):
        return f"the signal and its gradient are multiplied by 10^{_factor(node):.1f} here"
    return None


def _constant(node: Node) -> float:
    """The scalar operand of a node; 0 where there is none, or none that is finite."""
    constant = node.attrs.get("constant")
    fits = isinstance(constant, (int, float)) and not isinstance(constant, bool) and math.isfinite(constant)
    return float(constant) if fits and constant is not None else 0.0


def _factor(node: Node) -> float:
    """Decades by which a constant factor or divisor scales the signal; 0 for other operators."""
    constant = _constant(node)
    if node.op not in SCALES or not constant or (node.op == "div" and node.inputs[:1] == (None,)):
        return 0.0
    return math.log10(abs(constant)) * (-1.0 if node.op == "div" else 1.0)


def _level(subject: Subject, node: Node) -> float | None:
    """Decades of what a node reads, as measured; None where that is zero or was not measured."""
    gains = subject.measurement.gains if subject.measurement is not None else {}
    levels = [gains[parent.id].forward for parent in subject.graph.parents(node.id) if parent.id in gains]
    known = [level for level in levels if level is not None and math.isfinite(level)]
    return known[0] if known else None


def _is_masked(subject: Subject, node: Node) -> bool:
    """Whether a softmax follows, before which a large constant is a mask, or a constant that it cancels."""
    return any(near.op in {"softmax", "log_softmax"} for near in _neighbors(subject, node, back=False))


def _is_undone(subject: Subject, node: Node) -> bool:
    """Whether a norm follows, or another factor near by takes most of this one back."""
    behind = _neighbors(subject, node, back=False)
    if any(map(subject.normalizes, behind)):
        return True
    factors = [_factor(near) for near in (*behind, *_neighbors(subject, node, back=True))]
    return any(factor and abs(factor + _factor(node)) < FACTOR / 2 for factor in factors)


def _neighbors(subject: Subject, node: Node, *, back: bool) -> list[Node]:
    """The next operators in one direction along a chain without forks."""
    step = subject.graph.parents if back else subject.graph.children
    found: list[Node] = []
    while len(found) < NEAR and len(near := step(node.id)) == 1:
        node = near[0]
        found.append(node)
    return found
