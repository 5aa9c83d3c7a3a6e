"""Sharpness, and the learning rate up to which a recipe is stable (THEORY section 4).

Near a minimum, gradient descent multiplies the weights' deviation along an eigenvector of the Hessian, whose eigenvalue is h, by
1 - lr h at each step: it grows where lr > 2 / h. The largest eigenvalue, the sharpness, sets the limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradlint.errors import ForwardError
from gradlint.measurements.curvature import Curvature
from gradlint.probe.experiments.objective import Objective, gradients, preserved
from gradlint.probe.experiments.setting import Setting
from gradlint.probe.experiments.training import batch_of
from gradlint.probe.recorder import real
from gradlint.recipe import Recipe

STEPS = 30  # products with the Hessian, at most
LEAST = 10  # products, at least: fewer may stop at the second eigenvalue
ACCURACY = 0.002  # relative error of the largest eigenvalue at which the iteration stops
ASYMMETRY = 0.02  # relative, of exact products: more means that a backward pass hides what it depends on
DRAWS = 4  # batches, or draws of dropout, whose gradients are taken
SHIFT = 3e-4  # of the weights' norm: the step of central differences
SECONDS = 30.0  # after which no more products are taken, given LEAST of them
HALF = frozenset({torch.float16, torch.bfloat16})

Product = Callable[[Tensor], Tensor]


def curvature(setting: Setting) -> Mapping[str, Any]:
    """The field `curvature` of a Measurement, where a recipe was given and there is something to train."""
    recipe = setting.task.recipe
    if recipe is None or not setting.objective.parameters:
        return {}
    return {"curvature": measured(setting.objective, recipe, setting.progress)}


def measured(objective: Objective, recipe: Recipe, progress: Callable[[str], None] = lambda _: None) -> Curvature:
    """Sharpness of an objective, what a recipe makes of it, and the gradient norms of some batches.

    Costs DRAWS gradients and up to STEPS products with the Hessian, each about twice a gradient; twice as many products where
    the recipe has a preconditioner. Raises ForwardError when the loss or its gradient is not finite.
    """
    progress("measuring the sharpness of the loss")
    start, square, norms, largest = _drawn(objective)
    hessian = Hessian(objective)
    plain = extremes(hessian, start)
    if hessian.exact and plain.asymmetry > ASYMMETRY and not hessian.coarse:
        hessian = Hessian(objective, exact=False)
        plain = extremes(hessian, start)
    decay = 0.0 if recipe.decoupled else recipe.weight_decay
    top, scaled = plain.largest + decay, None
    if recipe.adaptive:
        root = (square.sqrt_() + recipe.eps).rsqrt_()
        top = scaled = extremes(lambda vector: root * (hessian(root * vector) + decay * root * vector), start).largest
    return Curvature(
        loss=hessian.loss,
        sharpness=plain.largest,
        lowest=plain.smallest,
        error=plain.error,
        gradient_norms=norms,
        gradient_largest=largest,
        weights=start.numel(),
        limit=recipe.limit(top),
        preconditioned=scaled,
        stands_in=objective.stands_in,
        products=hessian.products,
        exact=hessian.exact,
    )


class Hessian:
    """Products of the Hessian of one batch's loss with vectors over all weights, laid end to end.

    They are exact, derivatives of the gradient, where the model's backward pass can be differentiated, else central differences
    of gradients. Every evaluation sees the same batch, the same dropout masks and the same buffers.
    """

    def __init__(self, objective: Objective, *, exact: bool = True) -> None:
        self.objective = objective
        self.weights = [*objective.parameters.values()]
        self.exact = exact
        self.coarse = any(weight.dtype in HALF for weight in self.weights)
        self.products = 0
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice
            loss = loss_of(objective)
            self.loss = float(loss.detach())
            self._gradient: Sequence[Tensor] = ()
            if exact:
                self._gradient = gradients(loss, self.weights, create_graph=True)

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector. Raises ForwardError where it is not finite, or can be had in neither way."""
        self.products += 1
        if self.exact:
            with suppress(RuntimeError):  # an operator without a second derivative
                product = self._differentiated(vector)
                if torch.isfinite(product).all():
                    return product
            self.exact, self._gradient = False, ()
        product = self._difference(vector)
        if not torch.isfinite(product).all():
            raise ForwardError("the second derivative of the loss is not finite")
        return product

    def _differentiated(self, vector: Tensor) -> Tensor:
        pairs = [(g, v) for g, v in zip(self._gradient, _parts(vector, self.weights), strict=True) if g.requires_grad]
        if not pairs:  # the loss is linear in the weights
            return torch.zeros_like(vector)
        outputs, directions = zip(*pairs, strict=True)
        found: Any  # declared without the None that allow_unused gives
        found = torch.autograd.grad(outputs, self.weights, directions, retain_graph=True, allow_unused=True)
        return _flat([torch.zeros_like(w) if f is None else f for w, f in zip(self.weights, found, strict=True)])

    def _difference(self, vector: Tensor) -> Tensor:
        if self.coarse:
            raise ForwardError("a second derivative is missing, and differences of half-precision gradients are too coarse")
        norm = torch.linalg.vector_norm(_flat(self.weights))
        step = float(SHIFT * (norm or 1.0) / torch.linalg.vector_norm(vector).clamp_min(1e-30))
        sides = []
        for shift in (step, -step):
            with preserved(self.objective.parameters), torch.no_grad():
                for weight, part in zip(self.weights, _parts(vector, self.weights), strict=True):
                    weight.data.add_(part, alpha=shift)
                sides.append(gradient_of(self.objective))
        return (sides[0] - sides[1]) / (2.0 * step)


@dataclass(frozen=True, slots=True)
class Extremes:
    """Largest and smallest eigenvalue of a symmetric operator.

    `error` is the estimated relative error of the largest, `asymmetry` how far products were from those of a symmetric operator,
    relative to the larger of the two.
    """

    largest: float
    smallest: float
    error: float
    asymmetry: float = 0.0


def extremes(product: Product, start: Tensor, *, steps: int = STEPS, accuracy: float = ACCURACY) -> Extremes:
    """Extreme eigenvalues by the Lanczos recurrence, in memory for three vectors.

    Without reorthogonalisation eigenvalues that were found are found again, and the extreme ones stay as they are (Paige 1976).
    The error is the smaller of the residual of the Ritz pair and its square over the gap to the next Ritz value. It is what
    tells how far the iteration came where `steps` or SECONDS ended it.
    """
    until = time.monotonic() + SECONDS
    diagonal: list[float] = []
    beside: list[float] = []
    skew = 0.0
    before, current = torch.zeros_like(start), start / torch.linalg.vector_norm(start)
    while True:
        following = product(current)
        if beside:
            skew = max(skew, abs(float(torch.dot(following, before)) - beside[-1]))
            following = following - beside[-1] * before
        diagonal.append(float(torch.dot(following, current)))
        following -= diagonal[-1] * current
        rest = float(torch.linalg.vector_norm(following))
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        scale = max(abs(values[-1]), 1e-3 * abs(values[0]))
        residual = rest * abs(vectors[-1, -1])
        gap = values[-1] - values[-2] if len(values) > 1 else 0.0
        error = min(residual, residual**2 / gap if gap else residual) / scale if scale else 0.0
        settled = len(diagonal) >= LEAST and (error <= accuracy or time.monotonic() > until)
        if settled or rest <= 1e-6 * scale or len(diagonal) >= min(steps, start.numel()):
            largest = max(abs(values[0]), abs(values[-1]))
            return Extremes(float(values[-1]), float(values[0]), float(error), float(skew / largest) if largest else 0.0)
        beside.append(rest)
        before, current = current, following / rest


def loss_of(objective: Objective, index: int = 0) -> Tensor:
    """The loss of the batch of that index: the same function of the weights whenever it is asked for."""
    arrays, target = batch_of(objective, index)
    objective.restart(index)
    with torch.enable_grad():
        return objective(arrays, target)


def gradient_of(objective: Objective, index: int = 0) -> Tensor:
    """Its gradient, end to end, zero for weights that it does not depend on."""
    return _flat(gradients(loss_of(objective, index), [*objective.parameters.values()]))


def _drawn(objective: Objective) -> tuple[Tensor, Tensor, tuple[float, ...], float]:
    """Of the gradients of some batches: where to start, the mean square of each entry, the norms, and the largest entry.

    The start is a random direction and that of the first gradient, which lies close to the sharpest ones (Gur-Ari 2018,
    arXiv 1812.04754).
    """
    first = gradient_of(objective)
    square, norms, largest = torch.zeros_like(first), [], 0.0
    draws = min(max(len(objective.task.batches), DRAWS), 2 * DRAWS)
    for index in range(draws):
        gradient = gradient_of(objective, index) if index else first
        square.addcmul_(gradient, gradient, value=1.0 / draws)
        norms.append(float(torch.linalg.vector_norm(gradient)))
        largest = max(largest, float(gradient.abs().max()))
    if not all(map(math.isfinite, norms)):
        raise ForwardError("the gradient of the loss is not finite")
    start = torch.randn(first.shape, generator=torch.Generator().manual_seed(objective.seed)).to(first)
    start /= torch.linalg.vector_norm(start)
    return start.add_(first, alpha=1.0 / norms[0] if norms[0] else 0.0), square, tuple(norms), largest


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors end to end, complex ones as pairs, in at least single precision."""
    values = (real(tensor.detach()).reshape(-1).to(tensors[0].device) for tensor in tensors)
    return torch.cat([value.float() if value.dtype in HALF else value for value in values])


def _parts(vector: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    """A vector cut into tensors like these."""
    place = 0
    for tensor in like:
        size = tensor.numel() * (2 if tensor.is_complex() else 1)
        part = vector[place : place + size]
        place += size
        part = torch.view_as_complex(part.reshape(-1, 2).contiguous()) if tensor.is_complex() else part
        yield part.reshape(tensor.shape).to(tensor)
