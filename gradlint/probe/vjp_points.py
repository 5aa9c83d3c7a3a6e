"""Places in the autograd graph of one run, from which further cotangents can be pulled back before it is let go."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph as autograd_graph

from gradlint.errors import ForwardError
from gradlint.frontends.user_code import described

_SMALL = 1e-40  # a denormal
_EDGES = "GradientEdge" in str(inspect.signature(torch.autograd.grad).parameters["outputs"].annotation)


@dataclass(frozen=True, slots=True)
class VjpPoint:
    """One tensor's place in the autograd graph; the tensor itself is not kept, where torch can start from an edge."""

    edge: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> VjpPoint:
        """The point of a tensor that requires grad."""
        edge = autograd_graph.get_gradient_edge(tensor) if _EDGES else tensor
        return cls(edge, tuple(tensor.shape), tensor.dtype, tensor.device)

    def zeros(self) -> Tensor:
        """A cotangent of nothing."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        """A cotangent of independent N(0, 1), or one of another shape for a part of it."""
        drawn = torch.float64 if self.dtype in {torch.float64, torch.complex128} else torch.float32
        return torch.randn(shape or self.shape, generator=generator, dtype=drawn).to(self.device, self.dtype)


def pull(starts: Sequence[tuple[VjpPoint, Tensor]], ends: Sequence[VjpPoint]) -> list[Tensor | None]:
    """The gradients at `ends` for cotangents at `starts`; None where none arrives. The graph stays.

    Only what lies between is run. Raises ForwardError when the backward pass does.
    """
    points, cotangents = zip(*starts, strict=True)
    kept = bool(torch.full((), _SMALL) * 1.0 == 0.0)
    torch.set_flush_denormal(True)  # a gradient that fades over hundreds of steps passes them, each many times as slow
    try:
        found = torch.autograd.grad(
            [point.edge for point in points], [point.edge for point in ends], cotangents, retain_graph=True, allow_unused=True
        )
    except Exception as error:
        raise ForwardError(f"the backward pass raised {described(error)}") from error
    finally:
        torch.set_flush_denormal(kept)
    return list(found)
