"""GL305 norm-eps: the eps of a norm is larger than the variance that it is added to, so that nothing is normalized.

What it finds:
    Norms whose input has a mean square, as measured, of less than a thirtieth of their eps, beside norms right behind an
    embedding or an input, which small numbers are fed to by design. It is an error if together they shrink the gradient along
    the model by 3.5 decades and more. An eps of zero is a warning in any model: a constant input is 0/0 there.

Why it vanishes:
    A norm divides by sqrt(variance + eps). With an eps far above the variance it is a division by a constant: the output is
    smaller than one by sqrt(1 + eps / variance), so is the next input, and neither signal nor gradient is brought back to size.
    Ten layers behind a signal of variance 1/3: an eps of 0.1 costs nothing, one of 10 costs 6 to 10 points of accuracy under
    Adam, and SGD stays at the base rate; with one of 100 both stay there.

How to fix it:
    Take the default: 1e-5, for BatchNorm in 16 bits 1e-3. If the signal is that small, draw the weights before it larger.

References:
    Ba, Kiros, Hinton 2016, Layer Normalization, arXiv 1607.06450.
    Nado et al. 2021, A Large Batch Optimizer Reality Check, arXiv 2102.06356 (the eps of BatchNorm matters).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import LIMIT, Confidence, Example, Finding, GraphBuilder, Kind, Node, Rule, Severity, Subject, kind_of

OVER = 30.0  # times the variance: of 1055 norms the largest is 8 (EfficientNet, 1e-3), but for that of RWKV at an embedding
NEAR = frozenset({Kind.INPUT, Kind.EMBEDDING, Kind.SHAPE, Kind.DROPOUT})
SINGLE = frozenset({"layer_norm", "group_norm", "instance_norm", "batch_norm", "rms_norm"})


def _normed(eps: float, level: float, depth: int = 1, *, embedded: bool = False) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for index in range(depth):
        if not embedded:
            x = builder.linear(x)
        builder.gains(x, 0.0, level)
        x = builder.op("layer_norm", x, name=f"norm{index}", eps=eps, shape=(8, 64))
    return builder


class NormEps(Rule):
    """Norms that do not normalize."""

    code = "GL305"
    name = "norm-eps"
    severity = Severity.ERROR
    explains = ("GL802",)
    examples = (
        Example(lambda: _normed(1.0, -1.0), fires_on=("norm0",)),
        Example(lambda: _normed(100.0, -1.0, depth=3), fires_on=("norm0", "norm1", "norm2")),
        Example(lambda: _normed(0.0, 0.0), fires_on=("norm0",)),
        Example(lambda: _normed(0.2, -1.0)),
        Example(lambda: _normed(1e-5, -2.0)),
        Example(lambda: _normed(1.0, -1.0, embedded=True)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is a norm."""
        return None if any(node.op in SINGLE for node in subject.graph) else "no normalization in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for an eps that is too large, one for an eps of zero."""
        norms = [node for node in subject.graph if node.op in SINGLE and _eps(node) is not None]
        zero = [node.id for node in norms if _eps(node) == 0.0]
        if zero:
            yield self.finding(
                subject,
                zero,
                f"{len(zero)} norms have an eps of zero: a constant input is 0/0",
                severity=Severity.WARNING,
                remedy="take the default, 1e-5",
                eps=0.0,
            )
        over = {node.id: ratio for node in norms if (ratio := self._ratio(subject, node)) is not None and ratio >= OVER}
        if not over:
            return
        worst = max(over, key=over.__getitem__)
        spine = set(subject.structure.spine)
        lost = sum(0.5 * math.log10(1.0 + ratio) for node, ratio in over.items() if node in spine)
        yield self.finding(
            subject,
            list(over),
            f"{len(over)} norms have an eps far above what they normalize, up to {over[worst]:.3g} times "
            f"({_eps(subject.graph[worst]):g}): they divide by a constant",
            severity=Severity.ERROR if lost >= LIMIT else Severity.WARNING,
            confidence=Confidence.MEASURED,
            remedy="take the default, 1e-5, or draw the weights before the norm larger",
            eps=_eps(subject.graph[worst]),
            ratio=over[worst],
            lost=lost,
        )

    @staticmethod
    def _ratio(subject: Subject, norm: Node) -> float | None:
        """The eps over the mean square of what enters a norm; None if that was not measured, is zero, or is raw input.

        A norm that divides by running statistics does not look at what enters it.
        """
        parents = subject.graph.parents(norm.id)
        if norm.op == "batch_norm" and not norm.attrs.get("training", subject.graph.mode == "train"):
            return None
        if subject.measurement is None or not parents or parents[0].id not in subject.measurement.gains:
            return None
        node = parents[0]
        while kind_of(node) in NEAR and (before := subject.graph.parents(node.id)):
            node = before[0]
        level = subject.measurement.gains[parents[0].id].forward
        if kind_of(node) in NEAR or level is None or not math.isfinite(level):
            return None
        square: float = 10.0 ** (2.0 * level)
        return (_eps(norm) or 0.0) / square


def _eps(node: Node) -> float | None:
    """The eps of a norm, as torch or ONNX calls it."""
    found = node.attrs.get("eps", node.attrs.get("epsilon"))
    return float(found) if isinstance(found, (int, float)) else None
