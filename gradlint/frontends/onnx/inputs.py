"""Inputs of an ONNX model: what the file declares, and guesses for sizes that it leaves open."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx

from gradlint.errors import InputError
from gradlint.frontends.inputs import ARRAYS, DTYPES, InputSpec
from gradlint.frontends.onnx.names import input_id
from gradlint.frontends.onnx.shapes import tensor_type
from gradlint.graph import Graph, Node
from gradlint.ops import Kind, operator

_BATCH = 8
_RANKS = {Kind.LINEAR: 2, Kind.RNN: 3, Kind.CONV: 0}  # rank of the input of a layer; 0: the same as that of the weight
_PIXELS = 64
_STEPS = 16
_RATIO = 0.5  # of a dropout: what the standard says where none is given
_CHANNELS = 3
_SAMPLE_RATE = 16000
_LARGEST = 1 << 30  # elements
_ELEMENTS = 1 << 18
"""The most elements that all inputs of a batch may have together. One pass costs 1 to 50 microseconds per element, measured on
one thread with 25 models (audio, images, text), so that three seeds take at most 40 seconds."""
_WORK = 1 << 32
"""The most products of a weight and a position, over the batch. One pass makes three of each, at 10^9 to 10^10 a second, so that
three seeds take at most 40 seconds. A language model of 10^8 weights is fed two sequences of 16 tokens instead of eight."""
_LARGEST_BATCH, _TRIED = 64, 3  # the largest fixed size that may be a batch, and how many of them are tried
_PASSED_THROUGH = {Kind.SHAPE, Kind.CONCAT, Kind.ADD, Kind.MUL, Kind.NORM}  # operators between an input and its first layer
_LENGTHS_SLOT, _STATE_SLOTS = 4, (5, 6)  # sequence_lens, initial_h and initial_c of RNN, GRU and LSTM
_STATE_RANK = 3
_STATE_NAME = re.compile(r"(h|c|hn|cn|h_?0|c_?0|h_?in|c_?in|(rnn_|lstm_|gru_)?(state|hidden|cell)s?)", re.IGNORECASE)
_RATE_NAME = re.compile(r"sr|(sample|sampling)_?rate", re.IGNORECASE)
_LENGTH_NAME = re.compile(r"(.*_)?(lens?|lengths?|seq_?lens?)", re.IGNORECASE)
_NO_NAME = re.compile(r"none|null|nan|\?|-1|unk|unknown|dyn|dynamic|any", re.IGNORECASE)  # what exporters write for any size
_MASK_NAME = re.compile(r"(.*_)?mask", re.IGNORECASE)
_PADDING_NAME = re.compile(r"pad", re.IGNORECASE)
_COLOR_CHANNELS = (1, 3, 4)
_STEPS_NAME = re.compile(r"seq|time|len|frame|step|token", re.IGNORECASE)


def infer_inputs(
    values: Sequence[onnx.ValueInfoProto],
    graph: Graph,
    given: Mapping[str, InputSpec] = MappingProxyType({}),
    batch: int | None = None,
) -> tuple[InputSpec, ...]:
    """Infer the specification of each graph input.

    A dimension that the file leaves open gets its size from the layer that reads it, or from its position:

    - An open first axis is the batch. Its size is `batch`; else that of the given inputs; else that of a recurrent state whose
      sizes are fixed; else 8, or fewer if the inputs are large.
    - Image sides are 64 pixels, and sequences have 16 steps.
    - Integers are less than the size of the embedding that they index.
    - Lengths are the full lengths, masks mask nothing, recurrent states are zero, and text is a fixed word.

    Inputs in `given` are not inferred: their specification is what the file declares. Raises InputError for an input that is
    not a tensor of numbers or text, or whose rank is unknown.
    """
    sizes = _Sizes(batch or _BATCH)
    for value in values:
        if value.name in given:
            _GraphInput(value, graph, sizes).learn(given[value.name].shape)
    holder = None if batch or sizes.given else _state_of_fixed_batch(graph)
    if holder is not None:
        sizes.batch = holder[1]
    specs = _inferred(values, graph, given, sizes)
    if not (batch or sizes.given or holder or graph.mode == "train"):  # batch statistics need the full batch
        most = min(_affordable(specs, sizes), _workable(graph, specs, sizes))
        return specs if most == sizes.batch else infer_inputs(values, graph, given, most)
    if holder is None:
        return specs
    note = f"fed a batch of {holder[1]}, for which the recurrent state {holder[0]!r} is made"
    return tuple(replace(spec, note=note) if spec.name in sizes.batched else spec for spec in specs)


def _inferred(
    values: Sequence[onnx.ValueInfoProto], graph: Graph, given: Mapping[str, InputSpec], sizes: _Sizes
) -> tuple[InputSpec, ...]:
    return tuple(
        _declared(value, given[value.name]) if value.name in given else _GraphInput(value, graph, sizes).spec()
        for value in values
    )


def _declared(value: onnx.ValueInfoProto, given: InputSpec) -> InputSpec:
    """Return what the file declares of an input that the user gives, with 1 for open sizes; `given` if it declares nothing."""
    kind = tensor_type(value.type)
    if kind is None or kind[0] not in ARRAYS:
        return replace(given, name=value.name)
    return InputSpec(value.name, kind[0], tuple(size or 1 for size in kind[1] or ()))


def other_batches(values: Sequence[onnx.ValueInfoProto]) -> list[int]:
    """Return the batch sizes to try if the model does not run on the inferred one: 1, then the fixed sizes of leading axes.

    An exporter traces the model with an example, and some operators may then work for the example's batch size only.
    """
    dims = (dim.dim_value for value in values for dim in value.type.tensor_type.shape.dim[:2])
    return [1, *sorted({int(size) for size in dims if 1 < size <= _LARGEST_BATCH})[:_TRIED]]


def _state_of_fixed_batch(graph: Graph) -> tuple[str, int] | None:
    """Return the first graph input that is the state of a recurrent layer and has a fixed batch size, and this size."""
    for node in graph:
        if operator(node.op).kind is Kind.RNN:
            for ref in node.inputs[_STATE_SLOTS[0] :]:
                state = graph[ref.node] if ref is not None else None
                if state is not None and state.op == "input" and state.shape is not None and len(state.shape) == _STATE_RANK:
                    size = state.shape[0 if node.attrs.get("batch_first") else 1]
                    if size is not None and size > 0:
                        return state.id.removeprefix(input_id("")), size
    return None


def _affordable(specs: Sequence[InputSpec], sizes: _Sizes) -> int:
    """Return the largest batch size, at most the inferred one, so that the batched inputs have at most `_ELEMENTS` elements."""
    elements = sum(math.prod(spec.shape) for spec in specs if spec.name in sizes.batched)
    return min(sizes.batch, max(1, _ELEMENTS * sizes.batch // max(elements, 1)))


def _workable(graph: Graph, specs: Sequence[InputSpec], sizes: _Sizes) -> int:
    """Return the largest batch size, at most the inferred one and at least 2, whose products with weights are at most `_WORK`."""
    layers = (node for node in graph if operator(node.op).kind is Kind.LINEAR)
    weights = sum(weight.size for node in layers for role, weight in node.weights.items() if role.endswith("weight"))
    batched = [spec.shape for spec in specs if spec.name in sizes.batched]
    rows = max((shape[1] for shape in batched if len(shape) in {2, 3} and shape[1] <= _LARGEST_BATCH), default=1)
    return max(min(sizes.batch, _WORK // max(weights * rows, 1)), min(sizes.batch, 2))


@dataclass
class _Sizes:
    """What the inputs of a model have in common: the batch size, and the sizes of named dimensions found so far.

    `batched` are the names of the inputs that have a batch axis. `given` says that the user gave the batch size by an input.
    """

    batch: int
    named: dict[str, int] = field(default_factory=dict)
    batched: set[str] = field(default_factory=set)
    given: bool = False


class _GraphInput:
    """Infers one graph input. `sizes` are shared with the other inputs."""

    def __init__(self, value: onnx.ValueInfoProto, graph: Graph, sizes: _Sizes) -> None:
        self._value = value
        self._name = value.name
        self._sizes = sizes
        self._graph = graph
        self._readers = list(_readers(graph, input_id(value.name)))

    def learn(self, shape: tuple[int, ...]) -> None:
        """Take the batch size and the sizes of named dimensions from the shape that the user gives for this input."""
        dims = self._value.type.tensor_type.shape.dim
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=False)):
            if name := _name_of(dim):
                self._sizes.named.setdefault(name, size)
            if dim.dim_value <= 0 and not self._sizes.given and self._is_batch(axis, len(dims)):
                self._sizes.batch, self._sizes.given = size, True

    def spec(self) -> InputSpec:
        """Return the inferred specification. Raises InputError like `infer_inputs`."""
        kind = tensor_type(self._value.type)
        if kind is None or kind[0] not in ARRAYS:
            raise InputError(
                f"input {self._name!r} holds {kind[0] if kind else 'no tensor'}, which cannot be drawn",
                hint="lint the part of the model behind it, or leave the probe out with --no-probe",
            )
        dtype, dims = kind[0], kind[1] if kind[1] is not None else self._unranked()
        if dims is None:
            known = dtype if dtype in DTYPES else "float32"
            example = (
                "int64[1,16]<1000" if dtype.startswith("int") else "string[1]" if dtype == "string" else f"{known}[1,3,64,64]"
            )
            raise InputError(
                f"input {self._name!r} has an unknown number of dimensions", hint=f"give it with --input {self._name}={example}"
            )
        shape = tuple(self._size(axis, len(dims)) for axis in range(len(dims)))
        if math.prod(shape) > _LARGEST:
            raise InputError(
                f"input {self._name!r} of shape {list(shape)} is too large to be drawn",
                hint=f"give a smaller one with --input {self._name}={dtype}[{','.join('1' for _ in shape)}]",
            )
        if dtype.startswith(("int", "uint")):
            if math.prod(shape) == 1 and _RATE_NAME.fullmatch(self._name) and np.iinfo(dtype).max >= _SAMPLE_RATE:
                return InputSpec(self._name, dtype, shape, value=np.full(shape, _SAMPLE_RATE, dtype))
            below = None if self._is_mask else self._below(dtype)
            number = None if below is not None else self._steps_given if self._is_length else 1 if self._is_mask else None
            value = None if number is None else np.full(shape, min(number, np.iinfo(dtype).max), dtype)
            return InputSpec(self._name, dtype, shape, 256 if dtype == "uint8" and below is None else below or 2, value=value)
        if dtype == "string":
            return InputSpec(self._name, dtype, shape)
        if dtype == "bool":
            value = np.full(shape, not _PADDING_NAME.search(self._name)) if self._is_mask else None
            return InputSpec(self._name, dtype, shape, value=value)
        if self._is_ratio and math.prod(shape) == 1:
            return InputSpec(self._name, dtype, shape, value=np.full(shape, _RATIO, "float32" if dtype == "bfloat16" else dtype))
        zeros = np.zeros(shape, "float32" if dtype == "bfloat16" else dtype)
        return InputSpec(self._name, dtype, shape, value=zeros if self._is_state else None)

    def _unranked(self) -> tuple[None, ...] | None:
        """Return as many open dimensions as the first layer requires; None if no layer tells."""
        for node, slot, moved in self._readers:
            weight = node.weights.get("weight")
            if weight is not None and slot == 0 and not moved and (kind := operator(node.op).kind) in _RANKS:
                return (None,) * (_RANKS[kind] or len(weight.shape))
        return None

    @property
    def _is_length(self) -> bool:
        """Whether the input holds the lengths of the sequences in the batch."""
        fed = any(slot == _LENGTHS_SLOT and operator(node.op).kind is Kind.RNN for node, slot, _ in self._readers)
        return fed or _LENGTH_NAME.fullmatch(self._name) is not None

    @property
    def _is_ratio(self) -> bool:
        """Whether the input is the share of elements that a dropout drops."""
        return any(node.op == "dropout" and slot == 1 for node, slot, _ in self._readers)

    @property
    def _is_mask(self) -> bool:
        return _MASK_NAME.fullmatch(self._name) is not None

    @property
    def _steps_given(self) -> int:
        """The length of the sequences that the file declares, or 16 if it declares none."""
        for node, slot, _ in self._readers:
            data = node.inputs[0] if slot == _LENGTHS_SLOT else None
            shape = self._graph[data.node].shape if data is not None else None
            if shape is not None and len(shape) == 3:
                return shape[int(node.attrs.get("time_axis", 0))] or _STEPS
        return _STEPS

    @property
    def _is_state(self) -> bool:
        fed = any(slot in _STATE_SLOTS and operator(node.op).kind is Kind.RNN for node, slot, _ in self._readers)
        return fed or _STATE_NAME.fullmatch(self._name) is not None

    @property
    def _time_axis(self) -> int | None:
        """The time axis if a recurrent layer reads the input directly, otherwise None."""
        layers = (node for node, slot, moved in self._readers if slot == 0 and not moved and operator(node.op).kind is Kind.RNN)
        return next((int(node.attrs["time_axis"]) for node in layers if "time_axis" in node.attrs), None)

    def _dim(self, axis: int) -> onnx.TensorShapeProto.Dimension:
        dims = self._value.type.tensor_type.shape.dim
        return dims[axis] if dims else onnx.TensorShapeProto.Dimension()

    def _size(self, axis: int, rank: int) -> int:
        dim = self._dim(axis)
        if dim.dim_value > 0:
            return int(dim.dim_value)
        if self._is_batch(axis, rank):
            self._sizes.batched.add(self._name)
        name = _name_of(dim)
        known = self._sizes.named.get(name)
        if known is not None and not self._sizes.given and axis and not self._is_batch(axis, rank):
            known = self._features(axis, rank) or known  # what a layer requires counts, whatever the axis is called
        size = known or self._guess(axis, rank)
        if name:
            self._sizes.named[name] = size
        return size

    def _is_batch(self, axis: int, rank: int) -> bool:
        """Return whether an open axis is a batch axis."""
        name = _name_of(self._dim(axis))
        time = self._time_axis
        if _STEPS_NAME.search(name):
            return False
        if rank == 3 and time is not None and axis < 2:
            return axis != time
        return axis == 0 or self._is_state or "batch" in name.lower()

    def _guess(self, axis: int, rank: int) -> int:
        dims = self._value.type.tensor_type.shape.dim
        if self._is_batch(axis, rank):
            return self._sizes.batch
        if axis == self._time_axis and rank == 3:
            return _STEPS
        if _STEPS_NAME.search(_name_of(self._dim(axis))):
            return self._steps(axis, rank)
        if rank == 4 and dims and dims[3].dim_value in _COLOR_CHANNELS and not dims[1].dim_value:  # channels last
            return _PIXELS
        return self._features(axis, rank) or (
            _CHANNELS if rank >= 4 and axis == 1 else _PIXELS if rank == 4 else self._steps(axis, rank)
        )

    def _features(self, axis: int, rank: int) -> int | None:
        """Return the number of channels or features that the first layer requires in this axis; None if it does not matter."""
        for node, slot, moved in self._readers:
            weight = node.weights.get("weight")
            kind = operator(node.op).kind
            own = node.inputs[slot]
            known = self._graph[own.node].shape if own is not None else None
            if known is not None and len(known) != rank:  # an operator between them changed the axes
                continue
            if known is not None and not moved and (size := self._beside(node, slot, axis - rank)) is not None:
                return size
            if weight is None or slot != 0:
                continue
            if kind is Kind.CONV and len(weight.shape) == rank and axis == 1:
                return weight.shape[0] if node.op == "conv_transpose" else weight.shape[1] * int(node.attrs.get("group", 1))
            if kind in {Kind.LINEAR, Kind.RNN} and axis == rank - 1 and not moved:
                return weight.fan_in
        return None

    def _beside(self, node: Node, slot: int, axis: int) -> int | None:
        """Return the size in an axis, counted from the last one, that the other operand of a node states; None if it states none.

        Of a sum or product that is the same axis, of a product of matrices the one that is summed.
        """
        kind = operator(node.op).kind
        others = [ref for index, ref in enumerate(node.inputs[:2]) if index != slot and ref is not None]
        shapes = [self._graph[ref.node].shape or () for ref in others if ref.node != input_id(self._name)]
        if kind is Kind.MATMUL and slot < 2 and axis == (-1, -2)[slot]:
            axis = (-2, -1)[slot]
        elif kind in {Kind.ADD, Kind.MUL}:
            shapes += [weight.shape for weight in node.weights.values()]
        else:
            return None
        sizes = (shape[axis] for shape in shapes if len(shape) >= -axis)
        return next((size for size in sizes if size is not None and size > 1), None)

    def _steps(self, axis: int, rank: int) -> int:
        """Return the length of a sequence axis: 16, and at least two kernels of the first convolution along the last axis."""
        if axis != rank - 1:
            return _STEPS
        kernels = [max(node.weights["weight"].shape[2:], default=1) for node, _, _ in self._readers if _slides(node)]
        return max(_STEPS, 2 * kernels[0] if kernels else 0)

    def _below(self, dtype: str) -> int | None:
        """Return the bound of an integer input: the size of the smallest table that it indexes; None if it indexes none."""
        tables = [node.weights["weight"].shape[0] for node, slot, _ in self._readers if node.op == "embedding" and slot == 1]
        classes = [int(node.attrs["classes"]) for node, _, _ in self._readers if "classes" in node.attrs]
        return max(1, min([*tables, *classes, int(np.iinfo(dtype).max)])) if tables or classes else None


def _name_of(dim: onnx.TensorShapeProto.Dimension) -> str:
    """Return the name of an open axis; "" where it has none, or one that exporters give to all of them."""
    name = str(dim.dim_param)
    return "" if _NO_NAME.fullmatch(name) else name


def _slides(node: Node) -> bool:
    return node.op == "conv" and "weight" in node.weights


def _readers(graph: Graph, start: str) -> Iterator[tuple[Node, int, bool]]:
    """Yield the nodes that read an input, directly or through reshapes, casts and sums, the nearest first.

    Each comes with the slot in which it reads the input, and whether a reshape may have moved the axes in between.
    """
    queue, seen = deque([(start, False)]), {start}
    while queue:
        node_id, moved = queue.popleft()
        for child in graph.children(node_id):
            for slot, ref in enumerate(child.inputs):
                if ref is not None and ref.node == node_id:
                    yield child, slot, moved
            passes = operator(child.op).kind in _PASSED_THROUGH or child.op == "control"
            if passes and child.id not in seen:
                seen.add(child.id)
                queue.append((child.id, moved or child.op == "reshape"))
