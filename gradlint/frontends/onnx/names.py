"""Ids of ONNX nodes, shared by the static graph and the evaluator, so that both speak of the same places."""

from __future__ import annotations

import onnx


def input_id(name: str) -> str:
    """The id of the graph input `name`, which no node id of an ordinary file equals."""
    return f"input:{name}"


def subgraph_scope(node_id: str, attribute: str) -> str:
    """The scope of the nodes in a subgraph attribute, such as "If_0/then_branch/"."""
    return f"{node_id}/{attribute}/"


def assign_ids(graph: onnx.GraphProto, scope: str = "") -> list[str]:
    """The ids of the nodes of `graph`, in order and all different.

    An id is `scope` and the node's name, or its operator and first output where it has no name: "MatMul:y". The second
    node that would get the same id gets "#2" at its end. Subgraphs are not entered: see `subgraph_scope`.
    """
    ids: dict[str, None] = {}
    named = {node.name for node in graph.node}
    counts: dict[str, int] = {}
    for node in graph.node:
        stem = node.name or f"{node.op_type}:{next(filter(None, node.output), '')}"
        count = counts.get(stem, 1)
        unique = stem if count == 1 else f"{stem}#{count}"
        while scope + unique in ids or (count > 1 and unique in named):
            count += 1
            unique = f"{stem}#{count}"
        ids[scope + unique] = None
        counts[stem] = count
    return list(ids)
