"""Points in the autograd graph of one run: vector-Jacobian products between any two of them, until the graph is freed."""

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

_SMALL = 1e-40  # a denormal number in float32
_EDGES = "GradientEdge" in str(inspect.signature(torch.autograd.grad).parameters["outputs"].annotation)


@dataclass(frozen=True, slots=True, eq=False)
class VjpPoint:
    """The point of one tensor in the autograd graph. The tensor itself is kept only if this version of torch requires it."""

    edge: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> VjpPoint:
        """Return the point of a tensor that requires grad."""
        edge = autograd_graph.get_gradient_edge(tensor) if _EDGES else tensor
        return cls(edge, tuple(tensor.shape), tensor.dtype, tensor.device)

    def is_that_of(self, other: VjpPoint) -> bool:
        """Return whether both are the point of one tensor. A tensor, which older versions keep, has no truth value for `==`."""
        return self.edge is other.edge or (_EDGES and bool(self.edge == other.edge))

    def zeros(self) -> Tensor:
        """Return a cotangent of zeros, with the shape of the tensor."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        """Draw a cotangent of independent N(0, 1) values, with the shape of the tensor or with the given `shape`."""
        drawn = torch.float64 if self.dtype in {torch.float64, torch.complex128} else torch.float32
        return torch.randn(shape or self.shape, generator=generator, dtype=drawn).to(self.device, self.dtype)


def pull(starts: Sequence[tuple[VjpPoint, Tensor]], ends: Sequence[VjpPoint]) -> list[Tensor | None]:
    """Return the vector-Jacobian products at `ends` for cotangents at `starts`; None for an end that no gradient reaches.

    Only the part of the graph between them runs, and the graph is retained. Raises ForwardError if the backward pass raises.
    """
    points, cotangents = zip(*starts, strict=True)
    kept = bool(torch.full((), _SMALL, dtype=torch.float32) * 1.0 == 0.0)
    torch.set_flush_denormal(True)  # a vanishing gradient passes through denormals, which are many times slower
    try:
        found = torch.autograd.grad(
            [point.edge for point in points], [point.edge for point in ends], cotangents, retain_graph=True, allow_unused=True
        )
    except Exception as error:
        raise ForwardError(f"the backward pass raised {described(error)}") from error
    finally:
        torch.set_flush_denormal(kept)
    return list(found)
