"""What patterns are found with: a view of nodes and their readers, and the match that one node takes the place of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlint.graph import Node, Ref, Weight


@dataclass(frozen=True)
class Match:
    """The pattern that ends in `last`: its operator, its inputs, and the nodes that vanish."""

    last: Node
    op: str
    inputs: tuple[Ref | None, ...]
    inner: tuple[Node, ...]
    weights: Mapping[str, Weight] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)


class View:
    """Nodes with their readers. Every method that follows an edge gives None where the graph is another."""

    def __init__(self, nodes: Sequence[Node], outputs: Iterable[Ref | None]) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._returned = {ref.node for ref in outputs if ref is not None}
        self._readers: dict[str, list[str]] = {}
        for node in nodes:
            for ref in node.inputs:
                if ref is not None:
                    self._readers.setdefault(ref.node, []).append(node.id)

    def maker(self, ref: Ref | None, *ops: str) -> Node | None:
        """The node that makes a tensor, if it has one of these operators."""
        node = self._nodes.get(ref.node) if ref is not None and ref.port == 0 else None
        return node if node is not None and node.op in ops else None

    def readers(self, node: Node) -> list[Node]:
        """The nodes that read a node, each once."""
        return [self._nodes[name] for name in dict.fromkeys(self._readers.get(node.id, ()))]

    def reader(self, node: Node, *ops: str) -> Node | None:
        """The only reader of a node, if it has one of these operators."""
        readers = set(self._readers.get(node.id, ()))
        if len(readers) != 1 or node.id in self._returned:
            return None
        found = self._nodes[readers.pop()]
        return found if found.op in ops else None

    def before(self, node: Node | None, *ops: str) -> Node | None:
        """The node before one that has a single input, through casts."""
        refs = [ref for ref in node.inputs if ref is not None] if node is not None else []
        made = self.maker(refs[0], *ops, "cast") if len(refs) == 1 else None
        return self.before(made, *ops) if made is not None and made.op == "cast" and "cast" not in ops else made

    def is_closed(self, match: Match, members: set[str]) -> bool:
        """Whether nobody outside reads a node inside."""
        return all(
            node.id not in self._returned and members.issuperset(self._readers.get(node.id, ()))
            for node in match.inner
            if node.id != match.last.id
        )


def refs_of(node: Node) -> list[Ref]:
    """The activations that a node reads, in order."""
    return [ref for ref in node.inputs if ref is not None]


def signal_of(node: Node) -> Ref | None:
    """The activation that a node reads, None where it reads none or several."""
    refs = refs_of(node)
    return refs[0] if len(refs) == 1 else None
