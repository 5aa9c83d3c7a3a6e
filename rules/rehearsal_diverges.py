"""GL807 rehearsal-diverges: a few dozen steps of the recipe, taken in memory and undone, do not train the model.

What it finds:
    With a recipe, gradlint takes its first optimizer steps (40, or as many as asked for) on the given batches, or on drawn
    ones. It reports a loss or a gradient that is not finite, and a loss that raises on what the model has become; a loss that
    stays over ten times what it was on the same batches; a layer of rectifiers whose units are all zero afterwards; a loss at
    chance that does not move; and one that does not come down, or not below chance, although the same steps bring it down with
    a warm-up or a lower learning rate. With the loss and the target of the user, chance is the best constant: the lowest loss
    of a prediction that is the same for every sample. A loss that has not fallen 3 % below it is rehearsed for five times as
    many steps, and then extrapolated along the line of its second half. It is an error if a run of 100000 steps would not come
    below the constant, if it shows no trend although the updates together were as long as the weights or smaller steps learn in
    the same time, or if it began at more than a thousand times the constant and stays over ten times; it is a warning if the
    steps are too few to tell, or if a loss without a known constant ends where it began; and nothing is said of a loss that
    falls steadily. A weight that stands bare under a log, a root or a fraction bar is extrapolated too: it is reported, with
    the update, if it comes to zero within 100000 of them and the gradient points there all the way; that is an error if as many
    updates are taken and break the loss, and nothing is said if they do not. The cause is found by trying: the operator that
    breaks is looked for in the step that broke, the other ones are told by the change that makes the model train. Where no loss
    was given, a surrogate stands in, and what is found is a warning.

Why it explodes:
    A step longer than 2 / sharpness overshoots, and the loss grows from step to step. One long step can push all units of a
    rectifier below zero, where their gradient is zero for ever. Adam's first steps have full length whatever the gradient; norms
    behind residual sums make them too long for the layers near the output. A probability may reach zero only after updates.

How to fix it:
    What was tried is part of the finding: take the learning rate, the warm-up or the precision with which the loss came down. An
    operator that breaks needs a guard: log-softmax for the log of a softmax, a clamp of the log-variance, eps under a root.

References:
    Cohen et al. 2021, Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, arXiv 2103.00065.
    Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv 2002.04745 (warm-up).
    Lu et al. 2019, Dying ReLU and Initialization: Theory and Numerical Examples, arXiv 1903.06733.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, guard, probed

Cause = probed.Cause
REMEDIES = {
    Cause.OPERATOR: "keep its operands away from where its value or its derivative is not finite",
    Cause.PRECISION: "use bf16, or keep this part in fp32",
    Cause.UNITS: "lower the learning rate, or use a rectifier with a slope below zero",
    Cause.WARMUP: "let the learning rate rise from zero, or put the norms into the residual branches",
    Cause.GROWTH: "initialize or normalize so that the gradient does not grow",
    Cause.RATE: "lower the learning rate",
    Cause.SLOW: "raise the learning rate",
    Cause.SCALE: "standardize inputs and targets, and draw weights so that the first output is as large as the target",
    Cause.UNKNOWN: "check the scale of inputs, targets and loss",
}
SCALES = frozenset({"GL107", "GL601"})
"""Rules about the scale of outputs, inputs and targets."""
BREAKS = frozenset({"GL602", "GL603", "GL605", "GL708"})
"""Rules about operators and formats that break."""


def _builder(**fields: Any) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.op("relu", builder.linear(builder.input(8, 64), name="fc", weight=builder.weight(64, 64, name="fc.weight")))
    builder.linear(x)
    plain: dict[str, Any] = {"asked": 40, "gradient_norms": (1.0,), "layers": {"fc.weight": (1.0, 3.0)}, "changes": (0.1,)}
    first, last = fields.pop("loss")
    found = probed.Rehearsal(**{**plain, "losses": (first, last), "first": first, "last": last, **fields})
    return builder.measured(rehearsal=found).trained(Recipe())


class RehearsalDiverges(Rule):
    """First steps of training that fail."""

    code = "GL807"
    name = "rehearsal-diverges"
    severity = Severity.ERROR
    needs = Needs.RECIPE
    examples = (
        Example(
            lambda: _builder(
                loss=(2.3, 80.0),
                diverged_at=1,
                cause=Cause.RATE,
                trials=(probed.Trial("lr 0.01", 2.3, 1.1, trains=True, lr=0.01),),
            ),
            fires_on=("fc",),
        ),
        Example(
            lambda: _builder(loss=(2.3, 2.3), cause=Cause.UNITS, dead=probed.DeadUnits("relu0", 64, before=0.1, after=1.0)),
            fires_on=("relu0",),
        ),
        Example(
            lambda: _builder(
                loss=(2.3, float("nan")),
                diverged_at=1,
                cause=Cause.OPERATOR,
                breach=probed.NonFiniteUpdate("relu0", "log", "infinity", ((0.0, 1.0),), "model.py:3"),
            ),
            fires_on=("relu0",),
        ),
        Example(lambda: _builder(loss=(2.3, 2.3), stalled=True, chance=2.3), fires_on=("fc",)),
        Example(lambda: _builder(loss=(2.3, 2.3), chance=2.3, outlook=probed.Outlook.SLOW), fires_on=("fc",)),
        Example(lambda: _builder(loss=(2.3, 2.3), chance=2.3, outlook=probed.Outlook.OPEN), fires_on=("fc",)),
        Example(
            lambda: _builder(loss=(2.3, 1.1), leaving=(probed.Leaving("fc.weight", "log", 0.9, -1e-3, 940, confirmed=True),)),
            fires_on=("fc",),
        ),
        Example(lambda: _builder(loss=(2.3, 2.25), longer=True), fires_on=("fc",)),
        Example(lambda: _builder(loss=(2.3, 22.0))),
        Example(lambda: _builder(loss=(2.3, 2.2), longer=True)),
        Example(lambda: _builder(loss=(2.3, 2.25))),
        Example(lambda: _builder(loss=(2.3, 2.3), chance=2.3)),
        Example(lambda: _builder(loss=(2.3, 1.1))),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where steps were rehearsed."""
        return None if subject.training.rehearsal is not None else "nothing was rehearsed"

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """Findings about operators and number formats explain failures that these made, and all others the rest."""
        made = symptom.evidence.get("cause")
        if cause.rule in SCALES and cause.severity is not Severity.ERROR:
            return bool(made is Cause.SCALE)
        return (made in {Cause.OPERATOR, Cause.PRECISION}) == (cause.rule in BREAKS)

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding, with the cause and what was tried."""
        found = subject.training.rehearsal
        if found is None:
            return
        yield from self._leaving(subject, found)
        if not (found.fails or found.outlook or found.lingers):
            return
        loss = subject.training.loss
        seen = (loss and loss.breach) or (found.breach and subject.probe.nonfinite_backward)
        if found.diverged_at == 0 and seen:
            return  # the first pass shows it without any update: GL804, GL805
        yield self.finding(
            subject,
            _places(subject, found),
            f"{_happened(found)}{_reason(subject, found)}",
            severity=_severity(subject, found),
            remedy=_remedy(found),
            confidence=Confidence.MEASURED,
            source=found.breach.source if found.breach else "",
            recipe=subject.recipe.text,
            steps=found.steps,
            diverged_at=found.diverged_at,
            first=found.first,
            last=found.last,
            cause=found.cause,
            outlook=found.outlook,
            chance=found.chance,
            steepest=found.steepest,
            loss=found.stands_in or "given",
            operands=found.breach.operands if found.breach else (),
            tried=[{"change": trial.change, "first": trial.first, "last": trial.last} for trial in found.trials],
        )

    def _leaving(self, subject: Subject, found: probed.Rehearsal) -> Iterator[Finding]:
        """One finding for each weight that goes out of the domain of a function."""
        for item in found.leaving:
            readers = [node.id for node in subject.graph if any(w.name == item.weight for w in node.weights.values())]
            yield self.finding(
                subject,
                readers[:1],
                f"{item.weight}, which stands bare in {item.function}, is {item.value:.3g} after {_updates(found.steps)} and "
                f"changes by {item.drift:.2g} in each: it comes to 0, where {item.function} breaks, after about {item.step}"
                f"{', as a longer rehearsal confirms' * item.confirmed}",
                severity=Severity.ERROR if item.confirmed else Severity.WARNING,
                remedy="make it positive by construction: softplus or exp of a free weight, or clamp it away from zero",
                confidence=Confidence.MEASURED,
                weight=item.weight,
                function=item.function,
                value=item.value,
                drift=item.drift,
                step=item.step,
            )


def _happened(found: probed.Rehearsal) -> str:
    whose = f" ({found.stands_in})" if found.stands_in else ""
    if found.diverged_at == 0:
        return f"the {_broken(found)}{whose} is not finite before the first update"
    if found.diverged_at is not None and not found.last < float("inf"):
        updates = found.diverged_at
        went = f", in which the loss went from {found.losses[0]:.3g} to {found.losses[updates - 1]:.3g}" if updates > 1 else ""
        if found.raised:
            return f"after {_updates(updates)}{went}, {found.raised}"
        return f"the {_broken(found)}{whose} is not finite after {_updates(updates)}{went}"
    if found.diverged_at is not None:
        return (
            f"the loss{whose} rises from {found.first:.3g} to {found.last:.3g}, and stays over its tenfold from update "
            f"{found.diverged_at} on"
        )
    if found.outlook is not None and not found.behind:
        return _constant(found)
    if found.stalled and not found.behind:
        return f"the loss{whose} does not move: it goes from {found.first:.4g} to {found.last:.4g} in {_updates(found.steps)}"
    known = found.chance is not None and found.last > found.chance
    chance = f", that of chance is {found.chance:.3g}" if known else ""
    return f"the loss{whose} goes from {found.first:.3g} to {found.last:.3g} in {_updates(found.steps)}{chance}"


def _constant(found: probed.Rehearsal) -> str:
    """What a loss does that stays no better than the best constant."""
    went = f"the loss goes from {found.first:.4g} to {found.last:.4g} in {_updates(found.steps)}"
    said = {
        probed.Outlook.SLOW: "at this pace 100000 updates do not bring it below",
        probed.Outlook.STUCK: "the updates were as long as the weights, and it shows no trend",
        probed.Outlook.SCALE: "it begins at more than a thousand times that, and does not come down",
        probed.Outlook.OPEN: "too short to tell whether it learns",
    }
    what = f", {found.chance:.4g}: {said[found.outlook]}" if found.outlook and found.chance is not None else ""
    return f"{went}, no better than the best constant{what}"


def _updates(number: int) -> str:
    return f"{number} update" if number == 1 else f"{number} updates"


def _broken(found: probed.Rehearsal) -> str:
    return "loss" if not found.losses[-1] < float("inf") else "gradient"


def _reason(subject: Subject, found: probed.Rehearsal) -> str:
    """What is to blame, as the end of a sentence."""
    if found.cause is Cause.OPERATOR and found.breach is not None:
        at = f", {found.breach.source}" if found.breach.source else ""
        of = f" of {found.breach.given}" if found.breach.operands else ""
        what = "has no finite derivative" if found.breach.backward else f"gives {found.breach.kind}"
        where = " in the loss" if not found.breach.node else ""
        return f": {found.breach.op}{of} {what}{where}{at}{found.breach.because}"
    if found.dead is not None and found.cause is Cause.UNITS:
        where = subject.graph[found.dead.node].label if found.dead.node in subject.graph else found.dead.node
        return f": {found.dead.after:.0%} of the {found.dead.count} units of {where} have become zero for the whole batch"
    still = found.stalled or found.outlook is not None
    steepest = f"; the gradient of {found.steepest} rises most" if found.steepest and not still else ""
    return {
        Cause.PRECISION: ": half precision cannot hold its numbers",
        Cause.WARMUP: ": norms behind the residual sums, and no warm-up",
        Cause.GROWTH: f": the gradient grows by {_growth(subject)} at initialization already",
        Cause.RATE: ": the learning rate is too high",
        Cause.SLOW: "; the learning rate is too low",
    }.get(found.cause or Cause.UNKNOWN, "") + steepest


def _growth(subject: Subject) -> str:
    """Over layers, or over time steps where it grows further along them."""
    layers = subject.probe.growth.decades
    along = max(subject.probe.time, key=lambda item: item.growth.decades, default=None)
    if along is None or along.growth.decades <= layers:
        return f"{layers:.1f} decades"
    return f"{along.growth.decades:.1f} decades over {along.steps or len(along.backward)} time steps"


def _guard(breach: probed.NonFiniteUpdate) -> str:
    product = breach.becomes.startswith("mul")
    return guard(breach.op, breach.fault, squashed=breach.squashed, backward=breach.backward, product=product)


def _remedy(found: probed.Rehearsal) -> str:
    text = REMEDIES[found.cause or Cause.UNKNOWN]
    if found.cause is Cause.OPERATOR and found.breach is not None:
        text = _guard(found.breach)
    elif "linalg." in found.raised:
        text = guard("cholesky")
    cure = found.cure
    return f"{text}; with {cure.change} the loss comes down from {cure.first:.3g} to {cure.last:.3g}" if cure else text


def _places(subject: Subject, found: probed.Rehearsal) -> list[str]:
    """The operator that broke, the layer that died, or the layer whose gradient rose most."""
    named = [found.breach.node if found.breach else "", found.dead.node if found.dead else ""]
    certain = [node for node in named if node in subject.graph]
    if found.cause is Cause.OPERATOR and found.breach is not None and found.breach.source and not certain:
        return []  # the line of the loss is shown
    layers = [node.id for node in subject.graph if any(weight.name == found.steepest for weight in node.weights.values())]
    return (certain or layers or subject.outputs)[:1]


def _severity(subject: Subject, found: probed.Rehearsal) -> Severity:
    """An error is a certain failure of the user's own loss; statistics of BatchNorm that stay as they are make another model."""
    frozen = any(
        node.op == "batch_norm" and not node.attrs.get("training", subject.graph.mode == "train") for node in subject.graph
    )
    if frozen and found.is_surrogate:
        return Severity.NOTE
    return subject.training.severity
