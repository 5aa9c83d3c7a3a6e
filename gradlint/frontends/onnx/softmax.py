"""Recognize softmax and log-softmax that an exporter decomposed: exp(x - max x) / sum exp(x - max x), and its logarithm.

If the shift by the maximum is missing, `attrs["shifted"]` is False. The exponential may be multiplied by the inverse of the sum,
and a reduction that drops its axis may be followed by a reshape. `attrs["fused"]` is False for the logarithm of probabilities,
which may round to zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gradlint.frontends.onnx.matching import Match, View, refs_of, signal_of
from gradlint.graph import Node, Ref

_LONGEST = 6  # the most operators between a reduction and the operator that it normalizes
_MOVES = ("reshape", "cast")
_BEFORE_MOVES = ("maximum", "log", "reciprocal", *_MOVES)
_ENDS = {
    "div": frozenset[str](),
    "mul": frozenset({"reciprocal"}),
    "sub": frozenset({"log"}),
}  # last operators, and those required before


def softmax(view: View, exp: Node) -> Match | None:
    """Match a softmax or a log-softmax, starting at its exponential."""
    logits = signal_of(exp)
    sums = [node for node in view.readers(exp) if node.attrs.get("name") == "ReduceSum"]
    if logits is None or len(sums) != 1 or sums[0].inputs[0] != Ref(exp.id):
        return None
    found = _normalized(view, sums[0], Ref(exp.id), logits)
    if found is None:
        return None
    found = replace(found, inner=(exp, *found.inner))
    shifted = _with_shift(view, found)
    return _with_log(view, shifted if shifted is not found else replace(found, attrs={**found.attrs, "shifted": False}))


def log_sum_exp(view: View, total: Node) -> Match | None:
    """Match a log-softmax x - log sum exp(x), starting at the reduction ReduceLogSumExp."""
    logits = signal_of(total)
    if logits is None or total.attrs.get("name") != "ReduceLogSumExp":
        return None
    return _normalized(view, total, None, logits, done=frozenset({"log"}))


def log_of_softmax(view: View, node: Node) -> Match | None:
    """Match the logarithm of a softmax."""
    logits = signal_of(node)
    match = None if logits is None else _with_log(view, Match(node, "softmax", (logits,), (), {}, _axis_of(node)))
    return match if match is not None and match.last is not node else None


def _axis_of(node: Node) -> dict[str, int]:
    axis = node.attrs.get("axis")
    return {"axis": axis} if isinstance(axis, int) else {}


def _normalized(
    view: View, total: Node, exponential: Ref | None, logits: Ref, *, done: frozenset[str] = frozenset()
) -> Match | None:
    """Return the match that ends where a sum divides the exponential, or where its logarithm is subtracted from the logits."""
    axis = _reduced(view, total)
    passed = [total]
    while axis is not None and len(passed) <= _LONGEST:
        node = view.reader(passed[-1], *_MOVES, "log", "reciprocal", *_ENDS)
        if node is None:
            return None
        if node.op in _ENDS:
            at, first = Ref(passed[-1].id), logits if node.op == "sub" else exponential
            operands = (at, first) if node.op == "mul" and node.inputs[0] == at else (first, at)
            if first is None or done != _ENDS[node.op] or node.inputs[:2] != operands:
                return None
            op = "log_softmax" if node.op == "sub" else "softmax"
            return Match(node, op, (logits,), tuple(passed), {}, {"axis": axis})
        done |= {node.op} - {*_MOVES}
        passed.append(node)
    return None


def _reduced(view: View, node: Node) -> int | None:
    """Return the axis of a reduction; None if it has several, or if it drops the axis and no reshape adds it again."""
    axes = node.attrs.get("axes")
    if not isinstance(axes, Sequence) or len(axes) != 1 or not isinstance(axes[0], int):
        return None
    axis = axes[0]
    if node.attrs.get("keepdims", 1):
        return axis
    moved = view.reader(node, *_BEFORE_MOVES)
    while moved is not None and moved.op != "reshape":
        moved = view.reader(moved, *_BEFORE_MOVES)
    if moved is None or moved.shape is None or node.shape is None:
        return None
    rank = len(node.shape) + 1
    return axis if len(moved.shape) == rank and -rank <= axis < rank and moved.shape[axis] == 1 else None


def _with_shift(view: View, match: Match) -> Match:
    """Extend the match by the subtraction of the maximum before it, if there is one."""
    sub = view.producer(match.inputs[0], "sub")
    source = sub.inputs[0] if sub is not None and len(refs_of(sub)) == 2 else None
    if sub is None or source is None:
        return match
    passed: list[Node] = []
    node = view.producer(sub.inputs[1], "max", "maximum", *_MOVES)
    while node is not None and node.op != "max" and len(passed) < _LONGEST:
        if node.op == "maximum" and node.attrs.get("constant") != -math.inf:
            return match
        passed.append(node)
        node = view.producer(refs_of(node)[0], "max", "maximum", *_MOVES)
    if node is None or node.attrs.get("name") != "ReduceMax" or node.inputs[0] != source:
        return match
    inner = (*match.inner, sub, node, *passed)
    members = {item.id for item in (match.last, *inner)}
    inside = all(reader.id in members for reader in view.readers(sub))
    same = _same_axis(_reduced(view, node), match.attrs["axis"], sub.shape)
    return replace(match, inputs=(source,), inner=inner) if inside and same else match


def _same_axis(one: int | None, other: int, shape: Sequence[int | None] | None) -> bool:
    """Return whether two axes are the same. Either may be negative."""
    return one == other or (one is not None and shape is not None and abs(one - other) == len(shape))


def _with_log(view: View, match: Match) -> Match:
    """Extend the match by the logarithm after it, if there is one."""
    after = view.reader(match.last, "log") if match.op == "softmax" else None
    if after is None:
        return match
    attrs = {**match.attrs, "fused": False}
    return replace(match, last=after, op="log_softmax", inner=(*match.inner, match.last), attrs=attrs)
