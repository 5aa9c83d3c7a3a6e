"""Record one run of a model: sums of squares and ranges of all outputs, and of their gradients.

The recorder is the tap of a forward pass, and registers a hook on every output for the backward pass. It keeps numbers, and only
the few tensors that later stages need.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from gradlint.frontends.base import Tensors
from gradlint.graph import Ref
from gradlint.measurements.numbers import Range
from gradlint.probe.observers import OBSERVERS, Observer
from gradlint.probe.vjp_points import VjpPoint

_KEPT_FINALS = 32  # inputs of the last final operators (softmax and similar) that are kept: one may be the trunk output
_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8})
_LARGE = 1e15  # a sum of squares of larger values may overflow float32
_ROW = 1024  # values whose squares are summed in single precision; rows are summed in double precision


@dataclass(slots=True)
class Seen:
    """What one run showed of one node, over all its float outputs.

    Attributes:
        square: The sum of squares of the outputs, sum h^2.
        size: The number of elements.
        low: The smallest value; NaN if any value is.
        high: The largest value; NaN if any value is.
        differentiable: Whether an output requires grad.
        gradient: The sum of squares of the gradient, sum g^2; None if no gradient arrived.
        gradient_kind: "NaN" or "infinity" if the gradient is not finite, otherwise None.
        operands: The smallest and the largest value of each float operand, if the outputs are not finite.
        labels: The smallest and the largest value of each integer operand, likewise.
        empty: Whether an operand has no elements, likewise.
    """

    square: float = 0.0
    size: int = 0
    low: float = math.inf
    high: float = -math.inf
    differentiable: bool = False
    gradient: float | None = None
    gradient_kind: str | None = None
    operands: tuple[tuple[float, float], ...] = ()
    labels: tuple[tuple[int, int], ...] = ()
    empty: bool = False

    @property
    def kind(self) -> str | None:
        """The kind of non-finite outputs, "NaN" or "infinity"; None if all outputs are finite."""
        if math.isnan(self.low) or math.isnan(self.high):
            return "NaN"
        return "infinity" if self.size and (math.isinf(self.low) or math.isinf(self.high)) else None


def ranges_seen(passes: Iterable[Mapping[str, Seen]]) -> Mapping[str, Range]:
    """Return the smallest and the largest value of every node with float outputs, over all passes."""
    found: dict[str, Range] = {}
    for seen in passes:
        for node, one in seen.items():
            if one.size:
                before = found.get(node, Range(math.inf, -math.inf))
                found[node] = Range(_least(before.low, one.low), -_least(-before.high, -one.high))
    return found


def _least(one: float, other: float) -> float:
    """Return the smaller of two numbers; NaN if either is NaN."""
    return math.nan if math.isnan(one) or math.isnan(other) else min(one, other)


def real(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to a dense and real one. Complex numbers become pairs on a new last axis."""
    values = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def square_sum(tensor: torch.Tensor) -> tuple[float, float, float]:
    """Return the sum of squares, in double precision, the smallest value and the largest value.

    NaN and infinities carry over to the results. An empty tensor gives zeros.
    """
    values = real(tensor)
    if values.numel() == 0:
        return 0.0, 0.0, 0.0
    low, high = (float(value) for value in torch.aminmax(values))
    scale = max(abs(low), abs(high))
    if not math.isfinite(scale) or scale == 0.0:
        return (scale if math.isnan(scale) or scale else 0.0), low, high
    if scale > _LARGE or scale < 1.0 / _LARGE or values.dtype in {torch.float16, torch.bfloat16}:
        return float(torch.linalg.vector_norm(values.double() / scale)) ** 2 * (scale * scale), low, high
    return _sum_of_squares(values), low, high


def energy(tensor: torch.Tensor) -> float:
    """Return the sum of squares alone, in one pass over the values where these neither overflow nor vanish."""
    if tensor.layout is torch.strided and tensor.dtype in {torch.float32, torch.float64} and tensor.numel():
        square = _sum_of_squares(tensor)
        if _LARGE**-2 < square / tensor.numel() < math.inf:
            return square
    return square_sum(tensor)[0]


def _sum_of_squares(values: torch.Tensor) -> float:
    """Return the sum of squares, row by row: one sum over 25 million float32 values is 0.3 % too small."""
    if values.numel() <= _ROW or not values.is_contiguous():
        return float(torch.linalg.vector_norm(values)) ** 2
    flat = values.view(-1)
    whole = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1).double()
    return float(torch.dot(rows, rows)) + float(torch.linalg.vector_norm(flat[whole:])) ** 2


@dataclass(slots=True)
class HookSwitch:
    """Whether the hooks of a run record gradients.

    The hooks share this object instead of the recorder: a reference from the hooks to the recorder would be a cycle that keeps
    it alive.
    """

    open: bool = True


@dataclass
class Recorder:
    """A tap that records one run.

    Attributes:
        is_final: Tells by node id whether a node may be a final operator (softmax, sigmoid, loss), whose input is kept.
        is_recurrent: Tells by node id whether a node may be recurrent, so that its inputs are kept if `timed`.
        keep: References to output tensors that are kept until the backward pass.
        timed: Whether to keep what the measurement along time axes needs: `points` and `fed`.
        seen: What was recorded of every node that ran, by node id.
        sources: The tensors at which the differentiable signal starts.
        kept: The tensors of `keep`.
        finals: Node id and input of the last final operators.
        points: The point of every output in the autograd graph.
        fed: The inputs of recurrent nodes, detached.
        hooks: Whether the hooks record gradients.
        observers: The observers that see the same tensors.
    """

    is_final: Callable[[str], bool]
    is_recurrent: Callable[[str], bool]
    keep: Collection[Ref] = ()
    timed: bool = False
    seen: dict[str, Seen] = field(default_factory=dict)
    sources: list[torch.Tensor] = field(default_factory=list)
    kept: dict[Ref, torch.Tensor] = field(default_factory=dict)
    finals: deque[tuple[str, torch.Tensor]] = field(default_factory=lambda: deque(maxlen=_KEPT_FINALS))
    points: dict[Ref, VjpPoint] = field(default_factory=dict)
    fed: dict[str, Tensors] = field(default_factory=dict)
    hooks: HookSwitch = field(default_factory=HookSwitch)
    observers: Sequence[Observer] = field(default_factory=lambda: [kind() for kind in OBSERVERS])

    def __call__(self, node: str, outputs: Tensors, inputs: Tensors) -> None:
        """Record the outputs of a node; see `frontends.base.Tap`."""
        seen = self.seen.setdefault(node, Seen())
        floats = [tensor for tensor in inputs if _is_float(tensor)]
        for port, tensor in enumerate(outputs):
            if _is_float(tensor):
                self._look(node, seen, port, tensor)
        if seen.differentiable and not any(tensor.requires_grad for tensor in floats):
            self.sources.extend(tensor for tensor in outputs if _is_float(tensor) and tensor.requires_grad)
        if seen.kind is not None:
            seen.operands = tuple(square_sum(tensor.detach())[1:] for tensor in floats)
            seen.labels, seen.empty = _labels(inputs), any(_is_empty(tensor) for tensor in inputs)
        if self.is_final(node) and floats:
            self.finals.append((node, floats[0]))
        if self.timed and self.is_recurrent(node):
            self.fed[node] = tuple(tensor.detach() if _is_float(tensor) else None for tensor in inputs)
        for observer in self.observers:
            observer.forward(node, outputs, inputs)

    def restart(self) -> None:
        """Discard everything recorded; see `frontends.base.Restartable`."""
        for record in (self.seen, self.sources, self.kept, self.finals, self.points, self.fed):
            record.clear()
        for observer in self.observers:
            observer.restart()

    def _look(self, node: str, seen: Seen, port: int, tensor: torch.Tensor) -> None:
        square, low, high = square_sum(tensor.detach())
        seen.square += square
        seen.size += tensor.numel()
        # min() and max() ignore a NaN in one of the two orders of arguments
        seen.low = low if math.isnan(low) else min(seen.low, low)
        seen.high = high if math.isnan(high) else max(seen.high, high)
        if Ref(node, port) in self.keep:
            self.kept[Ref(node, port)] = tensor
        if tensor.requires_grad:
            seen.differentiable = True
            if self.timed:
                self.points[Ref(node, port)] = VjpPoint.of(tensor)
            _on_gradient(tensor, _Gradient(seen, node, port, self.observers, self.hooks))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record no gradients while the body of the context runs, which may make backward passes for other purposes."""
        self.hooks.open = False
        try:
            yield
        finally:
            self.hooks.open = True


@dataclass(slots=True)
class _Gradient:
    """The hook of one tensor. It adds the gradient to the record of the node, and keeps no tensor."""

    seen: Seen
    node: str
    port: int
    observers: Sequence[Observer]
    hooks: HookSwitch

    def __call__(self, gradient: torch.Tensor | None) -> None:
        if gradient is None or not self.hooks.open:  # a custom backward can return None
            return
        square = energy(gradient.detach())
        if not math.isfinite(square):
            square, low, high = square_sum(gradient.detach())
            self.seen.gradient_kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinity"
        self.seen.gradient = (self.seen.gradient or 0.0) + square
        for observer in self.observers:
            observer.backward(self.node, self.port, gradient.detach())


def _is_float(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex())


def _is_empty(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and not tensor.numel()


def _labels(tensors: Tensors) -> tuple[tuple[int, int], ...]:
    """Return the smallest and the largest value of each integer tensor."""
    whole = [t for t in tensors if isinstance(t, torch.Tensor) and t.dtype in _INTEGERS and t.numel()]
    return tuple((int(tensor.min()), int(tensor.max())) for tensor in whole)


def _on_gradient(tensor: torch.Tensor, hook: Callable[[torch.Tensor | None], None]) -> None:
    tensor.register_hook(hook)  # type: ignore[no-untyped-call]
