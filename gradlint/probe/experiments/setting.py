"""What the experiments of one run work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from gradlint.frontends.base import Runnable
from gradlint.graph import Graph
from gradlint.probe.experiments.objective import Objective
from gradlint.recipe import Task
from gradlint.result import Measurement
from gradlint.structure import Structure


@dataclass
class Setting:
    """The model inside `untouched`, the task, and what was measured so far; one for all experiments of a run."""

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
