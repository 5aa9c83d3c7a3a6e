"""XP102 signal-lost: the signal is measured to fade so far that the outputs depend on biases alone.

What it finds:
    A node that every path passes at which the root mean square of the signal is 10^-9 or less, although the input was larger by
    that much or more. It is an error where float32 has no digits left for it, under 10^-38.

Why it vanishes:
    A weight learns from the product of the gradient behind it and the signal before it. Where the signal is 10^-9, so is the
    gradient of every weight that reads it, and the bias of the next layer drowns what is left.

How to fix it:
    Draw the weights before it at their critical gain, or put a norm between the layers.

References:
    Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, Deep Information Propagation, arXiv 1611.01232.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Effect, Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, Verdict, probed

LOST = -9.0  # decades: a float32 beside a bias of 1 loses all of its digits at 10^-7.2
NOTHING = -38.0  # decades: the smallest normal float32


def _fading(level: float, first: float = 0.0) -> GraphBuilder:
    """A stack whose signal falls evenly from one level to another, in decades."""
    builder = GraphBuilder()
    builder.stack(3, "tanh")
    nodes = [node.id for node in builder.graph]
    for index, node in enumerate(nodes):
        builder.gains(node, 0.0, first + (level - first) * index / (len(nodes) - 1))
    return builder


class SignalLost(Rule):
    """Signals that fade on their way to the output."""

    code = "XP102"
    name = "signal-lost"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explained_by = (Effect.VANISHES,)
    verdict = Verdict.UNTRAINABLE
    examples = (
        Example(lambda: _fading(-9.5), fires_on=("tanh2",)),
        Example(lambda: _fading(-39.0), fires_on=("tanh2",)),
        Example(lambda: _fading(-8.9)),
        Example(lambda: _fading(-9.5, first=-8.0)),
        Example(lambda: _fading(0.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding, at the node where the signal is smallest."""
        levels = {node: level for node in subject.probe.spine if (level := _level(subject.probe, node)) is not None}
        if len(levels) < 2:
            return
        smallest, first = min(levels, key=levels.__getitem__), next(iter(levels.values()))
        if levels[smallest] > LOST or levels[smallest] - first > LOST:
            return
        yield self.finding(
            subject,
            [smallest],
            f"the signal has faded to 10^{levels[smallest]:.1f} here",
            severity=Severity.ERROR if levels[smallest] < NOTHING else Severity.WARNING,
            remedy="draw the weights before it at their critical gain, or put a norm between the layers",
            level=levels[smallest],
            limit=LOST,
        )


def _level(probe: probed.Measurement, node: str) -> float | None:
    """Root mean square of the signal at a node, in decades; None where it was not measured."""
    gains = probe.gains.get(node, probed.Gains())
    return gains.forward
