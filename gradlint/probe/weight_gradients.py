"""The backward pass of the probe: the gradients of all weights, reduced to numbers one after the other as they arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gradlint.errors import ForwardError
from gradlint.frontends.user_code import described
from gradlint.graph import Weight
from gradlint.probe.cotangents import drawn, seeded
from gradlint.probe.recorder import energy, square_sum

_BLOCKS = (1, 2, 3, 4)
"""Matrices that lie in one weight: three for queries, keys and values, three or four gates of a recurrence, two of a GLU."""

_ALIKE = 1e-4
"""Difference of gradients, relative to their size, up to which they are equal but for rounding."""


@dataclass(frozen=True, slots=True)
class WeightGradient:
    """The gradient of one weight.

    Attributes:
        square: Its squared norm.
        size: Its number of elements.
        alike: Whether it leaves all units of a weight of equal elements alike: one update moves them all by the same.
    """

    square: float
    size: int
    alike: bool = False


@dataclass(frozen=True, slots=True)
class Pulled:
    """The results of one backward pass.

    Attributes:
        cotangent: The squared norm of the cotangent, ||v||^2; 0 if there was no backward pass.
        output: The squared norm of the trunk output, ||out||^2.
        outputs: The number of elements of the trunk output.
        weights: The gradient of each weight that one reached, by name.
    """

    cotangent: float = 0.0
    output: float = 0.0
    outputs: int = 0
    weights: Mapping[str, WeightGradient] = field(default_factory=dict)


def pull(
    trunk: Sequence[torch.Tensor],
    sources: Sequence[torch.Tensor],
    weights: Mapping[str, Weight],
    tensors: Mapping[str, torch.Tensor],
    seed: int,
) -> Pulled:
    """Run the backward pass with a random cotangent on the trunk output.

    Args:
        trunk: The tensors of the trunk output.
        sources: The tensors at which the differentiable signal starts.
        weights: The weights of the graph, by name.
        tensors: The parameters, by name. Their `grad` is left alone.
        seed: Seed of the cotangent.

    Raises:
        ForwardError: The backward pass of the model raised.
    """
    cotangents = drawn(trunk, seed)
    found: dict[str, WeightGradient] = {}
    if sources:
        axes = {name: weights[name].out_axis if name in weights else 0 for name in tensors}
        hooks = [
            tensor.register_hook(_Hook(name, axes[name] if _is_flat(tensor) else None, found))  # type: ignore[no-untyped-call]
            for name, tensor in tensors.items()
        ]
        try:
            torch.autograd.grad(seeded(trunk, cotangents), [*tensors.values(), *sources], allow_unused=True)
        except Exception as error:
            hint = "training would meet the same error: call .backward() on an output to see it"
            raise ForwardError(f"the model's backward pass raised {described(error)}", hint=hint) from error
        finally:
            for hook in hooks:
                hook.remove()
    return Pulled(
        sum(energy(v) for v in cotangents),
        sum(square_sum(t.detach())[0] for t in trunk),
        sum(t.numel() for t in trunk),
        {name: found[name] for name in tensors if name in found},
    )


@dataclass(frozen=True, slots=True)
class _Hook:
    """The hook of one weight. It lets go of the gradient, so that the gradients of all weights are not held at once.

    Attributes:
        name: The weight.
        axis: The axis of its units, if all its elements are equal; otherwise None.
        found: Where the result is put.
    """

    name: str
    axis: int | None
    found: dict[str, WeightGradient]

    def __call__(self, gradient: torch.Tensor | None) -> torch.Tensor | None:
        if gradient is None:  # a custom backward can return None
            return None
        alike = self.axis is not None and _are_alike(gradient, self.axis)
        self.found[self.name] = WeightGradient(energy(gradient), gradient.numel(), alike)
        return gradient.new_zeros(()).expand(gradient.shape) if gradient.layout is torch.strided else None


def _is_flat(weight: torch.Tensor) -> bool:
    """Return whether a matrix holds one number other than zero throughout."""
    if weight.ndim < 2 or not weight.numel():
        return False
    if (known := getattr(weight, "is_flat", None)) is not None:  # a weight of a block, which would have to be drawn
        return bool(known)
    ends = weight.detach()[(0,) * weight.ndim], weight.detach()[(-1,) * weight.ndim]
    return bool(ends[0] == ends[1]) and bool(ends[0]) and bool((weight.detach() == ends[0]).all())


def _are_alike(gradient: torch.Tensor, axis: int) -> bool:
    """Return whether the gradients of all units are equal, or those of the units of each of a few matrices in one weight."""
    rows = gradient.detach().to_dense().movedim(axis, 0).flatten(1)
    largest = float(rows.abs().max())
    for blocks in _BLOCKS:
        if len(rows) % blocks or len(rows) // blocks < 2:
            continue
        parts = rows.reshape(blocks, len(rows) // blocks, -1)
        if float((parts - parts[:, :1]).abs().max()) <= _ALIKE * largest:
            return True
    return False
