"""Upper bounds for ranks and for the lengths of shape vectors, so that onnx never infers a shape of absurd rank.

onnx allocates an object for every axis that it infers, and a few nodes can produce any number of axes: a Gather whose two
operands have rank r has a result of rank 2r - 1, and a ConstantOfShape whose operand has n elements has a result of rank n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import onnx

from gradlint.frontends.onnx.limits import Limits
from gradlint.frontends.onnx.scope import Scope
from gradlint.frontends.onnx.walk import subgraphs

_UNKNOWN = math.inf
_FROM_VECTOR = {
    "ConstantOfShape": 0,
    "Reshape": 1,
    "Expand": 1,
    "AffineGrid": 1,
    "CenterCropPad": 1,
}  # shape slot
_NEW_SHAPE = {"ConstantOfShape", "Reshape", "AffineGrid"}  # the shape operand alone determines the rank
_KEEPERS = (
    "Abs Add Cast CastLike Ceil Div Equal Floor Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg Not Pow "
    "Reshape Round ScatterElements ScatterND Slice Split Sqrt Squeeze Sub Unsqueeze Where"
)
_SAME_LENGTH = frozenset(_KEEPERS.split())
_ONE_MORE = ("OneHot", "ConcatFromSequence", "Loop", "Scan", "SequenceMap", "SplitToSequence", "STFT")


class Bound(NamedTuple):
    """Upper bounds for the number of axes of a tensor and, if it is a vector, of its elements.

    `exact` says that `length` is the number of elements, not only a bound.
    """

    rank: float = 0
    length: float = _UNKNOWN
    exact: bool = False


Bounds = Scope[Bound]
_NOTHING = Bound()


def largest_rank(graph: onnx.GraphProto) -> float:
    """Return an upper bound for the rank that onnx would infer for any tensor of a graph and its subgraphs."""
    return _walk(graph, Scope())


def declared_rank(graph: onnx.GraphProto) -> int:
    """Return the largest rank that the graph itself declares for a tensor."""
    return max((_rank(value.type) for value in (*graph.input, *graph.output, *graph.value_info)), default=0)


def too_many_axes(graph: onnx.GraphProto, limits: Limits) -> str | None:
    """Return the reason why shapes cannot be inferred safely; None if they can."""
    rank = max(largest_rank(graph), declared_rank(graph))
    if rank <= limits.rank:
        return None
    return f"a tensor could have more than {limits.rank} axes"


def _rank(kind: onnx.TypeProto) -> int:
    """Return the rank that a type declares, also inside a sequence, a map or an optional."""
    while (which := kind.WhichOneof("value")) in {"sequence_type", "optional_type", "map_type"}:
        kind = kind.map_type.value_type if which == "map_type" else getattr(kind, str(which)).elem_type
    return len(getattr(kind, which).shape.dim) if which in {"tensor_type", "sparse_tensor_type"} else 0


def _walk(graph: onnx.GraphProto, bounds: Bounds) -> float:
    for value in (*graph.value_info, *graph.input):
        dims = list(value.type.tensor_type.shape.dim)
        length = dims[0].dim_value if len(dims) == 1 and dims[0].HasField("dim_value") else _UNKNOWN
        bounds[value.name] = Bound(_rank(value.type), length)
    for tensor in graph.initializer:
        bounds[tensor.name] = _of_tensor(tensor)
    largest = max((bound.rank for bound in bounds.values()), default=0)
    for node in graph.node:
        inner = [_walk(sub, bounds.new_child()) for sub in subgraphs(node)]
        made = _output_bound(node, [bounds.get(name, _NOTHING) for name in node.input], max(inner, default=0))
        largest = max(largest, made.rank)
        for name in node.output:
            stated = bounds.get(name, _NOTHING)
            bounds[name] = Bound(max(made.rank, stated.rank), min(made.length, stated.length), made.exact)
    return largest


def _of_tensor(tensor: onnx.TensorProto) -> Bound:
    length = tensor.dims[0] if len(tensor.dims) == 1 else _UNKNOWN if tensor.dims else 1
    return Bound(len(tensor.dims), length, exact=len(tensor.dims) < 2)


def _output_bound(node: onnx.NodeProto, given: list[Bound], inner: float) -> Bound:
    """Return a bound for every output of a node. `given` are those of its inputs, `inner` is the largest rank in subgraphs."""
    ranks, lengths = [bound.rank for bound in given], [bound.length for bound in given]
    rank = max([inner, *ranks, *_listed(node)], default=0)
    kind = node.op_type
    if kind == "Constant":
        return next((_of_tensor(a.t) for a in node.attribute if a.HasField("t")), Bound(1, rank, exact=True))
    if kind in _FROM_VECTOR and len(given) > _FROM_VECTOR[kind]:
        length = lengths[_FROM_VECTOR[kind]]
        known = length < _UNKNOWN or kind == "ConstantOfShape"  # the others only if onnx knows the vector
        rank = max(0 if kind in _NEW_SHAPE else rank, length if known else 0)
    elif kind in {"Gather", "GatherND"}:
        rank = max(0, sum(ranks) - 1)
    elif kind == "Unsqueeze":
        axes = [bound.length for bound in given[1:2] if bound.exact]  # onnx infers nothing from others
        rank = (ranks or [0])[0] + max([*axes, *_listed(node)], default=0)
    elif kind == "Squeeze" or (kind.startswith("Reduce") and any(a.name == "keepdims" and not a.i for a in node.attribute)):
        fewer = max([*(bound.length for bound in given[1:2] if bound.exact), *_listed(node)], default=0)
        rank = max(0, (ranks or [0])[0] - fewer)
    elif kind in _ONE_MORE:
        rank += 1
    elif kind == "Einsum":
        rank = max([rank, *(len(a.s) for a in node.attribute if a.name == "equation")])
    return Bound(rank, _length(node, given))


def _length(node: onnx.NodeProto, given: list[Bound]) -> float:
    """Return an upper bound for the number of elements of the result, if it is a vector."""
    kind, lengths = node.op_type, [bound.length for bound in given]
    if kind == "Shape":
        return max(bound.rank for bound in given) if given else 0
    if kind == "Size":
        return 1
    if kind == "Concat":
        return sum(lengths)
    if kind == "Gather":
        return max(lengths[1:2], default=_UNKNOWN)
    if kind in _SAME_LENGTH:
        return max(lengths, default=_UNKNOWN)
    return _UNKNOWN


def _listed(node: onnx.NodeProto) -> Iterable[int]:
    """Return the lengths of the integer lists among the attributes."""
    return () if node.domain == "ai.onnx.ml" else (len(a.ints) for a in node.attribute if a.ints)  # those describe trees
