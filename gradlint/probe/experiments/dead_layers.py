"""Layers of rectifiers that die while a rehearsal runs."""

from __future__ import annotations

from collections.abc import Mapping

from gradlint.graph import Node
from gradlint.measurements.rehearsal import DeadUnits
from gradlint.measurements.units import Units
from gradlint.ops import activation, operator
from gradlint.probe.dead_units import UnitObserver
from gradlint.probe.experiments.setting import Setting
from gradlint.probe.experiments.training import Run, batch_of
from gradlint.signal_path import is_weight_layer

DEAD = 0.99  # share of units


def dead_units(setting: Setting) -> dict[str, Units]:
    """Measure the share of units of each hidden rectifier that are zero for the whole first batch, by node.

    Rectifiers after the last weight layer are left out, because outputs may be zero on purpose.
    """
    graph = setting.graph
    last = max((graph.position[node.id] for node in graph if is_weight_layer(node)), default=0)
    nodes = {node.id for node in graph if _has_zero_floor(node) and graph.position[node.id] < last}
    if not nodes:
        return {}
    observer = UnitObserver()
    observer.operators = lambda node: [operator(graph[node].op)]
    arrays, _ = batch_of(setting.objective, 0)
    setting.objective.model.forward(arrays, tap=observer.forward)
    return {units.node: units for units in UnitObserver.summary([observer], setting.structure) if units.node in nodes}


def gradient_vanished(run: Run) -> bool:
    """Return whether some weight has a gradient that is not zero at the start, and zero at the end."""
    return any(norms and norms[0] > 0.0 and norms[-1] == 0.0 for norms in run.layers.values())


def dead_layer(before: Mapping[str, Units], after: Mapping[str, Units]) -> DeadUnits | None:
    """Return the first layer of rectifiers whose units died during the run; None if there is none."""
    for node, units in after.items():
        if units.dead >= DEAD and node in before and before[node].dead < 0.5:
            return DeadUnits(node, units.count, before[node].dead, units.dead)
    return None


def _has_zero_floor(node: Node) -> bool:
    """Return whether a node is a rectifier whose value and slope are zero for sufficiently negative arguments."""
    function = activation(node.op, node.attrs)
    return operator(node.op).rectifier and operator(node.op).monotone and function is not None and function.has_floor
