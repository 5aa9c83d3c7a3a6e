"""The list of all experiments, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from textwrap import shorten
from typing import Any

from gradlint.errors import GradlintError, InputError
from gradlint.frontends.base import PartialRun, Runnable
from gradlint.probe.budget import ENDLESS, Budget
from gradlint.probe.experiments.curvature import curvature
from gradlint.probe.experiments.loss import inputs, loss
from gradlint.probe.experiments.means import bare, floor, held
from gradlint.probe.experiments.numerics import headroom, suspects
from gradlint.probe.experiments.rehearsal import rehearsal
from gradlint.probe.experiments.reinitialization import redraws
from gradlint.probe.experiments.segments import segments
from gradlint.probe.experiments.setting import Setting
from gradlint.recipe import Task
from gradlint.result import Measurement

_LONGEST = 200  # the most characters of a note: some errors of torch list all of its backends

Experiment = Callable[[Setting], Mapping[str, Any]]
"""A function that returns the fields of `Measurement` that it fills; none if there is nothing to measure."""

EXPERIMENTS: tuple[tuple[str, Experiment], ...] = (
    ("inputs", inputs),
    ("loss", loss),
    ("held weights", held),
    ("floor of the loss", floor),
    ("bare weights", bare),
    ("operators of the loss", suspects),
    ("headroom", headroom),
    ("segments", segments),
    ("redraws", redraws),
    ("curvature", curvature),
    ("rehearsal", rehearsal),
)


def run_experiments(
    model: Runnable,
    task: Task,
    found: Measurement,
    *,
    seed: int,
    progress: Callable[[str], None],
    budget: Budget = ENDLESS,
) -> Measurement:
    """Run every experiment and return `found` with the fields that they fill.

    An experiment that fails adds a note, and does not affect the others. No experiment runs if the probe stopped early. Raises
    InputError if the user's own loss fails, unless the model is known to be cut off from it.
    """
    if found.stopped_at is not None:
        return found
    setting = Setting(model, task, found, seed, progress, budget)
    left = dict(EXPERIMENTS)
    for name, run in EXPERIMENTS:
        if budget.is_spent:
            note = budget.lacks(*left)
            return replace(setting.found, notes=(*setting.found.notes, note))
        del left[name]
        try:
            setting.found = replace(setting.found, **run(setting))
        except (GradlintError, PartialRun, RuntimeError) as error:  # torch raises RuntimeError for unsupported shapes and types
            if isinstance(error, InputError) and task.loss is not None and not setting.found.is_cut_off:
                raise
            note = f"{name}: not measured, {shorten(str(error).splitlines()[0], _LONGEST)}"
            setting.found = replace(setting.found, notes=(*setting.found.notes, note))
    return setting.found
