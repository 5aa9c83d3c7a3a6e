"""Measure the gradient at each step of a sequence for a random cotangent on the last step.

Each recurrence is measured on its own, after the forward pass and before the general backward pass. Only the part of the graph
between its last step and its first step runs backward. The logarithm of the gradient against the distance to the last step is a
line, whose slope is the Lyapunov exponent.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlint.graph import Node, Ref
from gradlint.ops import Kind
from gradlint.probe.time.stacks import single_layers
from gradlint.probe.time.unrolled import Unrolled, unrolled
from gradlint.probe.vjp_points import VjpPoint, pull
from gradlint.signal_path import kind_of
from gradlint.structure import Structure

Points = Mapping[Ref, VjpPoint]
Fed = Mapping[str, Sequence[Tensor | None]]
Array = NDArray[np.float64]

_FUSED = frozenset({"rnn", "lstm", "gru"})
_FEWEST = 3  # the fewest steps to which a line can be fitted
_CLEAR = 5.0  # t statistic from which on a trend is significant
_OPAQUE = 8  # the most unknown operators that are measured
_REFUSALS = 1  # after more mixing operators without a causal axis, no further ones are measured
_ATTENTION = frozenset({"softmax", "attention", "multi_head_attention"})
_SCANNING = frozenset({"cumsum", "cumprod", "logcumsumexp", "associative_scan", "CumSum"})


@dataclass(frozen=True, slots=True)
class TimeProfile:
    """The gradient along the time axis of one recurrence.

    Attributes:
        node: The id of the recurrent node, or of the first one of a loop.
        squares: The squared gradient at each step, for a unit cotangent on the step that is processed last, in the order of
            processing.
        axis: The time axis of the sequence; None if unknown.
        direction: "forward" or "reverse".
        nodes: The nodes of the steps, if each step is a node of its own.
    """

    node: str
    squares: tuple[float, ...]
    axis: int | None
    direction: str = "forward"
    nodes: tuple[str, ...] = ()


def time_profiles(structure: Structure, points: Points, fed: Fed, seed: int) -> list[TimeProfile]:
    """Return one profile for each direction of each recurrence that the signal passes.

    `points` are the points of all outputs in the autograd graph, `fed` the inputs of recurrent nodes. Raises ForwardError if a
    backward pass raises.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[TimeProfile] = []
    opaque = 0
    for node_id in structure.signal:
        node = structure.graph[node_id]
        if node.op in _FUSED:
            found.extend(_stacked(node, fed.get(node_id, ()), generator) or _fused(node, points, generator))
        elif kind_of(node) is Kind.CONTROL or (kind_of(node) is Kind.UNKNOWN and opaque < _OPAQUE):
            opaque += 1
            found.extend(_control(node, points, generator) if kind_of(node) is Kind.CONTROL else _opaque(node, points, generator))
    found.extend(_unrolled_loops(structure, points, generator))
    if not found:
        found.extend(_sequence_mixing(structure, points, generator))
    return [profile for profile in found if len(profile.squares) >= _FEWEST]


def _squares(gradient: Tensor, *kept: int) -> Array:
    """Return the sums of squares over all axes except the `kept` ones, which come first in the result."""
    values = gradient.detach()
    values = torch.view_as_real(values).flatten(-2) if values.is_complex() else values
    kept = tuple(axis % gradient.ndim for axis in kept)
    front = values.double().square().movedim(kept, tuple(range(len(kept))))
    sizes = front.shape[: len(kept)]
    return np.asarray(front.reshape(*sizes, -1).sum(-1).cpu().numpy())


def _total(cotangent: Tensor) -> float:
    return float(cotangent.abs().double().square().sum()) or 1.0


# operators that hold a recurrence ------------------------------------------------------------------------------------------


def _stacked(node: Node, held: Sequence[Tensor | None], generator: torch.Generator) -> list[TimeProfile]:
    """Measure a stack of bidirectional layers: for each direction, the layer whose gradient grows the most."""
    best: dict[str, tuple[float, TimeProfile]] = {}
    for sequence, final in single_layers(node, held):
        for place, name in enumerate(("forward", "reverse")):
            cotangent = final.zeros()
            cotangent[place] = final.normal(generator, *final.shape[1:])
            (gradient,) = pull([(final, cotangent)], [sequence])
            if gradient is None or not (squares := _by_distance(node, gradient, range(final.shape[1]), turned=bool(place))).size:
                continue
            profile = TimeProfile(
                node.id, tuple((squares / _total(cotangent)).tolist()), int(node.attrs.get("time_axis", 0)), name
            )
            with np.errstate(all="ignore"):
                rise = float(np.log(squares[0]) - np.log(squares[-1]))
            best[name] = max(best.get(name, (-math.inf, profile)), (rise, profile), key=lambda pair: pair[0])
    return [profile for _, profile in best.values()]


def _fused(node: Node, points: Points, generator: torch.Generator) -> Iterator[TimeProfile]:
    """Measure RNN, LSTM and GRU: the cotangent is on the final state of the top layer, the gradient is that of the input.

    Samples are independent, so that both directions share one backward pass: each uses every other sample.
    """
    sequence, ends = _point(points, node.inputs[0]), _ends(node, points)
    if sequence is None or ends is None:
        return
    state, sample_axis, places = ends
    names = ["reverse"] if node.attrs.get("direction") == "reverse" else ["forward", "reverse"]
    samples, every = state.shape[sample_axis], range(len(places))
    drawn = [state.normal(generator, samples, state.shape[-1]) for _ in every]  # the same values in every layout
    for together in [every] if samples >= len(places) else [[one] for one in every]:
        groups = {one: list(range(index, samples, len(together))) for index, one in enumerate(together)}
        cotangent = state.zeros().movedim(sample_axis, 0)
        for one, group in groups.items():
            index: tuple[Any, ...] = (group, *places[one])
            cotangent[index] = drawn[one][group]
        (gradient,) = pull([(state, cotangent.movedim(0, sample_axis))], [sequence])
        if gradient is None:
            return
        for one, group in groups.items():
            squares = _by_distance(node, gradient, group, turned=names[one] == "reverse")
            squares = squares / _total(drawn[one][group])
            yield TimeProfile(node.id, tuple(squares.tolist()), int(node.attrs.get("time_axis", 0)), names[one])


def _ends(node: Node, points: Points) -> tuple[VjpPoint, int, list[tuple[int, ...]]] | None:
    """Return the point of the final states, its batch axis, and the indices of each direction of the top layer in it."""
    attrs = node.attrs
    onnx = "gate_order" in attrs
    directions = int(attrs.get("num_directions", 1)) if onnx else 1 + bool(attrs.get("bidirectional"))
    batch_first = onnx and bool(attrs.get("batch_first"))
    final, outputs = _point(points, Ref(node.id, 1)), _point(points, Ref(node.id))
    if final is not None and len(final.shape) == 3:
        top = 0 if batch_first else final.shape[0] - directions
        return final, 0 if batch_first else 1, [(top + place,) for place in range(directions)]
    if outputs is None or not onnx or len(outputs.shape) != 4:
        return None
    turned = attrs.get("direction") == "reverse"
    return outputs, 0 if batch_first else 2, [(0 if turned or place else -1, place) for place in range(directions)]


def _by_distance(node: Node, gradient: Tensor, group: Sequence[int], *, turned: bool) -> Array:
    """Return the squared gradient by step, in the order of processing, summed over the samples of a group.

    The samples of a packed sequence may have different lengths; their last steps are aligned.
    """
    lengths = node.attrs.get("batch_sizes")
    if not node.attrs.get("packed") or lengths is None or sum(lengths) != gradient.shape[0]:
        time = int(node.attrs.get("time_axis", 0))
        rows: Array = _squares(gradient, time, 1 - time)[:, list(group)].sum(1)
        return rows[::-1] if turned else rows
    flat = _squares(gradient, 0)
    steps = np.repeat(np.arange(len(lengths)), lengths)
    samples = np.concatenate([np.arange(size) for size in lengths])
    ends = np.bincount(samples) - 1
    distance = steps if turned else ends[samples] - steps
    mine = np.isin(samples, list(group))
    totals = np.bincount(distance[mine], flat[mine], minlength=len(lengths))
    counts = np.bincount(distance[mine], minlength=len(lengths))
    known = counts > 0
    return (totals[known] / counts[known] * len(group))[::-1]


def _control(node: Node, points: Points, generator: torch.Generator) -> Iterator[TimeProfile]:
    """Measure Scan and Loop: the cotangent is on the first final state, or on the last results that a Loop collects."""
    scanned = int(node.attrs.get("num_scan_inputs", 0))
    if not scanned:
        found = list(_opaque(node, points, generator, rows=True))
        yield from found or _by_trend(node, points, generator)
        return
    states = len(node.inputs) - scanned
    end = next((point for port in range(states) if (point := _point(points, Ref(node.id, port)))), None)
    axes = node.attrs.get("scan_input_axes") or (0,) * scanned
    turned = node.attrs.get("scan_input_directions") or (0,) * scanned
    for ref, axis, back in zip(node.inputs[states:], axes, turned, strict=False):
        sequence = _point(points, ref)
        gradient, total = (None, 1.0) if end is None or sequence is None else _pulled(end, sequence, generator)
        if gradient is not None:
            squares = _squares(gradient, axis) / total
            ordered = squares[::-1] if back else squares
            yield TimeProfile(node.id, tuple(ordered.tolist()), axis % gradient.ndim, "reverse" if back else "forward")
            return


def _pulled(end: VjpPoint, start: VjpPoint, generator: torch.Generator) -> tuple[Tensor | None, float]:
    """Return the gradient at `start` for a random cotangent on `end`, and the squared norm of the cotangent."""
    cotangent = end.normal(generator)
    (gradient,) = pull([(end, cotangent)], [start])
    return gradient, _total(cotangent)


def _by_trend(node: Node, points: Points, generator: torch.Generator) -> Iterator[TimeProfile]:
    """Measure a Loop that returns only states. Its time axis is the one along which the gradient has the clearest trend."""
    end = next((point for port in range(8) if (point := _point(points, Ref(node.id, port)))), None)
    best: tuple[float, TimeProfile] | None = None
    for ref in node.inputs:
        start = _point(points, ref)
        if end is None or start is None or start.is_that_of(end) or len(start.shape) < 2:
            continue
        gradient, total = _pulled(end, start, generator)
        if gradient is None:
            continue
        for axis in range(len(start.shape)):
            squares = _squares(gradient, axis) / total
            if len(squares) > _FEWEST and squares.all():
                clear = _clearness(np.log(squares))
                best = max(
                    best or (0.0, TimeProfile(node.id, (), None)),
                    (clear, TimeProfile(node.id, tuple(squares.tolist()), axis)),
                    key=lambda pair: pair[0],
                )
    if best is not None and best[0] > _CLEAR:
        yield best[1]


def _clearness(levels: Array) -> float:
    """Return the absolute t statistic of a linear trend."""
    correlation = float(np.corrcoef(np.arange(len(levels)), levels)[0, 1])
    return abs(correlation) * math.sqrt((len(levels) - 2) / max(1.0 - correlation**2, 1e-12))


def _opaque(node: Node, points: Points, generator: torch.Generator, *, rows: bool = False) -> Iterator[TimeProfile]:
    """Measure an operator about which nothing is known. Its time axis is the one along which its gradient is causal.

    With `rows`, time is axis 0 of the output and may be any axis of an input, as in a Loop that collects its results.
    """
    outputs = [point for port in range(8) if (point := _point(points, Ref(node.id, port))) is not None and len(point.shape) > 1]
    inputs = [point for ref in node.inputs if (point := _point(points, ref)) is not None and len(point.shape) > 1]
    for end in sorted(outputs, key=lambda point: -len(point.shape))[:1]:
        for axis in [0] if rows else range(max(len(end.shape) - 1, 1)):
            for sequence in inputs:
                for own in range(len(sequence.shape)) if rows else [axis]:
                    profile = _causal(node.id, end, sequence, (axis, own), generator)
                    if profile is not None:
                        yield profile
                        return


def _sequence_mixing(structure: Structure, points: Points, generator: torch.Generator) -> Iterator[TimeProfile]:
    """Measure recurrences that are computed on the whole sequence at once: linear attention, scans by cumulative sums.

    The gradient is measured between two neighboring nodes of the spine. If there is a softmax between them, they are attention
    and are skipped.
    """
    spine, position = structure.spine, structure.graph.position
    bounds = [position[node] for node in spine]
    gaps: dict[int, list[Node]] = {}
    for node_id in structure.signal:
        gaps.setdefault(bisect_left(bounds, position[node_id]), []).append(structure.graph[node_id])
    refused = 0
    for index, nodes in gaps.items():
        mixing = next((node for node in nodes if _mixes(node)), None)
        if mixing is None or not 0 < index < len(spine) or any(node.op in _ATTENTION for node in nodes) or refused > _REFUSALS:
            continue
        start, end = _point(points, Ref(spine[index - 1])), _point(points, Ref(spine[index]))
        if start is None or end is None or min(len(start.shape), len(end.shape)) < 3:
            continue
        found = (_causal(mixing.id, end, start, (axis, axis), generator) for axis in (1, 0))
        profile = next((profile for profile in found if profile is not None), None)
        refused += profile is None
        if profile is not None and all(profile.squares):  # an operator with a bounded past is a convolution
            yield replace(profile, squares=profile.squares[:-1])  # the last step has paths that bypass the recurrence


def _mixes(node: Node) -> bool:
    """Return whether an operator without weights may mix the values of different time steps."""
    return (node.op == "matmul" and not node.weights) or node.op == "fft" or node.attrs.get("name") in _SCANNING


def _causal(node: str, end: VjpPoint, start: VjpPoint, axes: tuple[int, int], generator: torch.Generator) -> TimeProfile | None:
    """Measure the gradient along an axis of the output and of the input, if it is causal; otherwise return None.

    The cotangent is on a step near one end of the axis. If the operator is causal in a direction, the steps after it get exactly
    no gradient. `axes` are the axis of the output `end` and that of the input `start`.
    """
    out, own = axes
    fits = out < len(end.shape) and own < len(start.shape) and end.shape[out] == start.shape[own] > _FEWEST
    if not fits:
        return None
    steps = end.shape[out]
    beyond = max(1, steps // 8)
    for turned in (False, True):
        place = beyond if turned else steps - 1 - beyond
        cotangent = end.zeros()
        cotangent.movedim(out, 0)[place] = end.normal(generator).movedim(out, 0)[place]
        (gradient,) = pull([(end, cotangent)], [start])
        if gradient is None:
            return None
        squares = _squares(gradient, own) / _total(cotangent)
        squares = squares[::-1] if turned else squares
        before, behind = squares[:-beyond], squares[-beyond:]
        if not behind.any() and before[-1] > 0.0 and before[-2] > 0.0:
            return TimeProfile(node, tuple(before.tolist()), own, "reverse" if turned else "forward")
        if before[:-1].any():  # not causal in either direction
            return None
    return None


# unrolled loops ------------------------------------------------------------------------------------------------------------


def _unrolled_loops(structure: Structure, points: Points, generator: torch.Generator) -> Iterator[TimeProfile]:
    """Measure unrolled loops over time: the cotangent is on the last state, the gradient is that of the sequence.

    Loops over depth, which read no sequence, are skipped. If no weight layer multiplies the state, the gradient is that of the
    states, because the sequences that the loop reads may be decay factors. Loops with the same state, such as the gates of one
    cell, are measured once.
    """
    known: dict[tuple[str, str | None, int | None], tuple[float, ...]] = {}
    for loop in unrolled(structure):
        end = _point(points, Ref(loop.end))
        if loop.axis is None or loop.source is None or end is None:
            continue
        key = (loop.end, loop.source, loop.axis)
        if key not in known:
            unordered = not loop.indices or _point(points, Ref(loop.source)) is None  # integers have no gradient
            known[key] = (_at_states if loop.weightless or unordered else _at_source)(loop, end, points, generator)
        yield TimeProfile(loop.nodes[0], known[key], loop.axis, "reverse" if loop.backwards else "forward", loop.nodes)


def _at_source(loop: Unrolled, end: VjpPoint, points: Points, generator: torch.Generator) -> tuple[float, ...]:
    """Return the squared gradients at the pieces of the sequence, up to the last one that gets a gradient."""
    source = _point(points, Ref(loop.source or ""))
    gradient, total = (None, 1.0) if source is None else _pulled(end, source, generator)
    if gradient is None or loop.axis is None:
        return ()
    squares = _squares(gradient, loop.axis) / total
    if len(loop.indices) > 1:  # the first step may read a piece whose index the graph does not tell
        stride = loop.indices[1] - loop.indices[0]
        first = loop.indices[0] - stride  # and the last state a piece that no further step reads
        places = range(first if 0 <= first < len(squares) else loop.indices[0], loop.indices[-1] + 2 * stride, stride)
        squares = squares[[place for place in places if 0 <= place < len(squares)]]
    reached = np.flatnonzero(squares)
    return tuple(squares[: reached[-1] + 1].tolist()) if len(reached) else ()


def _at_states(loop: Unrolled, end: VjpPoint, points: Points, generator: torch.Generator) -> tuple[float, ...]:
    places = [point for node in loop.nodes if (point := _point(points, Ref(node))) is not None]
    cotangent = end.normal(generator)
    return tuple(
        0.0 if gradient is None else float(_squares(gradient).sum()) / _total(cotangent)
        for gradient in pull([(end, cotangent)], places)
    )


def _point(points: Points, ref: Ref | None) -> VjpPoint | None:
    return None if ref is None else points.get(ref)
