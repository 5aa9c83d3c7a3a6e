"""The rehearsal: take a few dozen optimizer steps, undo them, and find the cause if training fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from gradlint.errors import GradlintError
from gradlint.growth import LIMIT
from gradlint.measurements.rehearsal import (
    FLAT,
    LEARNED,
    LEARNED_CLEARLY,
    RISEN,
    Cause,
    Leaving,
    NonFiniteUpdate,
    Outlook,
    Rehearsal,
    Trial,
    below,
    rise_of,
)
from gradlint.probe.experiments.dead_layers import dead_layer, dead_units, gradient_vanished
from gradlint.probe.experiments.domains import bare_weights, leaving
from gradlint.probe.experiments.non_finite import non_finite_update
from gradlint.probe.experiments.objective import preserved
from gradlint.probe.experiments.outlook import outlook
from gradlint.probe.experiments.setting import Setting
from gradlint.probe.experiments.training import Run, Trainer, batch_of, check_memory
from gradlint.recipe import Recipe
from gradlint.signal_path import is_weight_layer

STEPS = 40  # the default number of steps, four times those over which a momentum of 0.9 averages
LONGER = 5  # times as many, where the loss has not fallen below that of the best constant
ENOUGH = 20  # steps in which a loss should change
SETTLED = 5  # losses in a row that lie far below the constant
SMOOTH = 1.2  # times the first loss: 110 healthy runs end at most there
SECONDS = 60.0  # for all steps together, if the user did not give their number
SECONDS_LONGER = 20.0  # for the longer run
BEYOND = 2.0  # times the step with which a weight is expected to leave its domain: momentum goes on, gradients fade
MOST = 4000  # steps that are taken to see it
DIVERGED = 10.0  # times the first loss; 110 healthy runs of 40 steps end at most at 1.2, and reach at most 3.5 in between
NOISE = 0.5  # of the first loss: replaces RISEN if every step has another batch
LEAST = 0.02  # of the first loss: a loss that falls by less on one and the same batch may be stuck
CURED = 0.1  # of the first loss: a change is a cure only if the loss falls by more
MUCH = 0.25  # of the first loss: smaller steps are much better if they end lower by more, although the loss fell before too
LONG = 10.0  # times the stability limit: the learning rate is far above it
LOWEST = 1e-6, 1e-8  # the lowest learning rates to try: relative to that of the recipe, and absolute
HIGHER = 1e1, 1e2, 1e3, 1e4, 1e5, 1e6  # times the learning rate, where it is too small
HIGHEST = 0.03, 1.0  # the highest learning rates to try: of adaptive optimizers, and of SGD
FAR = 1e-2  # change of a weight tensor in one update, relative to its norm
ORDINARY = 1e6  # larger operands overflow because the signal grew, whatever the operator
SHOWN = 16  # the most layers whose gradient norms are kept


def rehearsal(setting: Setting) -> Mapping[str, Any]:
    """Return the field `rehearsal` of `Measurement`, if a recipe was given and the forward pass is finite.

    The cost is that of one forward and one backward pass per step; if training fails, the same again for each change that is
    tried. Raises GradlintError if the model or the batch cannot be trained on.
    """
    task = setting.task
    if task.recipe is None or task.rehearse == 0 or setting.found.nonfinite_forward is not None:
        return {}
    if task.recipe.precision == "fp8":
        raise GradlintError("steps in fp8 are not rehearsed")
    if not setting.objective.parameters:
        raise GradlintError("the model has no weights to train")
    if not all(np.size(array) for array in batch_of(setting.objective, 0)[0]):
        raise GradlintError("the batch is empty")
    check_memory(task.recipe, [*setting.objective.parameters.values()])
    with preserved(setting.objective.parameters) as restore:
        rehearser = _Rehearser(setting, task.recipe, restore)
        try:
            found = rehearser.rehearse()
        finally:
            setting.objective.restart()
    notes = (f"rehearsal: {found.stopped}",) if found.stopped else ()
    return {"rehearsal": found, "notes": (*setting.found.notes, *notes)}


class _Rehearser:
    """Runs a recipe, and changes of it, on one model. Before every run it restores the initial weights."""

    def __init__(self, setting: Setting, recipe: Recipe, restore: Callable[[], None]) -> None:
        self.setting = setting
        self.recipe = recipe
        self.objective = setting.objective
        self.restore = restore
        self.steps = self.asked = setting.task.rehearse or _default_steps(recipe)
        own = time.monotonic() + (SECONDS if setting.task.rehearse is None else math.inf)
        self.until = min(own, setting.budget.end)
        specs = self.objective.model.inputs
        self.varies = len(setting.task.batches) != 1 and (bool(setting.task.batches) or any(spec.value is None for spec in specs))
        self.bare: dict[str, str] = {}
        self._first_losses: dict[int, float] = {}

    def rehearse(self) -> Rehearsal:
        """Take the steps, judge whether they fail, and if so find the cause."""
        self.setting.progress(f"rehearsing {self.steps} steps of {self.recipe.text}")
        before = dead_units(self.setting)
        self.bare = bare_weights(self.objective) if self.setting.task.loss is not None else {}
        trainer, run = self._run(self.recipe)
        too_short = self._is_too_short(run)
        if too_short:
            self.setting.progress(f"rehearsing {LONGER * self.steps} steps, as the loss is that of a constant")
            longer = self._run(self.recipe, LONGER * self.steps, min(self.until, time.monotonic() + SECONDS_LONGER))
            self.steps = max(len(longer[1].losses) - 1, 1)
            trainer, run = longer
        breach = non_finite_update(trainer) if run.ended else None
        if run.raised:
            self.restore()
            self._first_loss(trainer.index)  # raises if the loss of that batch fails even with the initial weights
        dead = dead_layer(before, dead_units(self.setting)) if not run.ended and gradient_vanished(run) else None
        gone = self._confirmed(leaving(self.objective, self.bare, run.paths)) if not run.ended and not self.recipe.warmup else ()
        first, last = self._ends(run)
        if self._constant is not None and last < below(self._constant):
            dead = None  # units may be dead where others learn
        size = max(abs(first), 1e-12)
        diverged = None
        if run.ended:
            diverged = len(run.losses) - 1
        elif last > first + (DIVERGED - 1.0) * size:
            diverged = _updates_until(run.losses, first + (DIVERGED - 1.0) * size)
        found = Rehearsal(
            asked=max(self.steps, self.asked),
            losses=tuple(run.losses),
            gradient_norms=tuple(run.norms),
            layers=_steepest_layers(run.layers),
            changes=tuple(run.changes),
            first=first,
            last=last,
            diverged_at=diverged,
            behind=diverged is None and last > first + (NOISE if self.varies else RISEN) * size and not _returns(run.losses),
            stalled=diverged is None and abs(last - first) <= FLAT * size and self._should_move(run, last),
            breach=breach,
            dead=dead,
            skipped=run.skipped,
            stands_in=self.objective.stands_in,
            stopped=run.stopped,
            raised=run.raised,
            chance=self.chance,
            outlook=self._outlook(run, last) if diverged is None and dead is None else None,
            leaving=gone,
            longer=too_short,
        )
        doubtful = found.fails or self._may_lag(found) or self._is_long(found)
        return self._with_cause(found) if doubtful and not self.setting.budget.is_spent else found

    @property
    def chance(self) -> float | None:
        """The loss of the best constant, or else of an uninformative prediction; None if it is not known."""
        loss = self.setting.found.loss
        if loss is None:
            return None
        return loss.chance if loss.chance is not None else loss.neutral

    @property
    def _constant(self) -> float | None:
        """The loss of the best constant, if the loss is that of the user; None if it is not known."""
        own = self.setting.task.loss is not None and self.setting.found.loss is not None
        return self.setting.found.loss.chance if own and self.setting.found.loss is not None else None

    def _is_too_short(self, run: Run) -> bool:
        """Return whether a run of default length ended without fault, and no better than the best constant, or than it began."""
        own = self.setting.task.loss is not None and self.setting.task.rehearse is None and self.steps == STEPS
        if not own or run.ended or run.stopped:
            return False
        first, last = self._ends(run)
        floor = self._constant if self._constant is not None else first
        return last >= below(floor) and last <= first + (DIVERGED - 1.0) * abs(first)

    def _outlook(self, run: Run, last: float) -> Outlook | None:
        loss = self.setting.found.loss
        if self._constant is None or loss is None:
            return None
        found = outlook(run, self.recipe, last, self._constant, varies=self.varies)
        # the best constant of an unknown loss may be one that the model cannot put out
        still = found is Outlook.SLOW and abs(last - run.losses[0]) <= FLAT * abs(run.losses[0])
        return found if loss.from_zero or still else None

    def _should_move(self, run: Run, last: float) -> bool:
        """Return whether the loss should change: it is at chance, has a gradient, and the warm-up takes at most half the run."""
        learned = self.chance is None or last < (1.0 - LEARNED) * self.chance
        steps = len(run.norms)
        return not learned and steps >= ENOUGH and run.norms[0] > 0.0 and self.recipe.warmup <= steps // 2

    def _may_lag(self, found: Rehearsal) -> bool:
        """Return whether the weights moved far on one batch while its loss did not fall, or not below chance.

        The steps may then be too long.
        """
        moved = bool(found.changes) and median(found.changes) >= FAR
        return moved and not self.varies and found.last > found.floor - LEAST * abs(found.floor)

    def _is_long(self, found: Rehearsal) -> bool:
        """Return whether the learning rate is far above the stability limit, and the loss of one batch fell by less than half."""
        curvature = self.setting.found.curvature
        long = curvature is not None and self.recipe.first_rate >= LONG * curvature.limit
        return long and not self.varies and found.steps >= ENOUGH and found.last > found.floor - 0.5 * abs(found.floor)

    def _run(self, recipe: Recipe, steps: int | None = None, until: float = math.inf) -> tuple[Trainer, Run]:
        self.restore()
        self.objective.restart()
        trainer = Trainer(self.objective, recipe, self.bare)
        own = self.setting.task.rehearse is not None or steps is not None or self.steps > STEPS
        enough = self._has_learned if not own else lambda _: False
        run = trainer.run(steps or self.steps, min(until, self.until), enough)
        self._first_losses.setdefault(0, run.losses[0])
        return trainer, run

    def _has_learned(self, losses: Sequence[float]) -> bool:
        """Return whether a loss came down smoothly, and stays far below that of the best constant: more steps tell no more."""
        if self._constant is None or self.varies or len(losses) <= ENOUGH:
            return False
        bar = below(self._constant, 2.0 * LEARNED_CLEARLY)
        lately = losses[-SETTLED:]
        return max(lately) <= bar and lately[-1] <= lately[0] and max(losses) <= SMOOTH * abs(losses[0])

    def _confirmed(self, items: tuple[Leaving, ...]) -> tuple[Leaving, ...]:
        """Take as many steps as the first weight needs to leave its domain, and return the weights if the run breaks.

        They are returned unconfirmed if the steps are too many, or take too long.
        """
        steps = round(BEYOND * items[0].step) if items else 0
        if not items or steps > MOST or self.setting.task.rehearse is not None:
            return items
        self.setting.progress(f"rehearsing {steps} steps, as {items[0].weight} comes close to zero")
        _, run = self._run(self.recipe, steps, min(self.until, time.monotonic() + SECONDS_LONGER))
        if run.ended in {"loss", "gradient"}:
            return (replace(items[0], step=len(run.losses) - 1, confirmed=True), *items[1:])
        return items if run.stopped else ()

    def _ends(self, run: Run) -> tuple[float, float]:
        """Return the median losses on the batches of the last quarter of a run, with the initial and with the final weights.

        The second one is NaN if the run ended early because it was not finite.
        """
        count = max(len(run.losses) // 4, 1)
        last = median(run.losses[-count:]) if not run.ended else math.nan
        if not self.varies or last <= run.losses[0]:
            return run.losses[0], last
        self.restore()
        return median(self._first_loss(index) for index in range(len(run.losses) - count, len(run.losses))), last

    def _first_loss(self, index: int) -> float:
        """Return the loss of a batch with the initial weights, which must have been restored."""
        batches = len(self.setting.task.batches)
        key = index % batches if batches else index
        if key not in self._first_losses:
            self.objective.restart(key)
            self._first_losses[key] = float(Trainer(self.objective, self.recipe).loss(key).detach())
        return self._first_losses[key]

    # causes -----------------------------------------------------------------------------------------------------------

    def _with_cause(self, found: Rehearsal) -> Rehearsal:
        """Try changes of the recipe, and return the rehearsal with these trials and with the cause.

        If training only lags, it counts as failed if one of the changes cures it.
        """
        if found.diverged_at == 0:
            return replace(found, cause=Cause.OPERATOR if found.breach else Cause.UNKNOWN)
        failed = found.fails or self._may_lag(found)
        for change, recipe in self._changes(slow=found.outlook is Outlook.SLOW):
            trial = self._trial(change, recipe, found)
            found = replace(found, trials=(*found.trials, trial))
            cure = found.cure
            if cure is not None and (cure is not trial or recipe.lr == self.recipe.lr):
                break  # a lower rate is not clearly better
            if not failed and not self._is_much_lower(trial, found):
                break
        if found.diverged_at is None and found.dead is None:
            cure = found.cure
            found = replace(found, behind=cure is not None and (failed or self._is_much_lower(cure, found)))
            if found.outlook is Outlook.OPEN and cure is not None and cure.lr < self.recipe.lr:
                found = replace(found, outlook=Outlook.STUCK)  # smaller steps learned in the same time
        return replace(found, cause=self._cause(found)) if found.fails else found

    @staticmethod
    def _is_much_lower(trial: Trial, found: Rehearsal) -> bool:
        return trial.last < found.last - MUCH * abs(found.floor)

    def _changes(self, *, slow: bool) -> Iterator[tuple[str, Recipe]]:
        """Yield the changes to try, the most likely cure first. Lower learning rates, such as the stability limit, come last."""
        recipe = self.recipe
        if slow:
            for factor in HIGHER:
                if factor * recipe.lr <= HIGHEST[0 if recipe.adaptive else 1]:
                    yield f"lr {factor * recipe.lr:.2g}", replace(recipe, lr=float(f"{factor * recipe.lr:.2g}"))
            return
        if recipe.precision != "fp32":
            yield "precision fp32", replace(recipe, precision="fp32")
        if recipe.adaptive and not recipe.warmup and is_post_norm(self.setting):
            steps = self.steps // 2
            yield f"a warm-up of {steps} steps", replace(recipe, schedule=f"warmup:{steps}")
        curvature = self.setting.found.curvature
        rates = {recipe.lr / 10.0, recipe.lr / 100.0, recipe.lr / 1000.0}
        if curvature is not None and curvature.limit / 2.0 < recipe.lr:
            rates.add(curvature.limit / 2.0)
        for rate in sorted(rates, reverse=True):
            if rate >= max(LOWEST[0] * recipe.lr, LOWEST[1]):
                yield f"lr {rate:.2g}", replace(recipe, lr=float(f"{rate:.2g}"))

    def _trial(self, change: str, recipe: Recipe, found: Rehearsal) -> Trial:
        self.setting.progress(f"rehearsing again with {change}")
        _, run = self._run(recipe)
        first, last = self._ends(run)
        bar = below(found.floor)
        return Trial(change, first, last, trains=last < min(bar, first - CURED * abs(first)), lr=recipe.lr)

    def _cause(self, found: Rehearsal) -> Cause:
        cure = found.cure or next((trial for trial in found.trials if trial.falls), None)
        measured = self.setting.found
        if found.breach is not None and self._is_the_cause(found.breach):
            return Cause.OPERATOR
        if found.outlook is Outlook.SLOW:
            return Cause.SLOW if cure is not None else Cause.UNKNOWN
        if cure is not None and cure.change.startswith("precision"):
            return Cause.PRECISION
        if found.dead is not None and found.diverged_at is None:
            return Cause.UNITS
        if cure is not None and cure.change.startswith("a warm-up"):
            return Cause.WARMUP
        if max(measured.growth.decades, *(item.growth.decades for item in measured.time), 0.0) >= LIMIT:
            return Cause.GROWTH
        if found.outlook is Outlook.SCALE:
            return Cause.SCALE
        if cure is not None:
            return Cause.RATE
        half = any(weight.dtype is torch.float16 for weight in self.objective.parameters.values())
        return Cause.PRECISION if half else Cause.UNKNOWN

    def _is_the_cause(self, breach: NonFiniteUpdate) -> bool:
        """Return whether an operator fails on operands of ordinary size.

        A weight layer is never the cause: it overflows because its weights or its input grew.
        """
        graph = self.setting.graph
        layer = breach.node in graph and is_weight_layer(graph[breach.node])
        return not layer and all(max(abs(low), abs(high)) < ORDINARY for low, high in breach.operands)


def _default_steps(recipe: Recipe) -> int:
    """Return how many steps are rehearsed: four times those over which the momentum averages, within bounds."""
    return int(min(max(STEPS, round(4.0 / max(1.0 - recipe.beta, 1e-3))), LONGER * STEPS))


def is_post_norm(setting: Setting) -> bool:
    """Return whether the model is post-norm: most residual sums are read by a norm and by nothing else."""
    graph, sums = setting.graph, setting.structure.residual_sums
    readers = [list(graph.children(total.node)) for total in sums]
    norms = sum(len(nodes) == 1 and nodes[0].op in {"layer_norm", "rms_norm"} for nodes in readers)
    return norms > len(sums) / 2


def _returns(losses: Sequence[float]) -> bool:
    """Return whether a loss falls again at the end: its median in the last quarter is a tenth lower than in the one before."""
    count = len(losses) // 4
    return count > 1 and median(losses[-count:]) < 0.9 * median(losses[-2 * count : -count])


def _updates_until(losses: Sequence[float], limit: float) -> int:
    """Return the number of updates after which the loss stays above the limit."""
    below = [index for index, loss in enumerate(losses[:-1]) if loss <= limit]
    return min(below[-1] + 1 if below else 1, len(losses) - 1)


def _steepest_layers(layers: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """Return the SHOWN layers whose gradient norm rose the most, in the order of the model."""
    rise = {name: rise_of(norms) for name, norms in layers.items() if norms}
    kept = sorted(rise, key=rise.__getitem__, reverse=True)[:SHOWN]
    return {name: tuple(norms) for name, norms in layers.items() if name in kept}
