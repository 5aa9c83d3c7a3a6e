"""Determine how much of a model gradlint understood and probed."""

from __future__ import annotations

from collections import Counter

from gradlint.graph import Graph, Node
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


def measured_all_layers(graph: Graph, measurement: Measurement) -> bool:
    """Return whether weights were measured and the probe ran every weight layer, even if it stopped behind them."""
    if not has_gradient(measurement) or not measurement.learning.levels:
        return False
    layers = [node.id for node in graph if is_weight_layer(node)]
    return measurement.stopped_at is None or (bool(layers) and measurement.ran.issuperset(layers))


def trains(frontend: str, graph: Graph, measurement: Measurement | None) -> bool:
    """Return whether a model has parameters, trainable or frozen. An operator of unknown meaning may hold some.

    Biases and scales alone, between integer products, are none to train.
    """
    trainable = [weight for weight in graph.weights.values() if weight.trainable]
    if any(len(weight.shape) > 1 for weight in trainable) or any(kind_of(node) is Kind.UNKNOWN for node in graph):
        return True
    if frontend == "onnx" and any(map(_is_quantized, graph)):
        return False
    if trainable:
        return True
    learn = measurement.trainability if measurement is not None else None
    if learn and (learn.sizes or learn.frozen):
        return True
    return frontend != "onnx" and not has_gradient(measurement)  # it may have parameters that no operator was seen to use


def _is_quantized(node: Node) -> bool:
    """Return whether an ONNX node computes with integers, or with a matrix that was made from integers."""
    integers = node.op == "to_integer" and node.attrs.get("name") not in {"Cast", "CastLike"}
    return integers or any(not weight.trainable for weight in node.weights.values() if len(weight.shape) > 1)
