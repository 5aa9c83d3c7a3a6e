"""BatchNorm that an exporter folded into the layer before it: which layers hide one, for certain or perhaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gradlint.frontends.onnx.metadata import FOLDED
from gradlint.graph import Node, Weight
from gradlint.ops import Kind, operator

MAYBE_FOLDED = "batch-norm-may-be-folded"
_COMPUTED = "onnx::Conv"
FROZEN_NOTE = "eval-mode graph: BatchNorm is an affine map with frozen statistics"
FOLDED_NOTE = "eval-mode graph: BatchNorm was folded by the exporter"
UNKNOWN_NOTE = "normalization unknown: the file does not say whether a BatchNorm was folded into its convolutions"
EXPORT_NOTE = "export for linting with torch.onnx.export(..., dynamo=True, optimize=False), which keeps every BatchNorm"


def mark_folded(nodes: Sequence[Node], kinds: Mapping[str, str]) -> list[Node]:
    """The nodes, with "batch-norm-folded" or "batch-norm-may-be-folded" among the notes of layers that hide a norm.

    `kinds` holds the state of the exported module by name. When it lists statistics of a norm that no node uses, a layer without
    a bias in it is one that hides a norm, also when what the norm made of the missing bias was zero and left out; a layer with a
    bias may be one when nothing is written beside it. For a file that says nothing see `_may_hide`.
    """
    used = {weight.name for node in nodes for weight in node.weights.values()}
    hidden = any(name.endswith("running_mean") and name not in used for name in kinds)
    normed = any(operator(node.op).kind is Kind.NORM for node in nodes)
    return [_marked(node, kinds, hidden=hidden, normed=normed) for node in nodes]


def _marked(node: Node, kinds: Mapping[str, str], *, hidden: bool, normed: bool) -> Node:
    weight = node.weights.get("weight")
    if FOLDED in node.notes or weight is None or operator(node.op).kind not in {Kind.CONV, Kind.LINEAR}:
        return node
    if hidden and weight.name in kinds and f"{weight.name.rpartition('.')[0]}.bias" not in kinds:
        return replace(node, notes=node.notes | {FOLDED})
    maybe = hidden and not node.module if kinds else _may_hide(node, weight, normed=normed)
    return replace(node, notes=node.notes | {MAYBE_FOLDED}) if maybe and "bias" in node.weights else node


def _may_hide(node: Node, weight: Weight, *, normed: bool) -> bool:
    """Whether a convolution with a bias, in a file without a record, may hide a norm.

    Every one may where no norm is left. The TorchScript exporter folds some and leaves others; it names what it computed anew
    "onnx::Conv_7", and what it did not touch after its module.
    """
    names = {weight.name for weight in node.weights.values()}
    own = bool(node.module) and not names.isdisjoint({f"{node.module}.weight", f"{node.module}.bias"})
    return operator(node.op).kind is Kind.CONV and not own and (not normed or weight.name.startswith(_COMPUTED))


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
