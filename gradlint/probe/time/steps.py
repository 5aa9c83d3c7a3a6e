"""What reaches each step of a sequence from a cotangent on the last one: the raw lines that growth over time is read from.

Each recurrence is asked on its own, after the forward pass and before the general backward pass, and only what lies between its
last step and its first one is run backward (THEORY section 4).
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
from gradlint.probe.time.stacks import layers_apart
from gradlint.probe.time.unrolled import Unrolled, unrolled
from gradlint.probe.vjp_points import VjpPoint, pull
from gradlint.signal_path import kind_of
from gradlint.structure import Structure

Sites = Mapping[Ref, VjpPoint]
Fed = Mapping[str, Sequence[Tensor | None]]
Array = NDArray[np.float64]

_FUSED = frozenset({"rnn", "lstm", "gru"})
_FEWEST = 3  # steps: two make no line
_CLEAR = 5.0  # t statistic of a trend
_OPAQUE = 8  # operators that nothing is known of, at most
_REFUSALS = 1  # mixing operators without a causal axis, after which no more are asked
_ATTENTION = frozenset({"softmax", "attention", "multi_head_attention"})
_SCANNING = frozenset({"cumsum", "cumprod", "logcumsumexp", "associative_scan", "CumSum"})


@dataclass(frozen=True, slots=True)
class Line:
    """Squared gradients at each step for a unit cotangent on the last one that is processed, in the order of processing.

    `axis` is that of the sequence. `nodes` are the applications where each step is a node of its own.
    """

    node: str
    squares: tuple[float, ...]
    axis: int | None
    direction: str = "forward"
    nodes: tuple[str, ...] = ()


def lines(structure: Structure, points: Sites, fed: Fed, seed: int) -> list[Line]:
    """One line for each direction of each recurrence on the signal; `fed` is what recurrent nodes read.

    Raises ForwardError when a backward pass does.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Line] = []
    opaque = 0
    for node_id in structure.signal:
        node = structure.graph[node_id]
        if node.op in _FUSED:
            found.extend(_stacked(node, fed.get(node_id, ()), generator) or _fused(node, points, generator))
        elif kind_of(node) is Kind.CONTROL or (kind_of(node) is Kind.UNKNOWN and opaque < _OPAQUE):
            opaque += 1
            found.extend(_control(node, points, generator) if kind_of(node) is Kind.CONTROL else _hidden(node, points, generator))
    found.extend(_spelled(structure, points, generator))
    if not found:
        found.extend(_mixed(structure, points, generator))
    return [line for line in found if len(line.squares) >= _FEWEST]


def _squares(gradient: Tensor, *kept: int) -> Array:
    """Sums of squares over all axes but those, which come first."""
    values = gradient.detach()
    values = torch.view_as_real(values).flatten(-2) if values.is_complex() else values
    kept = tuple(axis % gradient.ndim for axis in kept)
    front = values.double().square().movedim(kept, tuple(range(len(kept))))
    sizes = front.shape[: len(kept)]
    return np.asarray(front.reshape(*sizes, -1).sum(-1).cpu().numpy())


def _total(cotangent: Tensor) -> float:
    return float(cotangent.abs().double().square().sum()) or 1.0


# operators that hold a recurrence ------------------------------------------------------------------------------------------


def _stacked(node: Node, held: Sequence[Tensor | None], generator: torch.Generator) -> list[Line]:
    """Both directions of a stack of bidirectional layers, each as in the layer whose gradient grows most or fades least."""
    best: dict[str, tuple[float, Line]] = {}
    for sequence, final in layers_apart(node, held):
        for place, name in enumerate(("forward", "reverse")):
            cotangent = final.zeros()
            cotangent[place] = final.normal(generator, *final.shape[1:])
            (gradient,) = pull([(final, cotangent)], [sequence])
            if gradient is None or not (squares := _by_distance(node, gradient, range(final.shape[1]), turned=bool(place))).size:
                continue
            line = Line(node.id, tuple((squares / _total(cotangent)).tolist()), int(node.attrs.get("time_axis", 0)), name)
            with np.errstate(all="ignore"):
                rise = float(np.log(squares[0]) - np.log(squares[-1]))
            best[name] = max(best.get(name, (-math.inf, line)), (rise, line), key=lambda pair: pair[0])
    return [line for _, line in best.values()]


def _fused(node: Node, points: Sites, generator: torch.Generator) -> Iterator[Line]:
    """RNN, LSTM and GRU: a cotangent on the final state of the top layer, gradients at the input sequence.

    Samples do not meet in them, so that the two directions take every other sample and share one pass.
    """
    sequence, ends = _point(points, node.inputs[0]), _ends(node, points)
    if sequence is None or ends is None:
        return
    state, sample_axis, places = ends
    names = ["reverse"] if node.attrs.get("direction") == "reverse" else ["forward", "reverse"]
    samples, every = state.shape[sample_axis], range(len(places))
    drawn = [state.normal(generator, samples, state.shape[-1]) for _ in every]  # alike in every layout
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
            yield Line(node.id, tuple(squares.tolist()), int(node.attrs.get("time_axis", 0)), names[one])


def _ends(node: Node, points: Sites) -> tuple[VjpPoint, int, list[tuple[int, ...]]] | None:
    """The tensor that holds the last states, its axis of samples, and the place of each direction of the top layer beside it."""
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
    """Squares by step in the order of processing, summed over the samples of a group, however long each of them is."""
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


def _control(node: Node, points: Sites, generator: torch.Generator) -> Iterator[Line]:
    """Scan and Loop: a cotangent on the first state that they hand on, or on the last results that a Loop collects."""
    scanned = int(node.attrs.get("num_scan_inputs", 0))
    if not scanned:
        found = list(_hidden(node, points, generator, rows=True))
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
            yield Line(node.id, tuple(ordered.tolist()), axis % gradient.ndim, "reverse" if back else "forward")
            return


def _pulled(end: VjpPoint, start: VjpPoint, generator: torch.Generator) -> tuple[Tensor | None, float]:
    """The gradient at one place for a random cotangent on another, and that one's square."""
    cotangent = end.normal(generator)
    (gradient,) = pull([(end, cotangent)], [start])
    return gradient, _total(cotangent)


def _by_trend(node: Node, points: Sites, generator: torch.Generator) -> Iterator[Line]:
    """A Loop that hands on a state alone: time is the axis along which the gradient has the clearest trend."""
    end = next((point for port in range(8) if (point := _point(points, Ref(node.id, port)))), None)
    best: tuple[float, Line] | None = None
    for ref in node.inputs:
        start = _point(points, ref)
        if end is None or start is None or start == end or len(start.shape) < 2:
            continue
        gradient, total = _pulled(end, start, generator)
        if gradient is None:
            continue
        for axis in range(len(start.shape)):
            squares = _squares(gradient, axis) / total
            if len(squares) > _FEWEST and squares.all():
                clear = _clearness(np.log(squares))
                best = max(
                    best or (0.0, Line(node.id, (), None)),
                    (clear, Line(node.id, tuple(squares.tolist()), axis)),
                    key=lambda pair: pair[0],
                )
    if best is not None and best[0] > _CLEAR:
        yield best[1]


def _clearness(levels: Array) -> float:
    """The t statistic of a trend."""
    correlation = float(np.corrcoef(np.arange(len(levels)), levels)[0, 1])
    return abs(correlation) * math.sqrt((len(levels) - 2) / max(1.0 - correlation**2, 1e-12))


def _hidden(node: Node, points: Sites, generator: torch.Generator, *, rows: bool = False) -> Iterator[Line]:
    """An operator that nothing is known of: its time axis is the one along which its gradient is causal.

    With `rows`, steps lie along axis 0 of an output and along any axis of an input, as in a Loop that collects its results.
    """
    outputs = [point for port in range(8) if (point := _point(points, Ref(node.id, port))) is not None and len(point.shape) > 1]
    inputs = [point for ref in node.inputs if (point := _point(points, ref)) is not None and len(point.shape) > 1]
    for end in sorted(outputs, key=lambda point: -len(point.shape))[:1]:
        for axis in [0] if rows else range(max(len(end.shape) - 1, 1)):
            for sequence in inputs:
                for own in range(len(sequence.shape)) if rows else [axis]:
                    line = _causal(node.id, end, sequence, (axis, own), generator)
                    if line is not None:
                        yield line
                        return


def _mixed(structure: Structure, points: Sites, generator: torch.Generator) -> Iterator[Line]:
    """Recurrences spread over operators that see the whole sequence: linear attention, a scan by cumulative sums.

    Asked between two nodes that every path passes; a softmax between them says that it is attention.
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
        line = next((line for line in found if line is not None), None)
        refused += line is None
        if line is not None and all(line.squares):  # what sees a bounded past is a convolution
            yield replace(line, squares=line.squares[:-1])  # the own step has ways round the recurrence


def _mixes(node: Node) -> bool:
    """Whether an operator may carry values along time without a weight of its own."""
    return (node.op == "matmul" and not node.weights) or node.op == "fft" or node.attrs.get("name") in _SCANNING


def _causal(node: str, end: VjpPoint, start: VjpPoint, axes: tuple[int, int], generator: torch.Generator) -> Line | None:
    """The line along an axis on which nothing passes back from what lies behind a step; None where something does.

    The cotangent is put near one end, where what lies beyond must get no gradient at all.
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
            return Line(node, tuple(before.tolist()), own, "reverse" if turned else "forward")
        if before[:-1].any():  # it is causal in neither direction
            return None
    return None


# loops that are spelled out ------------------------------------------------------------------------------------------------


def _spelled(structure: Structure, points: Sites, generator: torch.Generator) -> Iterator[Line]:
    """Loops over time: a cotangent on the last state, gradients at the sequence. A loop over depth is no time.

    Where no weight layer multiplies the state, the gradients are those at the state: the sequences that feed it may as well be
    its decays. Loops of one state, as those of gates with weights of their own, are asked once.
    """
    asked: dict[tuple[str, str | None, int | None], tuple[float, ...]] = {}
    for loop in unrolled(structure):
        end = _point(points, Ref(loop.end))
        if loop.axis is None or loop.source is None or end is None:
            continue
        key = (loop.end, loop.source, loop.axis)
        if key not in asked:
            asked[key] = _at_states(loop, end, points, generator) if loop.weightless else _at_source(loop, end, points, generator)
        yield Line(loop.nodes[0], asked[key], loop.axis, "reverse" if loop.backwards else "forward", loop.nodes)


def _at_source(loop: Unrolled, end: VjpPoint, points: Sites, generator: torch.Generator) -> tuple[float, ...]:
    """Squares at the pieces of the sequence; what comes after the last state that was found has none."""
    source = _point(points, Ref(loop.source or ""))
    gradient, total = (None, 1.0) if source is None else _pulled(end, source, generator)
    if gradient is None or loop.axis is None:
        return ()
    squares = _squares(gradient, loop.axis) / total
    if len(loop.indices) > 1:  # the first application may read a piece that no index tells
        stride = loop.indices[1] - loop.indices[0]
        first = loop.indices[0] - stride
        places = range(first if 0 <= first < len(squares) else loop.indices[0], loop.indices[-1] + stride, stride)
        squares = squares[[place for place in places if 0 <= place < len(squares)]]
    reached = np.flatnonzero(squares)
    return tuple(squares[: reached[-1] + 1].tolist()) if len(reached) else ()


def _at_states(loop: Unrolled, end: VjpPoint, points: Sites, generator: torch.Generator) -> tuple[float, ...]:
    places = [point for node in loop.nodes if (point := _point(points, Ref(node))) is not None]
    cotangent = end.normal(generator)
    return tuple(
        0.0 if gradient is None else float(_squares(gradient).sum()) / _total(cotangent)
        for gradient in pull([(end, cotangent)], places)
    )


def _point(points: Sites, ref: Ref | None) -> VjpPoint | None:
    return None if ref is None else points.get(ref)
