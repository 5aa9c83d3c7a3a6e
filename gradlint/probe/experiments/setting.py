"""`Setting`: what all experiments of one run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from gradlint.frontends.base import Runnable
from gradlint.graph import Graph
from gradlint.probe.budget import Budget
from gradlint.probe.experiments.objective import Objective
from gradlint.recipe import Task
from gradlint.result import Measurement
from gradlint.structure import Structure


@dataclass
class Setting:
    """What all experiments of one run share.

    Attributes:
        model: The model, inside its `untouched` context.
        task: Loss, target and recipe.
        found: The measurement so far, including the results of earlier experiments.
        seed: The first seed.
        progress: Called with one line of text at the start of each stage.
        budget: The time that is left for all.
    """

    model: Runnable
    task: Task
    found: Measurement
    seed: int
    progress: Callable[[str], None]
    budget: Budget = field(default_factory=Budget)

    @property
    def graph(self) -> Graph:
        """The graph of the model."""
        return self.model.graph

    @cached_property
    def structure(self) -> Structure:
        """The structure of the graph, restricted to nodes whose outputs require grad."""
        return Structure(self.graph, live=self.found.live)

    @cached_property
    def objective(self) -> Objective:
        """The loss that training minimizes, as a function of the weights."""
        return Objective(self.model, self.task, seed=self.seed)
