"""Helpers of pattern matching: `View`, which follows the edges between nodes, and `Match`, a pattern that was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlint.graph import Node, Ref, Weight


@dataclass(frozen=True)
class Match:
    """A pattern that ends in the node `last`, as one operator with its inputs. The nodes `inner` are removed from the graph."""

    last: Node
    op: str
    inputs: tuple[Ref | None, ...]
    inner: tuple[Node, ...]
    weights: Mapping[str, Weight] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)


class View:
    """Nodes and their readers. Every method that follows an edge returns None if there is no such edge or node."""

    def __init__(self, nodes: Sequence[Node], outputs: Iterable[Ref | None]) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._returned = {ref.node for ref in outputs if ref is not None}
        self._readers: dict[str, list[str]] = {}
        for node in nodes:
            for ref in node.inputs:
                if ref is not None:
                    self._readers.setdefault(ref.node, []).append(node.id)

    def producer(self, ref: Ref | None, *ops: str) -> Node | None:
        """Return the node that produces a tensor, if it has one of these operators."""
        node = self._nodes.get(ref.node) if ref is not None and ref.port == 0 else None
        return node if node is not None and node.op in ops else None

    def readers(self, node: Node) -> list[Node]:
        """Return the nodes that read an output of a node, each once."""
        return [self._nodes[name] for name in dict.fromkeys(self._readers.get(node.id, ()))]

    def reader(self, node: Node, *ops: str) -> Node | None:
        """Return the only reader of a node, if it has one of these operators."""
        readers = set(self._readers.get(node.id, ()))
        if len(readers) != 1 or node.id in self._returned:
            return None
        found = self._nodes[readers.pop()]
        return found if found.op in ops else None

    def before(self, node: Node | None, *ops: str) -> Node | None:
        """Return the node before one that has a single input, if it has one of these operators. Casts are skipped."""
        refs = [ref for ref in node.inputs if ref is not None] if node is not None else []
        made = self.producer(refs[0], *ops, "cast") if len(refs) == 1 else None
        return self.before(made, *ops) if made is not None and made.op == "cast" and "cast" not in ops else made

    def is_closed(self, match: Match, members: set[str]) -> bool:
        """Return whether no node outside `members`, and no graph output, reads a node that the match removes."""
        return all(
            node.id not in self._returned and members.issuperset(self._readers.get(node.id, ()))
            for node in match.inner
            if node.id != match.last.id
        )


def refs_of(node: Node) -> list[Ref]:
    """Return the activations that a node reads, in order."""
    return [ref for ref in node.inputs if ref is not None]


def signal_of(node: Node) -> Ref | None:
    """Return the activation that a node reads; None if it reads none or several."""
    refs = refs_of(node)
    return refs[0] if len(refs) == 1 else None
