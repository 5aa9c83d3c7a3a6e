"""What is measured beyond the passes of the probe, where the graph or the task asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from textwrap import shorten
from typing import Any

from gradlint.errors import GradlintError, InputError
from gradlint.frontends.base import PartialRun, Runnable
from gradlint.graph import Graph
from gradlint.probe.chaos import redraws
from gradlint.probe.curvature import curvature
from gradlint.probe.loss import inputs, loss
from gradlint.probe.numerics import headroom, suspects
from gradlint.probe.objective import Objective
from gradlint.probe.rehearsal import rehearsal
from gradlint.probe.segments import segments
from gradlint.recipe import Task
from gradlint.result import Measurement
from gradlint.structure import Structure


@dataclass(frozen=True)
class Setting:
    """What an experiment has to work with: the model inside `untouched`, the task, and what was measured so far."""

    model: Runnable
    task: Task
    found: Measurement
    seed: int
    progress: Callable[[str], None]

    @property
    def graph(self) -> Graph:
        """The graph of the model."""
        return self.model.graph

    @cached_property
    def structure(self) -> Structure:
        """Its structure, narrowed to what ran."""
        return Structure(self.graph, live=self.found.live)

    @cached_property
    def objective(self) -> Objective:
        """What training would minimise."""
        return Objective(self.model, self.task, seed=self.seed)


_LONGEST = 200  # characters of a note; torch lists its backends where it lacks an operator

Experiment = Callable[[Setting], Mapping[str, Any]]
"""Returns the fields of Measurement that it fills; none where there is nothing to measure."""

EXPERIMENTS: tuple[tuple[str, Experiment], ...] = (
    ("inputs", inputs),
    ("loss", loss),
    ("operators of the loss", suspects),
    ("headroom", headroom),
    ("segments", segments),
    ("redraws", redraws),
    ("curvature", curvature),
    ("rehearsal", rehearsal),
)


def experiment(model: Runnable, task: Task, found: Measurement, *, seed: int, progress: Callable[[str], None]) -> Measurement:
    """Run every experiment that has something to measure; what fails is said in the notes, and harms nothing else.

    Raises InputError when the user's own loss fails.
    """
    if found.stopped_at is not None:
        return found
    for name, run in EXPERIMENTS:
        setting = Setting(model, task, found, seed, progress)
        try:
            found = replace(found, **run(setting))
        except (GradlintError, PartialRun, RuntimeError) as error:  # torch names shapes, types and layouts that it will not take
            if isinstance(error, InputError) and task.loss is not None:
                raise
            found = replace(found, notes=(*found.notes, f"{name}: not measured, {shorten(str(error).splitlines()[0], _LONGEST)}"))
    return found
