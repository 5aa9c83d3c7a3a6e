"""Find the layers into which an exporter folded a BatchNorm, for certain or possibly."""

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
    """Return the nodes; layers that contain a folded norm get the note "batch-norm-folded" or "batch-norm-may-be-folded".

    `kinds` is the kind of each tensor in the exported module's state, by name. If it lists statistics of a norm that no node
    uses, then a norm was folded. A layer that has no bias in `kinds` contains it for certain. A layer that has a bias, and no
    module path, possibly does. If the file records no state, `_may_hide` decides.
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
    """Return whether a convolution with a bias may contain a folded norm, in a file that does not record the module's state.

    If the file has no norm at all, every convolution may. Otherwise, the name of the weight decides: the TorchScript exporter
    names a weight that it computed "onnx::Conv_7", and an unchanged one after its module.
    """
    names = {weight.name for weight in node.weights.values()}
    own = bool(node.module) and not names.isdisjoint({f"{node.module}.weight", f"{node.module}.bias"})
    return operator(node.op).kind is Kind.CONV and not own and (not normed or weight.name.startswith(_COMPUTED))


def folding_notes(nodes: Sequence[Node], kinds: Mapping[str, str], *, training: bool) -> Iterator[str]:
    """Yield the remarks for the report on frozen, folded and possibly folded norms."""
    norms = sum(node.op == "batch_norm" for node in nodes)
    if norms and not training:
        yield FROZEN_NOTE
    if sum(name.endswith("running_mean") for name in kinds) > norms or any(FOLDED in node.notes for node in nodes):
        yield FOLDED_NOTE
        yield EXPORT_NOTE
    elif any(MAYBE_FOLDED in node.notes for node in nodes):
        yield UNKNOWN_NOTE
        yield EXPORT_NOTE
