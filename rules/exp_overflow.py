"""GL603 exp-overflow: an exponential of what nothing bounds from above.

What it finds:
    exp, and powers, sinh and cosh of its kind, in the model and in the loss that was given, of an argument that a weight layer
    can make as large as it likes: the log-variance of a variational autoencoder, a hand-written softmax without the shift by the
    maximum, a rate or a scale. Softmax and logsumexp shift by themselves; exp(-x^2), exp(x - max x), exp of a clamp are bounded.
    An error where the probe saw the argument close to the limit, 88.7 in float32 and 11.1 in float16, or the rehearsal broke
    there; a warning where it saw over a quarter of it, where the recipe is in fp16, or where the rehearsal diverged; else a note.

Why it explodes:
    Beyond the limit the value is infinite; already before, the gradient is as large as the value, and one outlier in a batch
    throws the weights so far that the next argument is larger still. Infinity over infinity, as in a softmax, is NaN.

How to fix it:
    Clamp the argument (a log-variance to [-10, 10]), or take softplus in place of exp; softmax, logsumexp, log_softmax in place
    of sums of exponentials; expm1 and log1p do not help against large arguments.

References:
    Yan et al. 2021, Exposing numerical bugs in deep learning via gradient back-propagation, ESEC/FSE (GRIST).
    Blanchard, Higham, Higham 2021, Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 41.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Range, Rule, Severity, Singularity, Subject, Suspect, bounds

REMEDY = "clamp the argument from above, or take softplus"
SOFTMAX = "take softmax or logsumexp, which subtract the maximum first"
SUMS = frozenset({"sum", "div", "softmax", "log_softmax"})
EXPONENTIALS = frozenset({"exp", "pow", "tan", "softmax"})
CLOSE = 0.25  # of the largest exponent: a learned variance is far below it in a model that trains
BROKE = ", and it overflowed in the rehearsal"
NEAR = 3  # operators behind an exponential among which a sum makes it a softmax


def _chain(*ops: str, seen: tuple[float, float] | None = None, dtype: str = "float32") -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    for op in ops:
        x = builder.op("clamp", x, min=-10.0, max=10.0) if op == "clamp" else builder.op(op, x, dtype=dtype)
    return builder if seen is None else builder.measured(ranges={builder.graph.parents(x)[0].id: Range(*seen)})


def _shifted() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    top = builder.op("max", x, shape=(8, 1), dim=-1, keepdim=True)
    builder.op("exp", builder.op("sub", x, top, shape=(8, 64)))
    return builder


class ExpOverflow(Rule):
    """Exponentials that nothing bounds."""

    code = "GL603"
    name = "exp-overflow"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _chain("exp"), fires_on=("exp0",)),
        Example(lambda: _chain("exp", seen=(-3.0, 3.0)), fires_on=("exp0",)),
        Example(lambda: _chain("exp", seen=(-3.0, 40.0)), fires_on=("exp0",)),
        Example(lambda: _chain("exp", seen=(-3.0, 86.0)), fires_on=("exp0",)),
        Example(lambda: _chain("clamp", "exp", dtype="float16", seen=(-10.0, 10.0)).measured()),
        Example(lambda: _chain("clamp", "exp")),
        Example(lambda: _chain("tanh", "exp")),
        Example(lambda: _chain("softmax")),
        Example(_shifted),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each line."""
        groups: dict[object, list[tuple[Singularity, bool, float]]] = {}
        for item in subject.singularities:
            seen = subject.seen(item.operand)
            near = item.nearness(seen.low, seen.high) if seen is not None and item.overflows else 0.0
            hit = seen is not None and item.hit(seen.low, seen.high)
            if item.overflows and (hit or item.expected):
                groups.setdefault(subject.graph[item.node].source or item.node, []).append((item, hit, near))
        for group in groups.values():
            worst, hit, near = max(group, key=lambda found: found[1:])
            seen = subject.seen(worst.operand)
            broke = any(_breaks(subject, item.node) for item, _, _ in group)
            yield self.finding(
                subject,
                [item.node for item, _, _ in group],
                _message(worst.function, (worst.interval.low, worst.interval.high), worst.high, seen) + BROKE * broke,
                severity=_severity(subject, near, hit=hit or broke),
                confidence=Confidence.MEASURED if hit or broke else Confidence.PREDICTED,
                remedy=SOFTMAX if _is_softmax(subject, worst.node) else REMEDY,
                limit=worst.high,
                interval=(worst.interval.low, worst.interval.high),
                seen=(seen.low, seen.high) if seen else None,
            )
        yield from self._of_loss(subject)

    def _of_loss(self, subject: Subject) -> Iterator[Finding]:
        """Findings about operators of the loss function, which are no nodes."""
        lines: dict[object, list[Suspect]] = {}
        for index, item in enumerate(subject.measurement.suspects if subject.measurement else ()):
            if item.overflows:
                lines.setdefault(item.source or index, []).append(item)
        for group in lines.values():
            item = max(group, key=lambda item: (item.hit, item.nearness))
            broke = bool(item.source) and _breaks(subject, item.source)
            hit = item.hit or broke
            seen = Range(item.seen_low, item.seen_high)
            yield self.finding(
                subject,
                [],
                f"in the loss: {_message(item.function, (item.low, item.high), item.points[-1], seen)}{BROKE * broke}",
                severity=_severity(subject, item.nearness, hit=hit),
                confidence=Confidence.MEASURED if hit else Confidence.PREDICTED,
                source=item.source,
                remedy=REMEDY,
                limit=item.points[-1],
                interval=(item.low, item.high),
                seen=(item.seen_low, item.seen_high),
            )


def _severity(subject: Subject, near: float, *, hit: bool) -> Severity:
    """A model with a learned variance trains well for all that could be: what counts is what was seen."""
    if hit:
        return Severity.ERROR
    recipe, rehearsal = subject.task.recipe, subject.rehearsal
    half = recipe is not None and recipe.precision in {"fp16", "fp8"}
    fails = rehearsal is not None and rehearsal.diverged_at is not None
    return Severity.WARNING if near >= CLOSE or half or fails else Severity.NOTE


def _breaks(subject: Subject, place: str) -> bool:
    """Whether an exponential at a node, or at a line of the loss, broke in the rehearsal with the loss that was given."""
    breach = subject.rehearsal.breach if subject.rehearsal is not None else None
    return breach is not None and place == (breach.node or breach.source) and breach.op in EXPONENTIALS


def _message(function: str, interval: tuple[float, float], limit: float, seen: Range | None) -> str:
    said = f"; the probe saw [{seen.low:.3g}, {seen.high:.3g}]" if seen is not None else ""
    return f"{function} of what lies in {bounds(*interval)}, which nothing keeps below {limit:.3g}, where it overflows{said}"


def _is_softmax(subject: Subject, node: str) -> bool:
    """Whether an exponential is summed, as in a softmax written by hand."""
    level = [subject.graph[node]]
    for _ in range(NEAR):
        if any(item.op in SUMS for item in level):
            return True
        level = [child for item in level for child in subject.graph.children(item.id)]
    return False
