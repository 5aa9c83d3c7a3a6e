"""One run of a model under observation: levels on the way forward, gradient norms on the way back."""

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

_KEPT_FINALS = 32  # inputs of the last softmax-like operators, one of which may turn out to be the trunk output
_LARGE = 1e15  # squares beyond it overflow float32


@dataclass(slots=True)
class Seen:
    """What one run showed of one node, over all its float outputs."""

    square: float = 0.0  # sum of h^2
    size: int = 0
    low: float = math.inf
    high: float = -math.inf
    differentiable: bool = False
    gradient: float | None = None  # sum of g^2; None where no gradient arrived
    gradient_kind: str | None = None  # "NaN" or "infinity"
    operands: tuple[tuple[float, float], ...] = ()

    @property
    def kind(self) -> str | None:
        """What is wrong with the values, "NaN" or "infinity"; None where they are finite."""
        if math.isnan(self.low) or math.isnan(self.high):
            return "NaN"
        return "infinity" if self.size and (math.isinf(self.low) or math.isinf(self.high)) else None


def ranges_seen(passes: Iterable[Mapping[str, Seen]]) -> Mapping[str, Range]:
    """The range of every node that ran and has float outputs, over all passes."""
    found: dict[str, Range] = {}
    for seen in passes:
        for node, one in seen.items():
            if one.size:
                before = found.get(node, Range(math.inf, -math.inf))
                found[node] = Range(_least(before.low, one.low), -_least(-before.high, -one.high))
    return found


def _least(one: float, other: float) -> float:
    """The smaller of two, NaN where either is."""
    return math.nan if math.isnan(one) or math.isnan(other) else min(one, other)


def real(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor of real numbers, complex ones as pairs."""
    values = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def square_sum(tensor: torch.Tensor) -> tuple[float, float, float]:
    """Sum of squares in float64, smallest and largest value; NaN and infinities come through."""
    values = real(tensor)
    if values.numel() == 0:
        return 0.0, 0.0, 0.0
    low, high = (float(value) for value in torch.aminmax(values))
    scale = max(abs(low), abs(high))
    if not math.isfinite(scale) or scale == 0.0:
        return (scale if math.isnan(scale) or scale else 0.0), low, high
    if scale > _LARGE or scale < 1.0 / _LARGE or values.dtype in {torch.float16, torch.bfloat16}:
        return float(torch.linalg.vector_norm(values.double() / scale)) ** 2 * (scale * scale), low, high
    return float(torch.linalg.vector_norm(values)) ** 2, low, high


@dataclass(slots=True)
class HookSwitch:
    """Whether the hooks of a run listen. They share it, for a recorder that its own hooks held would never be let go."""

    open: bool = True


@dataclass
class Recorder:
    """A tap. `keep` names tensors to hold until the backward pass, `is_recurrent` the nodes whose inputs are held.

    After the run, `seen` has every node that ran, and `sources` the tensors where differentiable signal starts. With `timed`,
    `points` has the place of every output in the autograd graph, and `fed` what recurrent nodes read.
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
        """See `frontends.base.Tap`."""
        seen = self.seen.setdefault(node, Seen())
        floats = [tensor for tensor in inputs if _is_float(tensor)]
        for port, tensor in enumerate(outputs):
            if _is_float(tensor):
                self._look(node, seen, port, tensor)
        if seen.differentiable and not any(tensor.requires_grad for tensor in floats):
            self.sources.extend(tensor for tensor in outputs if _is_float(tensor) and tensor.requires_grad)
        if seen.kind is not None:
            seen.operands = tuple(square_sum(tensor.detach())[1:] for tensor in floats)
        if self.is_final(node) and floats:
            self.finals.append((node, floats[0]))
        if self.timed and self.is_recurrent(node):
            self.fed[node] = tuple(tensor.detach() if _is_float(tensor) else None for tensor in inputs)
        for observer in self.observers:
            observer.forward(node, outputs, inputs)

    def restart(self) -> None:
        """See `frontends.base.Restartable`."""
        for record in (self.seen, self.sources, self.kept, self.finals, self.points, self.fed):
            record.clear()
        for observer in self.observers:
            observer.restart()

    def _look(self, node: str, seen: Seen, port: int, tensor: torch.Tensor) -> None:
        square, low, high = square_sum(tensor.detach())
        seen.square += square
        seen.size += tensor.numel()
        # min() and max() drop a NaN in one of the two orders
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
    def aside(self) -> Iterator[None]:
        """A context for backward passes of another purpose, of which nothing is recorded."""
        self.hooks.open = False
        try:
            yield
        finally:
            self.hooks.open = True


@dataclass(slots=True)
class _Gradient:
    """The hook on one tensor: adds its gradient to what was seen of its node, and keeps no tensor."""

    seen: Seen
    node: str
    port: int
    observers: Sequence[Observer]
    hooks: HookSwitch

    def __call__(self, gradient: torch.Tensor | None) -> None:
        if gradient is None or not self.hooks.open:  # a custom backward pass that returns None
            return
        square, low, high = square_sum(gradient.detach())
        if not math.isfinite(square):
            self.seen.gradient_kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinity"
        self.seen.gradient = (self.seen.gradient or 0.0) + square
        for observer in self.observers:
            observer.backward(self.node, self.port, gradient.detach())


def _is_float(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex())


def _on_gradient(tensor: torch.Tensor, hook: Callable[[torch.Tensor | None], None]) -> None:
    tensor.register_hook(hook)  # type: ignore[no-untyped-call]
