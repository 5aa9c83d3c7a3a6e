"""GL601 input-scale: the batch that was given is far from zero mean and unit variance, and no norm stands before the first layer.

What it finds:
    A float input that was given and reaches a weight layer with a root mean square of 10 or more, or 0.01 or less; with a mean
    ten times its deviation; or with a column a hundred times the median one. Layers whose input or output is normalized are
    left out. Also a regression target that is a hundred times what the model puts out, and one that makes the first loss more
    than a thousand times that of the best constant, because its mean is thirty times its deviation or more: that is an error,
    also of an input, unless a rehearsal brings the loss below the constant.

Why it matters:
    The curvature along the first layer's weights is proportional to the square of its input: at 10 times the scale, the learning
    rate has to be 100 times smaller, and a mean or one large column makes that so for one direction alone. The others then
    hardly learn. A target far out of reach makes the first gradients as large as itself.

How to fix it:
    Subtract the mean and divide by the deviation of the training set, column by column; divide 8-bit images by 255; take the
    logarithm of what spans decades; or let BatchNorm or LayerNorm be the first layer. Standardize the target as well, and undo
    that on what the model predicts.

References:
    LeCun, Bottou, Orr, Mueller 1998, Efficient BackProp, sections 4.3 and 5.2 (convergence and the input's covariance).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import (
    Example,
    Finding,
    GraphBuilder,
    Kind,
    Needs,
    Node,
    Rule,
    Severity,
    Subject,
    is_weight_layer,
    kind_of,
    probed,
)

LARGE, SMALL = 10.0, 0.01  # root mean square: the stable learning rate is off by its square
OFFSET = 10.0  # mean over deviation
COLUMN = 2.0  # decades between the largest column and the median one
TARGET = 100.0  # of the output, which may start at zero: of 1 at least
FAR = 1000.0  # times the loss of the best constant: for squared errors a mean of 32 deviations
LARGER = 3.0  # times the target: with such an output the head is to blame
SAME = frozenset({Kind.SHAPE, Kind.DROPOUT, Kind.CONCAT})


def _fed(rms: float, *, mean: float = 0.0, columns: float = 0.0, norm: str = "") -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    builder.gains(x, 0.0, math.log10(rms))
    builder.linear(builder.norm(x, norm) if norm else x)
    deviation = math.sqrt(max(rms**2 - mean**2, 0.0))
    return builder.measured(inputs=(probed.InputFacts("x", mean, deviation, rms, -rms, rms, columns, 3),))


def _aimed(target: float, *, chance: float | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64))
    facts = probed.LossFacts(target**2, 2.0 * target, output=0.5, target=target, chance=chance, from_zero=True)
    return builder.measured(loss=facts)


class InputScale(Rule):
    """Given inputs and targets of an unfit scale."""

    code = "GL601"
    name = "input-scale"
    severity = Severity.ERROR
    explains = ("GL807",)
    needs = Needs.PROBE
    examples = (
        Example(lambda: _fed(147.0, mean=130.0), fires_on=("x",)),
        Example(lambda: _fed(0.001), fires_on=("x",)),
        Example(lambda: _fed(5.0, mean=4.99), fires_on=("x",)),
        Example(lambda: _fed(5.0, columns=2.5), fires_on=("x",)),
        Example(lambda: _aimed(2000.0), fires_on=("linear0",)),
        Example(lambda: _aimed(40.0, chance=1.0), fires_on=("linear0",)),
        Example(lambda: _fed(9.0, mean=7.0)),
        Example(lambda: _fed(147.0, mean=130.0, norm="batch_norm")),
        Example(lambda: _fed(1.0)),
        Example(lambda: _aimed(20.0)),
        Example(lambda: _aimed(20.0, chance=1.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per input, one for the target."""
        loss = subject.training.loss
        far = loss is not None and (loss.over_chance or 0.0) > FAR and not subject.training.learns
        for facts in subject.probe.inputs:
            is_data = facts.node in subject.graph and facts.node not in subject.masks.made
            readers = _readers(subject, facts.node) if is_data else []
            said = ((_wrong(subject, facts, layer, same=same), layer) for layer, same in readers)
            text, layer = next((item for item in said if item[0]), (None, None))
            if text is not None and layer is not None:
                yield self.finding(
                    subject,
                    [facts.node],
                    f"{text}; {layer.label} reads it without a norm",
                    remedy="subtract its mean and divide by its deviation, column by column (images: divide by 255)",
                    severity=Severity.ERROR if far else Severity.WARNING,
                    mean=facts.mean,
                    deviation=facts.deviation,
                    rms=facts.rms,
                    columns=facts.columns,
                )
        if loss is None or not loss.target or loss.output is None:
            return
        offset = (loss.over_chance or 0.0) > FAR and loss.output < LARGER * loss.target
        if offset or loss.target > TARGET * max(loss.output, 1.0):
            norm = f", and the first gradient has norm {loss.gradient_norm:.3g}" if loss.gradient_norm else ""
            constant = f"; the loss is {loss.value:.3g}, that of the best constant {loss.chance:.3g}" if offset else ""
            yield self.on_loss(
                subject,
                f"the target has a root mean square of {loss.target:.3g}, the model's output {loss.output:.3g}{norm}{constant}",
                severity=Severity.ERROR if offset and far else Severity.WARNING,
                remedy="standardize the target, and undo that on what the model predicts",
                target=loss.target,
                output=loss.output,
                chance=loss.chance,
            )


def _wrong(subject: Subject, facts: probed.InputFacts, layer: Node, *, same: bool) -> str | None:
    """What is wrong with an input as a layer reads it; `same`: nothing but moves of elements lie between the two."""
    gains = subject.probe.gains
    levels = [gains[parent.id].forward for parent in subject.graph.parents(layer.id) if parent.id in gains]
    level = 10.0 ** max((value for value in levels if value is not None), default=0.0)
    if level >= LARGE and facts.rms >= LARGE:
        return f"the input has a root mean square of {facts.rms:.3g} (mean {facts.mean:.3g}, up to {facts.high:.3g})"
    if 0.0 < level <= SMALL and 0.0 < facts.rms <= SMALL:
        return f"the input has a root mean square of {facts.rms:.1e}"
    if same and facts.deviation and abs(facts.mean) >= max(OFFSET * facts.deviation, 1.0):
        return f"the input has a mean of {facts.mean:.3g} at a deviation of {facts.deviation:.3g}"
    if same and facts.columns is not None and facts.columns >= COLUMN and facts.rms >= 1.0:
        return f"column {facts.column} of the input is {10**facts.columns:.0f} times as large as the median one"
    return None


def _readers(subject: Subject, start: str) -> list[tuple[Node, bool]]:
    """The first weight layers behind an input that no norm shields from its scale, and whether they read it as it is."""
    graph, found = subject.graph, []
    stack, seen = [(start, True)], {start}
    while stack:
        at, same = stack.pop()
        for child in graph.children(at):
            if child.id in seen or child.id not in subject.structure.signal_set or subject.normalizes(child):
                continue
            seen.add(child.id)
            if is_weight_layer(child):
                if not _normalized_behind(subject, child):
                    found.append((child, same))
            else:
                stack.append((child.id, same and kind_of(child) in SAME))
    return sorted(found, key=lambda item: graph.position[item[0].id])


def _normalized_behind(subject: Subject, layer: Node) -> bool:
    """Whether a norm takes a layer's scale away again before anything else acts on it."""
    node = layer
    while len(behind := subject.graph.children(node.id)) == 1:
        node = behind[0]
        if subject.normalizes(node):
            return True
        if kind_of(node) is not Kind.SHAPE and not (node.op == "add" and "bias" in node.weights):
            return False
    return bool(behind) and all(map(subject.normalizes, behind))
