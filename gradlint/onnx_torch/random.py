"""Operators that draw random numbers: from torch's global generator, or from one with the seed that the node gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradlint.onnx_torch.dtypes import torch_dtype
from gradlint.onnx_torch.registry import Context, budget, op


def _generator(seed: float | None) -> torch.Generator | None:
    """Return a generator with the seed of the `seed` attribute; None, which means the global one, if it has none."""
    return None if seed is None else torch.Generator().manual_seed(int(seed))


@op("RandomNormalLike")
def _random_normal_like(
    x: Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    return mean + scale * torch.randn(x.shape, generator=_generator(seed), dtype=torch_dtype(dtype) if dtype else x.dtype)


@op("RandomUniformLike")
def _random_uniform_like(
    x: Tensor, *, dtype: int | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Tensor:
    return low + (high - low) * torch.rand(x.shape, generator=_generator(seed), dtype=torch_dtype(dtype) if dtype else x.dtype)


@op("Bernoulli")
def _bernoulli(x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    return torch.bernoulli(x, generator=_generator(seed)).to(torch_dtype(dtype) if dtype else x.dtype)


@op("Dropout")
def _dropout(
    ctx: Context,
    x: Tensor,
    ratio_input: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    ratio: float = 0.5,
    seed: int | None = None,
    is_test: int = 0,
) -> tuple[Tensor, ...]:
    p = float(ratio_input.detach()) if ratio_input is not None else ratio
    mask = torch.bool if ctx.opset >= 10 else x.dtype
    training = not is_test if ctx.opset < 7 else training_mode is not None and bool(training_mode)
    if not training or p == 0.0:
        return (x, torch.full_like(x, ctx.opset >= 12, dtype=mask)) if ctx.wants(1) else (x,)  # as onnxruntime fills it
    keep = torch.rand(x.shape, generator=_generator(seed)) >= p
    return torch.where(keep, x / (1.0 - p), torch.zeros((), dtype=x.dtype)), keep.to(mask)


@op("RandomNormal")
def _random_normal(
    *, shape: Sequence[int], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    return mean + scale * torch.randn(budget(shape), generator=_generator(seed), dtype=torch_dtype(dtype))


@op("RandomUniform")
def _random_uniform(
    *, shape: Sequence[int], dtype: int = 1, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Tensor:
    return low + (high - low) * torch.rand(budget(shape), generator=_generator(seed), dtype=torch_dtype(dtype))


@op("Multinomial")
def _multinomial(x: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Tensor:

    drawn = torch.multinomial(torch.softmax(x, -1), sample_size, replacement=True, generator=_generator(seed))
    return drawn.to(torch_dtype(dtype))
