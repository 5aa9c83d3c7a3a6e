"""GL605 half-precision-headroom: numbers of a training step that a format of few bits cannot hold.

What it finds:
    With a recipe in fp16 or fp8, or weights in fp16: activations beyond the largest number of the format (65504 in fp16, 448 in
    the e4m3 of fp8) or within a factor 4 of it; gradients beyond it at the recipe's loss scale; a tenth or more of the weights'
    gradient values that the format rounds to zero, at that scale and at the best one. Operators that mixed precision leaves in
    float32 (norms, softmax, logarithms, losses) are left out. bf16 has the range of float32.

Why it matters:
    What is too large becomes infinite and the step is lost; what is too small becomes zero and the layer does not learn. The
    gradient has fewer bits of range than it spreads over, and moving it by a loss scale uses all of them.

How to fix it:
    Scale the loss (torch.amp.GradScaler, or loss_scale in the recipe), normalize before what is large, or train in bf16. In fp8
    scale each tensor by its own largest value.

References:
    Micikevicius et al. 2018, Mixed Precision Training, ICLR, arXiv 1710.03740 (range of fp16, loss scaling).
    Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv 2209.05433 (e4m3, e5m2).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Kind, Needs, Rule, Severity, Subject, kind_of, probed

MARGIN = 4.0  # activations grow by more than this in training (outlier features)
LOST = 0.1  # share of gradient values that may go before training suffers
FULL = frozenset({Kind.NORM, Kind.SOFTMAX, Kind.MATH, Kind.REDUCE, Kind.LOSS, Kind.CUT, Kind.INPUT})
"""Kinds of operators that mixed precision runs in float32, or that compute nothing."""


def _step(
    activation: float = 10.0,
    gradient: float = 1e-3,
    lost: float = 0.0,
    saved: float = 0.0,
    *,
    scale: float | None = None,
    precision: str = "fp16",
) -> GraphBuilder:
    builder = GraphBuilder()
    node = builder.linear(builder.input(8, 64), name="fc", weight=builder.weight(64, 64, name="fc.weight"))
    largest = 65504.0 if precision == "fp16" else 448.0
    found = probed.Headroom(
        precision=precision,
        forward=largest,
        backward=65504.0 if precision == "fp16" else 57344.0,
        loss_scale=scale,
        best_scale=65536.0,
        nodes={node: probed.Levels(activation, gradient, lost, saved)},
        weights={"fc.weight": probed.Levels(None, gradient, lost, saved)},
        lost=lost,
        saved=saved,
    )
    return builder.measured(headroom=found)


class HalfPrecisionHeadroom(Rule):
    """Activations and gradients against the limits of a number format."""

    code = "GL605"
    name = "half-precision-headroom"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explains = ("GL807",)
    examples = (
        Example(lambda: _step(activation=7e4), fires_on=("fc",)),
        Example(lambda: _step(activation=2e4), fires_on=("fc",)),
        Example(lambda: _step(activation=300.0, precision="fp8"), fires_on=("fc",)),
        Example(lambda: _step(gradient=8.0, scale=65536.0), fires_on=("fc",)),
        Example(lambda: _step(activation=1e4)),
        Example(lambda: _step(gradient=0.5, scale=65536.0)),
        Example(lambda: _step(lost=0.4, saved=0.01), fires_on=("fc",)),
        Example(lambda: _step(lost=0.05)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Half precision has to be meant."""
        return None if subject.probe.headroom is not None else "no recipe or weight is in fp16 or fp8"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """Findings about activations, about large gradients and about small ones."""
        found = subject.probe.headroom
        if found is None:
            return
        nodes = {id_: level for id_, level in found.nodes.items() if id_ in subject.graph and _is_half(subject, id_)}
        beyond = {
            id_: level.activation or 0.0 for id_, level in nodes.items() if (level.activation or 0.0) * MARGIN > found.forward
        }
        if beyond:
            top = max(beyond, key=beyond.__getitem__)
            over = beyond[top] > found.forward
            yield self.finding(
                subject,
                list(beyond),
                f"activations up to {beyond[top]:.3g} (at {subject.graph[top].label}) where {found.precision} ends at "
                f"{found.forward:g}: {'infinite' if over else f'a margin of {found.forward / beyond[top]:.2g}'}",
                severity=Severity.ERROR if over else Severity.WARNING,
                remedy=f"normalize before it, or train in bf16{'' if found.precision == 'fp16' else '; scale each tensor'}",
                largest=beyond[top],
                limit=found.forward,
            )
        yield from self._gradients(subject, found, nodes)

    def _gradients(self, subject: Subject, found: probed.Headroom, nodes: dict[str, probed.Levels]) -> Iterator[Finding]:
        scale = found.loss_scale or 1.0
        loss = f" of {found.stands_in}" if found.stands_in else ""
        sizes = {id_: (level.gradient or 0.0) * scale for id_, level in nodes.items()}
        large = {id_: size for id_, size in sizes.items() if size > found.backward}
        if large:
            top = max(large, key=large.__getitem__)
            yield self.finding(
                subject,
                list(large),
                f"gradients{loss} reach {large[top]:.3g} (at {subject.graph[top].label}) at a loss scale of {scale:g}, where "
                f"{found.precision} ends at {found.backward:g}",
                remedy=f"a loss scale of at most {found.best_scale:g}, or a dynamic one (torch.amp.GradScaler)",
                largest=large[top],
                limit=found.backward,
                best_scale=found.best_scale,
            )
        if found.lost < LOST:
            return
        worst = sorted(found.weights, key=lambda name: -found.weights[name].lost)[:3]
        helps = found.saved < LOST
        scaled = f"at a loss scale of {scale:g}" if found.loss_scale else "without loss scaling"
        users = [node.id for node in subject.graph if any(weight.name in worst for weight in node.weights.values())]
        yield self.finding(
            subject,
            users,
            f"{found.precision} rounds {found.lost:.0%} of the weights' gradient{loss} to zero {scaled}, most of it in "
            f"{', '.join(worst)}; {found.saved:.1%} at {found.best_scale:g}",
            severity=Severity.WARNING,
            remedy=f"scale the loss (torch.amp.GradScaler, or loss_scale={found.best_scale:g})" if helps else "train in bf16",
            lost=found.lost,
            saved=found.saved,
            best_scale=found.best_scale,
        )


def _is_half(subject: Subject, node: str) -> bool:
    return kind_of(subject.graph[node]) not in FULL
