"""Determine how much of a model gradlint understood and probed."""

from __future__ import annotations

from collections import Counter

from gradlint.graph import Graph
from gradlint.measurements.coverage import Coverage
from gradlint.ops import Kind
from gradlint.result import Measurement
from gradlint.signal_path import is_weight_layer, kind_of


def coverage(graph: Graph, measurement: Measurement | None) -> Coverage:
    """Count all nodes of a graph, those with a known operator, and those that were probed."""
    unknown = Counter(str(node.attrs.get("name", node.op)) for node in graph if kind_of(node) is Kind.UNKNOWN)
    ran = len(measurement.ran & {node.id for node in graph}) if measurement else 0
    return Coverage(len(graph), len(graph) - sum(unknown.values()), ran, dict(unknown))


def has_gradient(measurement: Measurement | None) -> bool:
    """Return whether the backward gain of at least one node was measured."""
    return measurement is not None and any(gains.backward is not None for gains in measurement.gains.values())


def ran_all_layers(graph: Graph, measurement: Measurement) -> bool:
    """Return whether the probe ran every weight layer, even if it stopped at an operator that it could not run."""
    layers = [node.id for node in graph if is_weight_layer(node)]
    return measurement.stopped_at is None or (bool(layers) and measurement.ran.issuperset(layers))
