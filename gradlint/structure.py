"""Facts that follow from the shape of a graph: signal, trunk outputs, spine, residual sums, depth, recurrences."""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradlint.graph import Graph, Node, Ref, Weight
from gradlint.ops import operator
from gradlint.signal_path import SignalPath, is_weight_layer

_BLOCK = 4  # weight layers that may lie between two nodes of a representative spine, however shallow the model
_LONGEST_BLOCK = 2000  # nodes searched for the fork of a sum: a longer block is a U-Net, not a residual block


@dataclass(frozen=True, slots=True)
class ResidualSum:
    """An addition or subtraction whose operands all come from one tensor.

    Attributes:
        node: Id of the addition.
        fork: Id of the node at which the paths to the operands part.
        branch: Ids of the nodes between fork and sum that are not on the skip path, in execution order.
        skip: Ids of the nodes on the skip path, in execution order.
    """

    node: str
    fork: str
    branch: tuple[str, ...]
    skip: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Nodes that apply one weight repeatedly to its own result.

    Attributes:
        weight: Name of the weight.
        nodes: Ids of the nodes, in execution order.
        elementwise: Whether the weight multiplies the state unit by unit; any other one is that of a weight layer.
    """

    weight: str
    nodes: tuple[str, ...]
    elementwise: bool = False


class Structure:
    """Facts about a graph that follow from its shape alone.

    Args:
        graph: The graph.
        live: Ids of the nodes that ran and whose output carried a gradient, as measured by the probe. Only these count. None if
            every node counts.
    """

    def __init__(self, graph: Graph, *, live: Collection[str] | None = None) -> None:
        self.graph = graph
        self._signal_path = SignalPath(graph, live=live)

    # signal ---------------------------------------------------------------------------------------------------------

    @property
    def sources(self) -> tuple[str, ...]:
        """Ids of the nodes at which the differentiable signal starts; see `SignalPath.sources`."""
        return self._signal_path.sources

    @property
    def trunk(self) -> tuple[Ref, ...]:
        """The tensors that gradients start from; see `SignalPath.trunk`."""
        return self._signal_path.trunk

    @cached_property
    def signal(self) -> tuple[str, ...]:
        """Ids of the nodes on a differentiable path from a source to a trunk output, in execution order."""
        down: set[str] = set()
        sources = set(self.sources)
        for node in self.graph:
            if node.id in sources or (
                self._signal_path.carries(node) and any(p.id in down for p in self._signal_path.float_parents(node))
            ):
                down.add(node.id)
        up = {ref.node for ref in self.trunk if ref.node in down}
        for node in reversed(list(self.graph)):
            if node.id in up and not operator(node.op).cuts:
                up.update(parent.id for parent in self._signal_path.float_parents(node) if parent.id in down)
        return tuple(node.id for node in self.graph if node.id in up)

    @cached_property
    def signal_set(self) -> frozenset[str]:
        """The ids of `signal` as a set."""
        return frozenset(self.signal)

    @cached_property
    def learning(self) -> tuple[str, ...]:
        """Nodes of the signal that depend on a trainable weight, in execution order. A gradient anywhere else trains nothing.

        In a model that is frozen as a whole, every weight counts as trainable; in one without weights, every node counts.
        """
        if not self.graph.weights:
            return self.signal
        frozen = not any(weight.trainable for weight in self.graph.weights.values())
        found: dict[str, None] = {}
        for node_id in self.signal:
            weights = self.graph[node_id].weights.values()
            if any(weight.trainable or frozen for weight in weights) or any(p in found for p in self.signal_parents(node_id)):
                found[node_id] = None
        return tuple(found)

    def signal_parents(self, node_id: str) -> list[str]:
        """Return the ids of a node's parents on the signal, each once, in the order of its inputs."""
        return self._signal_parents[node_id]

    @cached_property
    def _signal_parents(self) -> Mapping[str, list[str]]:
        on = self.signal_set
        return {
            node.id: list(dict.fromkeys(ref.node for ref in node.inputs if ref is not None and ref.node in on))
            for node in self.graph
        }

    @cached_property
    def spine(self) -> tuple[str, ...]:
        """Ids of the nodes that every differentiable path from input to trunk output passes, in execution order.

        Nodes that depend on no weight are left out, but for the input where there is only one. With several sources, those that
        depend on none (masks, conditions) do not count as paths.
        """
        sources = [source for source in self.sources if source in self.signal_set]
        if len(sources) == 1 or not self.graph.weights:
            return tuple(node for node in self._passed(self.signal, sources) if node in self._counted)
        starts = [node for node in self.learning if not any(parent in self._counted for parent in self.signal_parents(node))]
        return tuple(self._passed(self.learning, starts))

    @cached_property
    def _counted(self) -> frozenset[str]:
        """Nodes that depend on a weight, and the input where there is only one."""
        sources = [source for source in self.sources if source in self.signal_set]
        return frozenset(self.learning) | frozenset(sources if len(sources) == 1 else ())

    def _passed(self, nodes: Sequence[str], sources: Collection[str]) -> Iterator[str]:
        """Yield the nodes that every path from a source to a trunk output passes, of the paths over `nodes`."""
        within = set(nodes)
        parents = {node: [parent for parent in self.signal_parents(node) if parent in within] for node in nodes}
        return passed(parents, sources, {ref.node for ref in self.trunk})

    @cached_property
    def spine_index(self) -> dict[str, int]:
        """Index of each spine node on the spine."""
        return {node_id: index for index, node_id in enumerate(self.spine)}

    @cached_property
    def spine_is_representative(self) -> bool:
        """Whether the spine has at least three nodes, and no gap between them holds more than half of the weight layers.

        Two towers and a U-Net have such a gap. A gap of up to four weight layers is allowed.
        """
        if len(self.spine) < 3:
            return False
        marks = [0, *(self.depths[node_id] for node_id in self.spine), self.depth]
        widest = max(after - before for before, after in itertools.pairwise(marks))
        return widest <= max(self.depth / 2, _BLOCK)

    @cached_property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Cuts of the graph by depth: for each depth, the ids of the nodes down to it that a deeper node reads.

        They replace the spine in models that have none, with several inputs or long skips to several heads. Nodes that depend on
        no weight are left out.
        """
        last: dict[str, int] = {}
        for node_id in self.signal:
            for parent in self.signal_parents(node_id):
                last[parent] = max(last.get(parent, 0), self.depths[node_id])
        for ref in self.trunk:
            last[ref.node] = self.depth + 1
        cuts: list[list[str]] = [[] for _ in range(self.depth + 1)]
        for node_id, end in last.items():
            if node_id in self._counted and end - self.depths[node_id] <= _LONGEST_BLOCK:
                for level in range(self.depths[node_id], end):
                    cuts[level].append(node_id)
        return tuple(tuple(cut) for cut in cuts if cut)

    # layers ---------------------------------------------------------------------------------------------------------

    @cached_property
    def depths(self) -> dict[str, int]:
        """Number of weight layers on the longest path to each node of the signal, by id. A reused weight counts once."""
        depths: dict[str, int] = {}
        seen: set[str] = set()
        for node_id in self.signal:
            node = self.graph[node_id]
            here = max((depths[parent] for parent in self.signal_parents(node_id)), default=0)
            if is_weight_layer(node):
                names = {weight.name for weight in node.weights.values()}
                here += not names <= seen
                seen |= names
            depths[node_id] = here
        return depths

    @cached_property
    def depth(self) -> int:
        """Number of weight layers on the longest path from input to trunk output."""
        return max(self.depths.values(), default=0)

    @cached_property
    def residual_sums(self) -> tuple[ResidualSum, ...]:
        """All residual sums on the signal, in execution order.

        The time is quadratic in the length of a block that holds nested sums. `residual_sum` examines a single node.
        """
        found = (self.residual_sum(node_id) for node_id in self.signal)
        return tuple(item for item in found if item is not None)

    @cached_property
    def recurrences(self) -> tuple[Recurrence, ...]:
        """The recurrences: weight layers, and products with a factor, that share a weight and depend on one another."""
        users: dict[tuple[str, bool], list[str]] = defaultdict(list)
        for node_id in self.signal:
            node = self.graph[node_id]
            if is_weight_layer(node):
                main = node.weights.get("recurrent") or node.weights.get("weight") or next(iter(node.weights.values()))
                users[main.name, False].append(node_id)
            elif (factor := elementwise_factor(node)) is not None:
                users[factor.name, True].append(node_id)
        return tuple(
            Recurrence(name, chain, elementwise)
            for (name, elementwise), nodes in users.items()
            for chain in self._chains(nodes)
            if not elementwise or (len(chain) >= _BLOCK and self._is_bare(chain))
        )

    @cached_property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Ids of the nodes of each repeated module, by module path, such as "encoder.layers.3"; see `block_name`."""
        members: dict[str, list[str]] = defaultdict(list)
        for node in self.graph:
            name = block_name(node.module)
            if name:
                members[name].append(node.id)
        siblings: dict[str, int] = defaultdict(int)
        for name in members:
            siblings[name.rpartition(".")[0]] += 1
        return {name: tuple(ids) for name, ids in members.items() if siblings[name.rpartition(".")[0]] > 1}

    def residual_sum(self, node_id: str) -> ResidualSum | None:
        """Return the residual sum at a node, or None if there is none.

        The operands of a residual sum come from one tensor on the signal. A sum over steps of a recurrence does not count.
        """
        is_sum = self.graph[node_id].op in {"add", "sub"} and node_id in self.signal_set
        operands = self.signal_parents(node_id) if is_sum else []
        fork = self._fork(operands) if len(operands) > 1 else None
        if fork is None:
            return None
        found = self._split(node_id, fork, operands)
        return None if any(self._is_time_step(self.graph[inner]) for inner in found.skip) else found

    # helpers --------------------------------------------------------------------------------------------------------

    @cached_property
    def _spine_positions(self) -> list[int]:
        return [self.graph.position[node_id] for node_id in self.spine]

    def spine_between(self, upper: str, lower: str) -> Iterator[str]:
        """Return the ids of the spine nodes from `upper` to `lower`, both included; the two are nodes of the signal.

        If there is one, a path leads from `upper` to `lower`: every path from `upper` passes the later spine nodes, and every
        path to `lower` passes the earlier ones.
        """
        first = bisect_left(self._spine_positions, self.graph.position[upper])
        last = bisect_right(self._spine_positions, self.graph.position[lower])
        return (self.spine[index] for index in range(first, last))

    def between(self, upper: str, lower: str) -> list[str]:
        """Return the ids of the nodes on paths from `upper` to `lower`, both excluded, in execution order."""
        below = {upper: None}
        for node_id in self._upstream(lower, upper, self._parents):
            if any(parent in below for parent in self._parents(node_id)):
                below[node_id] = None
        return [node_id for node_id in below if node_id not in {upper, lower}]

    def is_ancestor(self, upper: str, lower: str) -> bool:
        """Return whether a path leads from `upper` to `lower`, two nodes of the signal."""
        if next(self.spine_between(upper, lower), None) is not None:
            return True
        return any(upper in self._parents(node_id) for node_id in self._upstream(lower, upper, self._parents))

    def _parents(self, node_id: str) -> list[str]:
        return [parent.id for parent in self.graph.parents(node_id)]

    def _upstream(self, end: str, start: str, parents: Callable[[str], list[str]]) -> list[str]:
        """Return `end` and its ancestors that come after `start` in execution order, in that order."""
        position = self.graph.position
        seen, stack = {end}, [end]
        while stack:
            for parent in parents(stack.pop()):
                if parent not in seen and position[parent] > position[start]:
                    seen.add(parent)
                    stack.append(parent)
        return sorted(seen, key=position.__getitem__)

    def _fork(self, operands: list[str]) -> str | None:
        """Return the nearest node that every path to the operands passes, or None if `_LONGEST_BLOCK` nodes hold none."""
        position = self.graph.position
        heap = [(-position[operand], operand) for operand in operands]
        heapq.heapify(heap)
        waiting = set(operands)
        for _ in range(_LONGEST_BLOCK):
            if len(waiting) == 1:
                return heap[0][1]
            here = heapq.heappop(heap)[1]
            waiting.remove(here)
            parents = self.signal_parents(here)
            if not parents:
                return None
            for parent in parents:
                if parent not in waiting:
                    waiting.add(parent)
                    heapq.heappush(heap, (-position[parent], parent))
        return None

    def _is_time_step(self, node: Node) -> bool:
        """Return whether a node feeds one step of a recurrence: a slice, or a layer that is reused at every step."""
        shared = is_weight_layer(node) and any(self._uses[weight.name] > 1 for weight in node.weights.values())
        return shared or node.op == "slice"

    @cached_property
    def _uses(self) -> Counter[str]:
        return Counter(weight.name for node in self.graph for weight in node.weights.values())

    def _split(self, node_id: str, fork: str, operands: list[str]) -> ResidualSum:
        sides = [[] if end == fork else self._upstream(end, fork, self.signal_parents) for end in operands]
        sides.sort(key=lambda side: sum(is_weight_layer(self.graph[n]) for n in side) * _LONGEST_BLOCK + len(side))
        skip = sides[0]
        common = set(skip)
        branch = dict.fromkeys(n for side in sides[1:] for n in side if n not in common)
        ordered = sorted(branch, key=self.graph.position.__getitem__)
        return ResidualSum(node_id, fork, tuple(ordered), tuple(skip))

    def _chains(self, nodes: list[str]) -> list[tuple[str, ...]]:
        """Chains of two or more nodes, each an ancestor of the next; two loops that share a weight may take turns."""
        chains: list[list[str]] = []
        for node in nodes:
            chain = next((one for one in chains[-2:] if self.is_ancestor(one[-1], node)), None)
            if chain is None:
                chains.append([node])
            else:
                chain.append(node)
        return [tuple(chain) for chain in chains if len(chain) > 1]

    def _is_bare(self, chain: tuple[str, ...]) -> bool:
        """Whether no weight layer stands between the factors of a chain, as it does between the blocks of a deep model."""
        return not any(is_weight_layer(self.graph[inner]) for pair in itertools.pairwise(chain) for inner in self.between(*pair))


def elementwise_factor(node: Node) -> Weight | None:
    """The weight, or the number, that a product multiplies its other operand by; None where it has neither."""
    if node.op == "mul":
        constant = node.attrs.get("constant")
        number = isinstance(constant, int | float) and not isinstance(constant, bool)
        alone = Weight(f"{constant}", (1,), "float64", lambda: np.array([constant])) if number else None
        return node.weights.get("scale") or alone
    return node.weights.get("bias") if node.attrs.get("name") == "addcmul" else None


def block_name(module: str) -> str:
    """Return the outermost prefix of a module path that ends in a number, or "" if there is none."""
    parts = module.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ""


def passed(parents: Mapping[str, Sequence[str]], sources: Collection[str], ends: Collection[str]) -> Iterator[str]:
    """Yield the nodes that every path from a source to an end passes, given the parents of each node in execution order.

    In a scan in topological order, a node is one of them if every edge that is open before it ends in it.
    """
    readers = Counter(parent for above in parents.values() for parent in above)
    waiting, starts = len(sources), set(sources)
    for node, above in parents.items():
        waiting -= len(above) + (node in starts)
        if waiting == 0:
            yield node
        waiting += readers[node] + (node in ends)
