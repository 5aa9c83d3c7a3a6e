"""GL204 skip-path-not-identity: skip paths in a row carry an operator that shrinks or magnifies what they should hand on.

What it finds:
    Residual sums whose skip path holds a weight layer, an activation or a scale, where that path alone makes the gradient grow or
    shrink by 2.2 decades or more over consecutive sums. The few projections with which networks change their width are no such
    thing.

Why it explodes:
    Over L blocks the gradient passes the product of all skip paths. An identity hands it on unchanged however deep the stack is;
    a factor of 0.7 leaves 10^-4.6 of it after 30 blocks, one of 1.4 makes 10^4.4. With the product goes what the skip is for.

How to fix it:
    Move the operator into the branch, x + f(act(x)), or behind the last sum. Where the width changes, use one projection there
    and identities everywhere else. Open the gates of highway layers at the start: transform bias -2 or less.

References:
    He, Zhang, Ren, Sun 2016, Identity Mappings in Deep Residual Networks, arXiv 1603.05027 (constant scaling, gating, 1x1
    convolutions and dropout on the skip path, all worse than the identity).
    Srivastava, Greff, Schmidhuber 2015, Highway Networks, arXiv 1505.00387 (negative bias of the transform gate).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import log10, sqrt

from gradlint.rule import Example, Finding, GraphBuilder, Node, Rule, Severity, Step, Subject, is_weight_layer

FEWEST = 3  # sums; a network changes its width that often


def _blocks(depth: int, scale: float, branch: float = 0.1) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(depth):
        h = builder.linear(builder.op("relu", builder.linear(x, gain=sqrt(2.0))), gain=branch)
        skip = builder.op("mul", x, None, constant=scale) if scale != 1.0 else x
        x = builder.op("add", skip, h)
    return builder


def _projected(depth: int, gain: float) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(depth):
        h = builder.linear(builder.op("relu", x), gain=0.1)
        x = builder.op("add", builder.linear(x, gain=gain), h)
    return builder


class SkipPathNotIdentity(Rule):
    """Skip paths that do something."""

    code = "GL204"
    name = "skip-path-not-identity"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _blocks(20, 0.7), fires_on=tuple(f"add{index}" for index in range(20))),
        Example(lambda: _blocks(20, 1.5), fires_on=tuple(f"add{index}" for index in range(20))),
        Example(lambda: _projected(20, 0.5), fires_on=tuple(f"add{index}" for index in range(20))),
        Example(lambda: _blocks(20, 0.8)),
        Example(lambda: _blocks(20, 1.0)),
        Example(lambda: _projected(20, 1.0)),
        Example(lambda: _blocks(20, 0.7, branch=0.7)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there are residual sums on the spine."""
        return None if any(step.residual for step in subject.steps) else "no residual sum that every path passes"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per run of steps that theory follows, and direction."""
        for trend in subject.claims.trends(subject.runs()):
            changed = [step for step in trend.steps if subject.residuals.on_skip(step)]
            skipped = {step.node: _skipped(subject, step) for step in changed}
            if len(changed) <= FEWEST or not subject.claims.explains(trend, skipped, changed):
                continue
            ops = Counter(node.op for step in changed for node in subject.residuals.on_skip(step))
            yield self.claim(
                subject,
                trend,
                [step.node for step in changed],
                f"{len(changed)} skip paths in a row pass {', '.join(op for op, _ in ops.most_common(2))} and are no identity: "
                f"the gradient {trend.pace(len(changed))} a block",
                remedy="leave the skip path alone: move the operator into the branch, x + f(act(x)), or behind the last sum",
                sums=len(changed),
                factor=trend.factor(len(changed)),
            )


def _skipped(subject: Subject, step: Step) -> float:
    """Decades that the skip path does to the gradient of a block.

    What all paths pass together is the upper limit: where the block shrinks a gradient, its skip path shrinks it as much or more.
    """
    decades = step.decades or 0.0
    nodes = [subject.graph[node] for node in step.residual.skip] if step.residual else []
    return decades if decades <= 0.0 else min(sum(_own(node) for node in nodes), decades)


def _own(node: Node) -> float:
    """Decades of a weight or of a constant factor."""
    weight, constant = node.weights.get("weight"), node.attrs.get("constant")
    if weight is not None and is_weight_layer(node):
        gain = weight.statistics.mean_square * weight.fan_out
        return 0.5 * log10(gain) if gain > 0.0 else 0.0
    if node.op in {"mul", "div"} and isinstance(constant, int | float) and constant:
        return log10(abs(constant)) * (1.0 if node.op == "mul" else -1.0)
    return 0.0
