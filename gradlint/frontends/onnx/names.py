"""Ids of ONNX nodes. The static graph and the evaluator share them, so that both use the same id for a node."""

from __future__ import annotations

import onnx


def input_id(name: str) -> str:
    """Return the id of the graph input `name`. The prefix sets it apart from node names."""
    return f"input:{name}"


def subgraph_scope(node_id: str, attribute: str) -> str:
    """Return the id prefix of the nodes in a subgraph attribute, such as "If_0/then_branch/"."""
    return f"{node_id}/{attribute}/"


def assign_ids(graph: onnx.GraphProto, scope: str = "") -> list[str]:
    """Return a unique id for each node of `graph`, in order.

    An id is `scope` followed by the node's name, or by operator and first output, as in "MatMul:y", if the node has no name. If
    a second node would have the same id, its id ends in "#2". Nodes of subgraphs are not included; see `subgraph_scope`.
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
