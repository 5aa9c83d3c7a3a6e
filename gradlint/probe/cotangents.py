"""Draw cotangents and seed a backward pass with them, without what torch does for them.

`torch.autograd.grad(outputs, inputs, cotangents)` compares shapes by a module that imports sympy: a third of a second, which is a
quarter of the check of a small file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Seed(torch.autograd.Function):
    """A function of outputs whose gradient with respect to them is given."""

    @staticmethod
    def forward(ctx: Any, cotangents: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        """Return a zero."""
        ctx.cotangents = cotangents
        return torch.zeros((), device=outputs[0].device)

    @staticmethod
    def backward(ctx: Any, *one: Tensor) -> tuple[Tensor | None, ...]:
        """Return the cotangents."""
        del one
        return (None, *ctx.cotangents)


def drawn(outputs: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return a cotangent of independent N(0, 1) values for each output, of its shape, dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=_draw_dtype(t)).to(t.device, t.dtype) for t in outputs]


def _draw_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype in {torch.float64, torch.complex64, torch.complex128} else torch.float32


def seeded(outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensor:
    """Return a scalar of which the gradients with respect to some tensors are `cotangents`, of the same shapes and dtypes."""
    scalar: Tensor = _Seed.apply(tuple(cotangents), *outputs)  # type: ignore[no-untyped-call]
    return scalar
