"""The Jacobian probe: it measures forward and backward gain at every node, with one backward pass per seed.

For a node n with output h_n, let J_n = d out / d h_n, where out is the trunk output: the input of a final softmax, sigmoid or
loss. One backward pass with a random cotangent v ~ N(0, I) on out gives J_n^T v for every node at once, and E ||J_n^T v||^2 is
||J_n||_F^2, the squared Frobenius norm (Hutchinson 1990). In decades, that is log10 of an amplitude:

- backward gain B_n = 1/2 log10(||J_n^T v||^2 / ||v||^2), the gradient at n for a unit gradient at the output;
- forward level F_n = 1/2 log10 mean(h_n^2), the size of the signal at n;
- relative gain R_n = B_n + log10 ||h_n|| - log10 ||out||, the relative change of the output for a relative change at n
  (Philipp 2018, arXiv 1712.05577).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from gradlint.frontends.base import PartialRun, Runnable
from gradlint.graph import Graph, Ref
from gradlint.growth import LIMIT, summarize
from gradlint.growth.chains import chain_of
from gradlint.growth.tracks import decisive, read_tracks
from gradlint.growth.weights import spread
from gradlint.measurements.learning import LOUD, Learning
from gradlint.ops import Kind, Operator, operator
from gradlint.probe.budget import ENDLESS, Budget
from gradlint.probe.causes import find_cuts, find_zero_gradients, first_nonfinite_backward, first_nonfinite_forward, is_dead
from gradlint.probe.observers import NeedsOperators, Observer, summaries
from gradlint.probe.recorder import Recorder, Seen, ranges_seen
from gradlint.probe.time.growth import OverTime
from gradlint.probe.weight_gradients import Pulled, pull
from gradlint.result import Gains, Growth, Measurement, Track
from gradlint.structure import Structure
from gradlint.theory.initialization import is_initialized

Progress = Callable[[str], None]

MOST_SEEDS = 9
"""The most seeds to draw for a model whose growth is near LIMIT."""

TYPICAL_SPREAD = 0.1
"""The spread between seeds, in decades, that is assumed if only one was drawn."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The results of one seed.

    Attributes:
        graph: The graph, up to the operator at which the run stopped, if it did.
        structure: The structure of this graph.
        seen: What the recorder saw of every node that ran.
        over_time: The gradients along the time axis of recurrences; only the first seed has them.
        pulled: The squared norms of cotangent and trunk output, and the gradients of weights.
        stopped: Why the run stopped early, if it did.
        observers: The observers of this pass.
    """

    graph: Graph
    structure: Structure
    seen: Mapping[str, Seen]
    over_time: OverTime
    pulled: Pulled
    stopped: PartialRun | None
    observers: Sequence[Observer] = ()

    def gains(self, node: str) -> Gains:
        """Return the backward gain, the forward level and the relative gain of a node that ran, in decades.

        The backward and the relative gain are None if no gradient arrived, and the backward gain is -inf if it is exactly zero.
        """
        seen = self.seen[node]
        forward = _decades(seen.square, max(seen.size, 1))
        if seen.gradient is None or not seen.size or not self.pulled.cotangent:  # an empty tensor has no gains
            return Gains(None, forward, None)
        backward = _decades(seen.gradient, self.pulled.cotangent)
        return Gains(backward, forward, backward + _decades(seen.square, self.pulled.output))


def _decades(square: float, reference: float) -> float:
    """Return 1/2 log10(square / reference): -inf for a square of zero, and inf or NaN unchanged."""
    if square == 0.0:
        return -math.inf
    if not math.isfinite(square) or reference == 0.0:
        return square if reference else math.nan
    return 0.5 * (math.log10(square) - math.log10(reference))


def observe(
    model: Runnable, *, seeds: int, seed: int, progress: Progress, most: int = MOST_SEEDS, budget: Budget = ENDLESS
) -> Measurement:
    """Run the passes and return the medians over seeds, without experiments. The caller must be inside `untouched`.

    Args:
        model: The model to run.
        seeds: How many seeds to draw.
        seed: The first seed; the others follow it.
        progress: Called with one line of text before each pass.
        budget: The time that is left. One pass is made in any case.
        most: If growth is so near to LIMIT that its spread between seeds decides, up to this many seeds are drawn.

    Raises:
        ForwardError: The forward or the backward pass of the model raised.
    """
    passes: list[Pass] = []
    keep: tuple[Ref, ...] | None = None
    while True:
        progress(f"probing, seed {len(passes) + 1} of {max(seeds, len(passes) + 1)}")
        passes.append(_one_pass(model, seed + len(passes), keep, timed=not passes))
        keep = passes[-1].structure.trunk if passes[-1].stopped is None else None
        broken = first_nonfinite_forward(passes[-1].graph, passes[-1].seen) is not None
        if len(passes) < seeds and not broken and not budget.is_spent:
            continue
        found = _combine(passes)
        if budget.is_spent:
            seeds_left = seeds - len(passes)
            return replace(found, notes=(*found.notes, budget.lacks(f"{seeds_left} more seeds"))) if seeds_left > 0 else found
        if broken or len(passes) >= most or not _is_undecided(found):
            break
    more = f"growth lies near the limit of {LIMIT}: {len(passes) - seeds} more seeds were drawn"
    return replace(found, notes=(*found.notes, more)) if len(passes) > seeds else found


def _is_undecided(found: Measurement) -> bool:
    """Return whether growth differs from LIMIT by no more than its spread between seeds (or TYPICAL_SPREAD, for one seed)."""
    growth = found.growth
    spread = TYPICAL_SPREAD if growth.spread is None else growth.spread
    return abs(abs(growth.decades) - LIMIT) <= spread


def _one_pass(model: Runnable, seed: int, keep: tuple[Ref, ...] | None, *, timed: bool = False) -> Pass:
    recorder, outputs, stopped = _forward(model, seed, keep or (), timed=timed)
    graph = model.graph if stopped is None else _executed_part(model.graph, stopped, recorder.seen)
    live = {node for node, seen in recorder.seen.items() if seen.differentiable}
    structure = Structure(graph, live=live)
    trunk = _trunk_tensors(structure, recorder, outputs)
    if trunk is None:  # the trunk output is only known now: run again, and keep its tensors
        recorder, outputs, stopped = _forward(model, seed, structure.trunk, timed=timed)
        trunk = _trunk_tensors(structure, recorder, outputs) or []
    pulled = Pulled()
    over_time = OverTime()
    if trunk and first_nonfinite_forward(graph, recorder.seen) is None:
        if timed:
            with recorder.paused():
                over_time = OverTime.of(structure, recorder.points, recorder.fed, seed)
        recorder.points.clear()
        pulled = pull(trunk, recorder.sources, graph.weights, model.parameters(), seed)
    recorder.sources.clear()
    return Pass(graph, structure, recorder.seen, over_time, pulled, stopped, recorder.observers)


def _forward(
    model: Runnable, seed: int, keep: Sequence[Ref], *, timed: bool
) -> tuple[Recorder, dict[Ref, torch.Tensor], PartialRun | None]:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    names = _NodeOperators(model)
    recorder = Recorder(names.is_final, names.is_recurrent, frozenset(keep), timed=timed)
    for observer in recorder.observers:
        if isinstance(observer, NeedsOperators):
            observer.operators = names.operators
    try:
        outputs = model.forward([spec.draw(rng) for spec in model.inputs], tap=recorder)
    except PartialRun as stopped:
        return recorder, {}, stopped
    return recorder, dict(zip(model.graph.outputs, outputs, strict=True)), None


class _NodeOperators:
    """The operators of nodes by node id: from the graph, or from the id itself while the graph is still being captured."""

    def __init__(self, model: Runnable) -> None:
        try:
            self._graph: Graph | None = model.graph
        except RuntimeError:
            self._graph = None

    def operators(self, node: str) -> list[Operator]:
        """Return the operator of a node, or all operators that its id may name."""
        if self._graph is not None and node in self._graph:
            return [operator(self._graph[node].op)]
        return [operator(name) for name in node.split(":")]

    def is_final(self, node: str) -> bool:
        return any(row.final or row.kind is Kind.LOSS for row in self.operators(node))

    def is_recurrent(self, node: str) -> bool:
        return any(row.kind is Kind.RNN for row in self.operators(node))


def _executed_part(graph: Graph, stopped: PartialRun, seen: Mapping[str, Seen]) -> Graph:
    """Return the part of the graph that ran before the run stopped. Its outputs are the inputs of the unsupported operator."""
    ran = {node.id for node in graph if node.id in seen}
    nodes = [replace(node, inputs=tuple(_if_in(ref, ran) for ref in node.inputs)) for node in graph if node.id in ran]
    ends = [ref for ref in graph[stopped.node].inputs if ref is not None and ref.node in ran] if stopped.node in graph else []
    differentiable = [ref for ref in ends if seen[ref.node].differentiable]
    if not differentiable:
        differentiable = [Ref(node.id) for node in nodes if seen[node.id].differentiable][-1:]
    return Graph(nodes, differentiable, mode=graph.mode)


def _if_in(ref: Ref | None, ran: Collection[str]) -> Ref | None:
    """Return a reference if its node ran; None if it did not, as in a branch that was not taken."""
    return ref if ref is not None and ref.node in ran else None


def _trunk_tensors(structure: Structure, recorder: Recorder, outputs: Mapping[Ref, torch.Tensor]) -> list[torch.Tensor] | None:
    """Return the trunk tensors that require grad; None if the recorder did not keep all of them."""
    held = {**outputs, **recorder.kept}
    for node, tensor in recorder.finals:
        first = next((ref for ref in structure.graph[node].inputs if ref is not None), None) if node in structure.graph else None
        if first is not None:
            held.setdefault(first, tensor)
    if any(ref not in held for ref in structure.trunk):
        return None
    return [held[ref] for ref in structure.trunk if held[ref].requires_grad]


def _combine(passes: Sequence[Pass]) -> Measurement:
    """Combine the passes of all seeds: medians over those that ran the same nodes as the first, which captured the graph."""
    taken = [one for one in passes if one.seen.keys() == passes[0].seen.keys()]
    notes = passes[0].over_time.notes
    if len(taken) < len(passes):
        notes = (
            *notes,
            f"{len(passes) - len(taken)} of {len(passes)} seeds took another path (layer drop, a branch): left out",
        )
    passes, last = taken, taken[0]
    graph, structure = last.graph, last.structure
    each = [{node: one.gains(node) for node in one.seen} for one in passes]
    gains = {node: _median([gains[node] for gains in each if node in gains]) for node in last.seen}
    by_cuts = not structure.spine_is_representative
    chain, per_seed = chain_of(structure, each)
    shown = {node: _median([one[node] for one in per_seed if node in one]) for node in chain} if by_cuts else gains
    singles = [{node: one[node].backward for node in chain if node in one} for one in per_seed]
    forward = first_nonfinite_forward(graph, last.seen)
    learning = _learning(passes, structure)
    main = Track(tuple(chain), summarize(graph, chain, shown, singles))
    tracks = tuple(track for track in read_tracks(structure, gains, each) if track.nodes != main.nodes)
    worst = decisive(structure, main, tracks, learning)
    dead = forward is None and is_dead(structure, last.seen)
    return Measurement(
        gains=gains,
        spine=worst.nodes,
        trunk=tuple(ref.node for ref in structure.trunk),
        growth=worst.growth if forward is None else Growth(0.0),
        seeds=len(passes),
        learning=learning,
        tracks=tuple(track for track in (main, *tracks) if track.nodes != worst.nodes),
        time=() if forward else last.over_time.growth(structure, gains),
        nonfinite_forward=forward,
        nonfinite_backward=None if forward else first_nonfinite_backward(structure, last.seen),
        cuts=() if forward else find_cuts(structure, last.seen),
        idle=() if forward else find_zero_gradients(structure, last.seen),
        dead=dead,
        stopped_at=str(last.stopped) if last.stopped else None,
        cut_gains=shown if by_cuts and worst is main else {},
        notes=notes,
        ran=frozenset(last.seen),
        live=frozenset(node for node, seen in last.seen.items() if seen.differentiable),
        ranges=ranges_seen(one.seen for one in passes),
        **summaries([one.observers for one in passes], structure),
    )


def _learning(passes: Sequence[Pass], structure: Structure) -> Learning:
    """Return the median over passes of what `Pass.weights` holds, in decades."""
    ran = [one.pulled for one in passes if one.pulled.cotangent]
    if not ran:
        return Learning()
    gradients = {
        name: [(one.weights[name], one.cotangent) for one in ran if name in one.weights]
        for name in dict.fromkeys(name for one in ran for name in one.weights)
    }
    levels = {
        name: _told(median(_decades(found.square, cotangent * found.size) for found, cotangent in each))
        for name, each in gradients.items()
    }
    matrices = {weight.name for weight in structure.graph.weights.values() if len(weight.shape) > 1}
    drift = spread(structure, levels)
    output = median(_decades(one.output, max(one.outputs, 1)) for one in ran)
    return Learning(
        levels=levels,
        tangent=_tangent(ran, levels),
        matrices=_tangent(ran, matrices),
        output=output,
        drawn=output >= LOUD and is_initialized(structure, structure.signal),
        spread=drift.decades if drift is not None else None,
        run=drift.nodes if drift is not None else (),
        alike=tuple(name for name, each in gradients.items() if all(found.alike for found, _ in each)),
    )


def _tangent(passes: Sequence[Pulled], names: Collection[str]) -> float | None:
    """Return 1/2 log10(sum |J_W^T v|^2 / |v|^2) over some weights, the median over passes; None if none has a gradient."""
    found = [[one.weights[name].square for name in names if name in one.weights] for one in passes]
    totals = [_decades(sum(squares), one.cotangent) for one, squares in zip(passes, found, strict=True) if squares]
    return _told(median(totals)) if totals else None


def _told(decades: float) -> float:
    """Return decades without the digits that differ from run to run, since sums depend on how memory is aligned."""
    return round(decades, 9) if math.isfinite(decades) else decades


def _median(gains: Sequence[Gains]) -> Gains:
    def middle(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(median(known)) if known else None

    return Gains(
        middle([item.backward for item in gains]),
        middle([item.forward for item in gains]),
        middle([item.relative for item in gains]),
    )
