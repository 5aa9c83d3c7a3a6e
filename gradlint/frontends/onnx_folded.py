"""BatchNorm that an exporter folded into the layer before it: which layers hide one, for certain or perhaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gradlint.frontends.onnx_metadata import FOLDED
from gradlint.graph import Node
from gradlint.ops import Kind, operator

MAYBE_FOLDED = "batch-norm-may-be-folded"
FROZEN_NOTE = "eval-mode graph: BatchNorm is an affine map with frozen statistics"
FOLDED_NOTE = "eval-mode graph: BatchNorm was folded by the exporter"
UNKNOWN_NOTE = "normalization unknown: the file does not say whether a BatchNorm was folded into its convolutions"
EXPORT_NOTE = "export for linting with torch.onnx.export(..., dynamo=True, optimize=False), which keeps every BatchNorm"


def mark_folded(nodes: Sequence[Node], kinds: Mapping[str, str]) -> list[Node]:
    """The nodes, with "batch-norm-folded" or "batch-norm-may-be-folded" among the notes of layers that hide a norm.

    `kinds` holds the state of the exported module by name. When it lists statistics of a norm that no node uses, a layer without
    a bias in it is one that hides a norm, also when what the norm made of the missing bias was zero and left out. A file that
    says nothing, has no norm and has convolutions with a bias may have been exported with its norms folded into these.
    """
    used = {weight.name for node in nodes for weight in node.weights.values()}
    hidden = any(name.endswith("running_mean") and name not in used for name in kinds)
    silent = not kinds and not any(operator(node.op).kind is Kind.NORM for node in nodes)
    return [_marked(node, kinds, hidden=hidden, silent=silent) for node in nodes]


def _marked(node: Node, kinds: Mapping[str, str], *, hidden: bool, silent: bool) -> Node:
    kind, bias = operator(node.op).kind, node.weights.get("bias")
    weight = node.weights.get("weight")
    if FOLDED in node.notes or weight is None or kind not in {Kind.CONV, Kind.LINEAR}:
        return node
    if hidden and weight.name in kinds and f"{weight.name.rpartition('.')[0]}.bias" not in kinds:
        return replace(node, notes=node.notes | {FOLDED})
    return replace(node, notes=node.notes | {MAYBE_FOLDED}) if silent and bias is not None and kind is Kind.CONV else node


def folding_notes(nodes: Sequence[Node], kinds: Mapping[str, str], *, training: bool) -> Iterator[str]:
    """What the report says of the norms of a file: nothing where it has none and hides none."""
    norms = sum(node.op == "batch_norm" for node in nodes)
    if norms and not training:
        yield FROZEN_NOTE
    if sum(name.endswith("running_mean") for name in kinds) > norms or any(FOLDED in node.notes for node in nodes):
        yield FOLDED_NOTE
        yield EXPORT_NOTE
    elif any(MAYBE_FOLDED in node.notes for node in nodes):
        yield UNKNOWN_NOTE
        yield EXPORT_NOTE
