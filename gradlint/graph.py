"""The graph of a model: a directed multigraph of operator calls, and the weights that they use."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from networkx import MultiDiGraph
    from numpy.typing import NDArray

_CHUNK = 1 << 15  # elements processed at a time: as float64 they fit in the cache of one core
_HELD = 512  # chunks after which the pages of a memory map are released, so that memory does not grow with the weight
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Ref(NamedTuple):
    """A tensor: output number `port` of the node with id `node`."""

    node: str
    port: int = 0


class Source(NamedTuple):
    """A line of the user's code."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of the finite elements of a weight.

    Attributes:
        mean: Mean of the elements, or of their real parts.
        mean_square: Mean of |w|^2.
        max_abs: Largest |w|, or 0 if no element is finite.
        finite: Whether all elements are finite.
    """

    mean: float
    mean_square: float
    max_abs: float
    finite: bool

    @property
    def std(self) -> float:
        """Standard deviation without Bessel's correction, sqrt(mean_square - mean^2)."""
        return math.sqrt(max(self.mean_square - self.mean * self.mean, 0.0))


class Weight:
    """A named parameter or buffer, whose values are loaded when they are first needed.

    Args:
        name: Name of the weight in the model.
        shape: Shape of the values.
        dtype: Name of the dtype, such as "float32".
        load: Returns the values as an array of shape `shape`.
        out_axis: Axis that indexes output units: 0 for `torch.nn.Linear` and convolutions, 1 for the right operand of an ONNX
            MatMul.
        trainable: Whether training changes the weight.
        statistics: Statistics of the values if they are known, which avoids loading the values for them.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        load: Callable[[], NDArray[Any]],
        *,
        out_axis: int = 0,
        trainable: bool = True,
        statistics: Statistics | None = None,
    ) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.dtype = dtype
        self.out_axis = out_axis
        self.trainable = trainable
        self._load = load
        if statistics is not None:
            self.__dict__["statistics"] = statistics

    def __repr__(self) -> str:
        return f"Weight({self.name!r}, {self.dtype}{list(self.shape)})"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def fan_out(self) -> int:
        """Number of output units."""
        return self.shape[self.out_axis] if self.shape else 1

    @property
    def fan_in(self) -> int:
        """Number of inputs of one output unit."""
        return self.size // max(self.fan_out, 1)

    def array(self) -> NDArray[Any]:
        """Load and return the values, of shape `shape`. The caller should not keep them, because a weight may be large."""
        return self._load()

    def matrix(self) -> NDArray[Any]:
        """Load and return the values as float64 or complex128, of shape (fan_out, fan_in)."""
        values = np.moveaxis(_double(self.array()), self.out_axis, 0)
        return values.reshape(values.shape[0], -1)

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the values, accumulated in float64 chunk by chunk."""
        flat = self.array().reshape(-1)
        total = square = largest = 0.0
        count = 0
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, and squares beyond the range of float64
            for index, start in enumerate(range(0, flat.size, _CHUNK)):
                part = _double(flat[start : start + _CHUNK])
                squares = _sum_of_squares(part)
                if not math.isfinite(squares):
                    part = part[np.isfinite(part)]
                    squares = float(np.square(np.abs(part)).sum())
                total += float(part.sum().real)
                count += part.size
                square += squares
                largest = max(largest, _largest(part))
                if index % _HELD == _HELD - 1:
                    _release(flat)
        seen = max(count, 1)
        return Statistics(total / seen, square / seen, largest, count == flat.size)

    @cached_property
    def vector(self) -> NDArray[Any]:
        """Values as float64 or complex128, flattened. They stay in memory, so this is for small weights: norms and biases."""
        return _double(self.array()).reshape(-1).copy()

    @cached_property
    def spectral_norm(self) -> float:
        """Largest singular value of `matrix()`. For a convolution it is not that of the operator, which acts on all positions."""
        return float(np.linalg.norm(self.matrix(), 2))


def _release(array: NDArray[Any]) -> None:
    """Release the pages of a memory map. The next access reads them again."""
    pages = getattr(array, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def _sum_of_squares(values: NDArray[Any]) -> float:
    """Return the sum of |v|^2. Unlike a BLAS product, einsum starts no threads, which would cost more than the sum."""
    if np.iscomplexobj(values):
        return _sum_of_squares(values.real) + _sum_of_squares(values.imag)
    return float(np.einsum("i,i->", values, values))


def _largest(values: NDArray[Any]) -> float:
    """Return the largest |v|, or 0 for an empty array. Unlike abs, the maximum and the minimum allocate no array."""
    if np.iscomplexobj(values):
        return float(np.abs(values).max(initial=0.0))
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _double(values: NDArray[Any]) -> NDArray[Any]:
    """Return values as float64, or as complex128 if they are complex."""
    return np.asarray(values, dtype=np.complex128 if np.iscomplexobj(values) else np.float64)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call.

    Attributes:
        id: Unique id.
        op: Canonical name of the operator; see `gradlint.ops`.
        inputs: Input tensors in the order of the arguments. None stands for a constant, a weight or an omitted argument.
        weights: Weights by role, such as "weight" and "bias".
        attrs: Attributes of the operator. "constant" is the scalar operand of a binary operator that has one.
        shape: Shape of output 0, with None for an unknown dimension. None if it is unknown.
        dtype: Name of the dtype of output 0, such as "float32". None if it is unknown.
        module: Path of the module that makes the call, or "".
        module_class: Class name of that module, or "".
        call: Index among the calls of the same operator in that module.
        source: Line of the user's code that makes the call.
        definition: Line of the user's code that creates the module.
        notes: Provenance, such as "batch-norm-folded" or "no-grad".
    """

    id: str
    op: str
    inputs: tuple[Ref | None, ...] = ()
    weights: Mapping[str, Weight] = field(default_factory=lambda: _EMPTY)
    attrs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None
    module: str = ""
    module_class: str = ""
    call: int = 0
    source: Source | None = None
    definition: Source | None = None
    notes: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """Name of the node for messages: the path of its module, or its id if it has none."""
        return self.module or self.id

    @property
    def called(self) -> str:
        """Name of the operator in the front end without its namespace, or `op` if the front end gives no other name."""
        return str(self.attrs.get("name", self.op)).rpartition(":")[2]

    @property
    def is_float(self) -> bool:
        """Whether the dtype of output 0 can carry a gradient. An unknown dtype counts as one that can."""
        return self.dtype is None or self.dtype.startswith(("float", "bfloat", "double", "complex"))


class Graph:
    """A directed multigraph of nodes in execution order, which is a topological order.

    Args:
        nodes: Nodes in execution order.
        outputs: Tensors that the model returns.
        mode: "train" or "eval".

    Raises:
        ValueError: Two nodes share an id, a node reads a later node, or an output names an unknown node.
    """

    def __init__(self, nodes: Iterable[Node], outputs: Iterable[Ref], *, mode: str = "train") -> None:
        self.mode = mode
        self.outputs = tuple(outputs)
        self._nodes: dict[str, Node] = {}
        self._readers: dict[str, dict[str, None]] = {}  # readers by node, in execution order
        for node in nodes:
            if node.id in self._nodes:
                msg = f"two nodes are called {node.id!r}"
                raise ValueError(msg)
            for ref in node.inputs:
                if ref is None:
                    continue
                if ref.node not in self._nodes:
                    msg = f"{node.id!r} uses {ref.node!r} before it exists"
                    raise ValueError(msg)
                self._readers[ref.node][node.id] = None
            self._nodes[node.id] = node
            self._readers[node.id] = {}
        missing = [ref.node for ref in self.outputs if ref.node not in self._nodes]
        if missing:
            msg = f"outputs name unknown nodes: {missing}"
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def __getitem__(self, node_id: str) -> Node:
        return self._nodes[node_id]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Ids of the nodes whose operator is "input", in execution order."""
        return tuple(node.id for node in self if node.op == "input")

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Index of each node in execution order."""
        return {node_id: index for index, node_id in enumerate(self._nodes)}

    def parents(self, node_id: str) -> list[Node]:
        """Return the nodes whose outputs a node reads, in the order of its inputs, with repetition."""
        return [self._nodes[ref.node] for ref in self._nodes[node_id].inputs if ref is not None]

    def children(self, node_id: str) -> list[Node]:
        """Return the nodes that read an output of a node, each once, in execution order."""
        return [self._nodes[child] for child in self._readers[node_id]]

    def descendants(self, node_id: str) -> list[Node]:
        """Return the nodes that depend on a node, without the node itself, in execution order."""
        seen, stack = {node_id}, [node_id]
        while stack:
            fresh = self._readers[stack.pop()].keys() - seen
            seen |= fresh
            stack.extend(fresh)
        return [self._nodes[found] for found in sorted(seen - {node_id}, key=self.position.__getitem__)]

    @cached_property
    def nx(self) -> MultiDiGraph[str]:
        """The graph in networkx. Each edge has two attributes: the index `slot` of the input, and the `port` that it reads."""
        from networkx import MultiDiGraph  # noqa: PLC0415 - slow to import, and no check needs it

        found: MultiDiGraph[str] = MultiDiGraph()
        for node in self:
            found.add_node(node.id)
            for slot, ref in enumerate(node.inputs):
                if ref is not None:
                    found.add_edge(ref.node, node.id, slot=slot, port=ref.port)
        return found

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Weights of all nodes, by name."""
        return {weight.name: weight for node in self for weight in node.weights.values()}
