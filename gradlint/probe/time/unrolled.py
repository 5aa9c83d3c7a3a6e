"""Find recurrences that a graph contains in unrolled form, and the time axis of the sequence that they read."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from gradlint.graph import Graph, Node, Ref
from gradlint.ops import Kind
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import Structure

_SPLITS = frozenset({"unbind", "chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "Split"})
_UPDATES = ("add", "sub", "mul", "where", "maximum")  # operators that update a state without weights, the most likely first
_FEWEST = 4  # the fewest steps of a loop without weights
_REACH = 400  # the most nodes that are visited in one step of a loop
_SHORT = 60  # the same for a loop without weights
_BEFOREHAND = 4  # the most operators between a piece of a sequence and the loop
_TURNS = 4  # the most nodes of one operator in one step of a loop, where no line of code tells them apart
_CALL = re.compile(r"_\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Unrolled:
    """An unrolled loop.

    Attributes:
        nodes: One node for each step, in the order of processing.
        end: The node that computes the last state.
        source: The node whose output is the sequence; None if the loop reads none.
        axis: The time axis of the sequence; None if the loop reads none.
        indices: The positions of the steps on this axis, from the second step on; empty if the graph does not tell.
        weightless: Whether no weight layer multiplies the state.
    """

    nodes: tuple[str, ...]
    end: str
    source: str | None = None
    axis: int | None = None
    indices: tuple[int, ...] = ()
    weightless: bool = False

    @property
    def backwards(self) -> bool:
        """Whether the loop processes the sequence from its end to its start."""
        return bool(self.indices) and self.indices[0] > self.indices[-1]


@dataclass(frozen=True, slots=True)
class _Feed:
    """The `piece` of the sequence `source` that a step reads. `axis` and `index` are None if the graph does not tell."""

    source: str
    axis: int | None
    index: int | None
    piece: Ref


def unrolled(structure: Structure) -> list[Unrolled]:
    """Return the unrolled loops of a graph.

    First come those that apply a weight to its own result again, then those that consist of elementwise operators, as in
    state-space models.
    """
    found: list[Unrolled] = []
    for item in sorted(structure.recurrences, key=lambda item: item.elementwise):
        loop = _with_sequence(structure, item.nodes)
        known = {(other.end, other.source, other.axis) for other in found}  # a leak beside the matrix is part of its cell
        if not item.elementwise or (loop.end, loop.source, loop.axis) not in known:
            found.append(loop)
    position = structure.graph.position
    taken = [(position[loop.nodes[0]], position[loop.nodes[-1]]) for loop in found]
    for nodes in _update_chains(structure):
        first, last = position[nodes[0]], position[nodes[-1]]
        if not any(first <= high and low <= last for low, high in taken):
            loop = _with_sequence(structure, nodes)
            if loop.axis is not None:
                found.append(replace(loop, end=nodes[-1], weightless=True))
                taken.append((first, last))
    return found


def _with_sequence(structure: Structure, nodes: Sequence[str]) -> Unrolled:
    """Return the loop with the sequence that it reads: one of which every step, except possibly the first, reads a new piece."""
    feeds = [_step(structure, node, before, _REACH)[0] for before, node in itertools.pairwise(nodes)]
    counts = Counter((feed.source, feed.axis) for step in feeds for feed in {(f.source, f.axis): f for f in step}.values())
    for (source, axis), count in counts.most_common():
        if count < max(len(feeds) - 1, 1):
            break
        taken = [next((f for f in step if (f.source, f.axis) == (source, axis)), None) for step in feeds]
        pieces = [feed for feed in taken if feed is not None]
        own = axis if axis is not None else _axis_of_size(structure.graph[source], len(nodes))
        shape = structure.graph[source].shape or ()
        size = (shape[own] if own is not None and own < len(shape) else None) or 0
        indices = [feed.index + size * (feed.index < 0) for feed in pieces if feed.index is not None]
        if own is None or len({feed.piece for feed in pieces}) < len(pieces) or (indices and len(set(indices)) < len(pieces)):
            continue
        unprojected = _before_projection(structure, source, own, structure.graph[nodes[0]])
        return Unrolled(tuple(nodes), _last_state(structure, nodes), unprojected, own, tuple(indices))
    return Unrolled(tuple(nodes), nodes[-1])


def _before_projection(structure: Structure, source: str, axis: int, step: Node) -> str:
    """Return the input of the cell, if the model multiplies it by the input weight for all steps at once, before the loop."""
    while True:
        node, parents = structure.graph[source], structure.signal_parents(source)
        projects = kind_of(node) is Kind.LINEAR or (node.op == "add" and "bias" in node.weights)
        if not projects or node.module != step.module or len(parents) != 1 or axis >= len(node.shape or ()) - 1:
            return source
        source = parents[0]


def _last_state(structure: Structure, nodes: Sequence[str]) -> str:
    """Return the node that computes the last state.

    The last step reads a state that is computed some nodes after the step before. A loop repeats its body node by node, so that
    the last state is computed as many nodes after the last step. If there is no such node, return the last step itself.
    """
    graph, position = structure.graph, structure.graph.position
    before, last = nodes[-2:]
    order = list(position)
    here = last
    while here != before:
        here = max(
            (parent for parent in structure.signal_parents(here) if position[parent] >= position[before]),
            default=before,
            key=lambda parent: (structure.is_ancestor(before, parent), position[parent]),
        )
        place = position[here] + position[last] - position[before]
        twin = graph[order[place]] if place < len(order) else None
        known = twin is not None and twin.id in structure.signal_set and (twin.id == last or structure.is_ancestor(last, twin.id))
        if (
            twin is not None
            and known
            and (twin.op, twin.shape, twin.module) == (graph[here].op, graph[here].shape, graph[here].module)
        ):
            return twin.id
    return last


def _axis_of_size(source: Node, steps: int) -> int | None:
    """Return the only axis whose size is the number of steps, or one more, as the first step may be missing; otherwise None."""
    fitting = [axis for axis, size in enumerate(source.shape or ()) if size in {steps, steps + 1}]
    return fitting[0] if len(fitting) == 1 else None


def _step(structure: Structure, node: str, before: str, reach: int, shared: Collection[str] = ()) -> tuple[list[_Feed], bool]:
    """Return the pieces of sequences that `node` reads, and whether it depends on the step before, `before`.

    Nodes before the loop are followed for a few operators, because pieces are often sliced, squeezed and projected in advance.
    With a short `reach`, only weight layers that are `shared` by the steps are followed; otherwise a chain of layers would look
    like a loop.
    """
    graph, start = structure.graph, structure.graph.position[before]
    feeds: list[_Feed] = []
    linked, seen, queue = False, {node}, [(node, _BEFOREHAND)]
    for here, slack in queue:
        for ref in graph[here].inputs:
            if ref is None or ref.node not in structure.signal_set:
                continue
            linked = linked or ref.node == before
            left = slack - (graph.position[ref.node] <= start)
            if (feed := _piece(graph, ref)) is not None:
                feeds.append(feed)
            elif ref.node in seen or ref.node == before or left < 0 or len(seen) >= reach:
                continue
            elif reach > _SHORT or not is_weight_layer(graph[ref.node]) or ref.node in shared:
                seen.add(ref.node)
                queue.append((ref.node, left))
    return feeds, linked


def _projections(structure: Structure) -> frozenset[str]:
    """Return the weight layers that share a weight with others and never apply it to their own result: those of the inputs."""
    layers = [node for node in map(structure.graph.__getitem__, structure.signal) if is_weight_layer(node)]
    uses = Counter(weight.name for node in layers for weight in node.weights.values())
    recurrent = {node for item in structure.recurrences for node in item.nodes}
    return frozenset(
        node.id for node in layers if node.id not in recurrent and all(uses[weight.name] > 1 for weight in node.weights.values())
    )


def _piece(graph: Graph, piece: Ref) -> _Feed | None:
    node = graph[piece.node]
    name = str(node.attrs.get("name", ""))
    source = next((ref.node for ref in node.inputs if ref is not None), None)
    if source is None:
        return None
    if kind_of(node) is Kind.EMBEDDING:  # of one token of a sequence
        token = next(ref for ref in node.inputs if ref is not None)
        feed = _piece(graph, token)
        return None if feed is None else replace(feed, piece=piece)
    if name in _SPLITS:
        axis = node.attrs.get("dim", node.attrs.get("axis", 0))
        return _Feed(source, _nonnegative_axis(graph[source], axis), piece.port, piece)
    if node.op != "slice":
        return None
    if name == "getitem":
        index = tuple(node.attrs.get("index", ()))
        places = [place for place, item in enumerate(index) if _is_single_index(item)]
        if not places:
            return None
        place = places[-1]
        item = index[place]
        axis = _nonnegative_axis(graph[source], place - len(index) if "..." in index[:place] else place)
        shape = graph[source].shape or ()
        if axis is not None and 0 <= axis < len(shape) and shape[axis] == 1:  # already a piece, whose axis is removed
            return None
        return _Feed(source, axis, item if isinstance(item, int) else item[0], piece)
    if name in {"select", "narrow", "Gather", "index_select"}:
        axis = node.attrs.get("dim", node.attrs.get("axis", 0))
        chosen = next((node.attrs[key] for key in ("index", "start", "indices") if key in node.attrs), None)
        return _Feed(source, _nonnegative_axis(graph[source], axis), _single(chosen), piece)
    if name == "Slice":
        axis, start, end = (_single(node.attrs.get(key)) for key in ("axes", "starts", "ends"))
        single = start is not None and end == start + 1
        return _Feed(source, _nonnegative_axis(graph[source], axis) if single else None, start if single else None, piece)
    return None


def _single(values: object) -> int | None:
    """Return an integer, or the only one of a sequence."""
    value = values[0] if isinstance(values, tuple | list) and len(values) == 1 else values
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_single_index(item: object) -> bool:
    """Return whether an index selects one position of an axis: t, or t:t+1."""
    if isinstance(item, tuple) and len(item) == 3:
        return item[0] is not None and item[1] == item[0] + 1
    return isinstance(item, int) and not isinstance(item, bool)


def _nonnegative_axis(source: Node, axis: object) -> int | None:
    if not isinstance(axis, int):
        return None
    return axis + len(source.shape) if axis < 0 and source.shape is not None else axis


def _update_chains(structure: Structure) -> list[tuple[str, ...]]:
    """Return chains of one elementwise operator in one line of code. Each node reads the one before and a piece of a sequence."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for node_id in structure.signal:
        node = structure.graph[node_id]
        if node.op in _UPDATES and kind_of(node) is not Kind.SHAPE:
            groups[_unnumbered(node), node.op, node.source].append(node_id)
    chains, shared = [], _projections(structure)
    for (_, op, _), nodes in groups.items():
        if len(nodes) >= _FEWEST and (chain := _longest_chain(structure, nodes, shared)):
            chains.append((_UPDATES.index(str(op)), structure.graph.position[chain[0]], chain))
    return [chain for _, _, chain in sorted(chains)]


def _unnumbered(node: Node) -> str:
    """Return the module of a node; of a file, which tells no line, without the number that some exporters give each call."""
    return node.module if node.source is not None else _CALL.sub("", node.module)


def _longest_chain(structure: Structure, nodes: Sequence[str], shared: Collection[str]) -> tuple[str, ...]:
    """Return the longest run in which every node reads the one before it and a piece of a sequence; () if it is too short.

    A step may hold the operator several times: then it is every second node, or every third.
    """
    best: list[str] = []
    for turns in range(1, _TURNS + 1):
        for first in range(turns):
            best = max(best, *_runs(structure, nodes[first::turns], shared), key=len)
        if len(best) >= _FEWEST:
            break
    inside = (structure.graph[node] for pair in itertools.pairwise(best) for node in structure.between(*pair))
    layered = any(map(is_weight_layer, inside))
    return tuple(best) if len(best) >= _FEWEST and not layered else ()  # blocks of a deep model may read slices too


def _runs(structure: Structure, nodes: Sequence[str], shared: Collection[str]) -> list[list[str]]:
    runs: list[list[str]] = [[*nodes[:1]]]
    for before, node in itertools.pairwise(nodes):
        feeds, linked = _step(structure, node, before, _SHORT, shared)
        if linked and feeds:
            runs[-1].append(node)
        else:
            runs.append([node])
    return runs
