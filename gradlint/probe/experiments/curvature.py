"""Measure the sharpness of the loss, and the largest learning rate at which a recipe is stable.

Near a minimum, a step of gradient descent multiplies the deviation of the weights along an eigenvector of the Hessian by
1 - lr h, where h is the eigenvalue. The deviation grows if lr > 2 / h. The largest eigenvalue, the sharpness, therefore sets the
limit (Cohen 2021, arXiv 2103.00065); `Recipe.limit` has the formulas for other optimizers.
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

STEPS = 20  # the most products with the Hessian
LEAST = 6  # the fewest: with fewer, the iteration may stop at the second eigenvalue
ACCURACY = 0.02  # relative error of the largest eigenvalue at which the iteration stops; a rate is chosen to no more
ASYMMETRY = 0.02  # relative: exact products with more are wrong, because a custom backward hides what it depends on
DRAWS = 4  # batches, or draws of dropout, for which the gradient is computed
SHIFT = 3e-4  # step of central differences, relative to the norm of the weights
SECONDS = 30.0  # no further products are computed after this time, except up to LEAST
HALF = frozenset({torch.float16, torch.bfloat16})

Product = Callable[[Tensor], Tensor]


def curvature(setting: Setting) -> Mapping[str, Any]:
    """Return the field `curvature` of `Measurement`, if a recipe was given and the model has trainable weights."""
    recipe = setting.task.recipe
    if recipe is None or not setting.objective.parameters:
        return {}
    return {"curvature": measure_curvature(setting.objective, recipe, setting.progress)}


def measure_curvature(objective: Objective, recipe: Recipe, progress: Callable[[str], None] = lambda _: None) -> Curvature:
    """Measure the sharpness of an objective, the stability limit of a recipe, and the gradient norms of some batches.

    The cost is that of DRAWS gradients and of up to STEPS products with the Hessian, each of which costs about two gradients. An
    adaptive recipe needs twice as many products. Raises ForwardError if the loss, its gradient or a product is not finite.
    """
    progress("measuring the sharpness of the loss")
    start, square, norms, largest = _sample_gradients(objective)
    hessian = Hessian(objective)
    plain = extremes(hessian, start)
    if hessian.exact and plain.asymmetry > ASYMMETRY and not hessian.coarse:
        hessian = Hessian(objective, exact=False)
        plain = extremes(hessian, start)
    decay = 0.0 if recipe.decoupled else recipe.weight_decay
    top, scaled = plain.largest + decay, None
    if recipe.adaptive and recipe.is_modeled:
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
    """Computes products of the Hessian of one batch's loss with flat vectors, which have an element for each weight.

    If the backward pass of the model can be differentiated, the products are exact derivatives of the gradient, otherwise they
    are central differences of gradients. Every evaluation uses the same batch, dropout masks and buffers.

    Attributes:
        exact: Whether products are exact. It becomes False at the first product that cannot be computed exactly.
        coarse: Whether weights have half precision, which is too coarse for differences.
        products: The number of products so far.
        loss: The loss at the current weights.
    """

    def __init__(self, objective: Objective, *, exact: bool = True) -> None:
        self.objective = objective
        self.weights = [*objective.parameters.values()]
        self.exact = exact
        self.coarse = any(weight.dtype in HALF for weight in self.weights)
        self.products = 0
        with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels cannot be differentiated twice
            loss = loss_of(objective)
            self.loss = float(loss.detach())
            self._gradient: Sequence[Tensor] = ()
            if exact:
                self._gradient = gradients(loss, self.weights, create_graph=True)

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the product with a flat vector. Raises ForwardError if it is not finite or cannot be computed."""
        self.products += 1
        if self.exact:
            with suppress(RuntimeError):  # some operators have no second derivative
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
        found: Any  # torch's stubs omit the None that allow_unused can give
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
    """The largest and the smallest eigenvalue of a symmetric operator.

    `error` is the estimated relative error of the largest one. `asymmetry` is the deviation of the products from those of a
    symmetric operator, relative to the eigenvalue of larger magnitude.
    """

    largest: float
    smallest: float
    error: float
    asymmetry: float = 0.0


def extremes(product: Product, start: Tensor, *, steps: int = STEPS, accuracy: float = ACCURACY) -> Extremes:
    """Compute the extreme eigenvalues of a symmetric operator by the Lanczos recurrence, with memory for three vectors.

    Without reorthogonalization, eigenvalues are found repeatedly, but the extreme ones remain correct (Paige 1976). The error
    is the residual of the largest Ritz pair, or its square divided by the gap to the next Ritz value if that is smaller.

    Args:
        product: The product of the operator with a vector.
        start: The start vector, of shape (size,).
        steps: The most products.
        accuracy: The iteration stops at this relative error of the largest eigenvalue, or after SECONDS.
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
        if not math.isfinite(diagonal[-1] + rest):
            raise ForwardError("products with the second derivative of the loss overflow")
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
    """Return the loss of the batch `index`. It is the same function of the weights at every call."""
    arrays, target = batch_of(objective, index)
    objective.restart(index)
    with torch.enable_grad():
        return objective(arrays, target)


def gradient_of(objective: Objective, index: int = 0) -> Tensor:
    """Return the gradient of the loss of the batch `index` as a flat vector; zero for weights that it does not depend on."""
    return _flat(gradients(loss_of(objective, index), [*objective.parameters.values()]))


def _sample_gradients(objective: Objective) -> tuple[Tensor, Tensor, tuple[float, ...], float]:
    """Compute the gradients of some batches.

    Return the start vector of the iteration, the mean square of each entry, the norms, and the largest absolute entry. The start
    vector is the sum of a random unit vector and of the normalized first gradient, which is close to the directions of largest
    curvature (Gur-Ari 2018, arXiv 1812.04754).
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
    drawn = torch.randn(first.shape, generator=torch.Generator().manual_seed(objective.seed), dtype=torch.float32)
    start = drawn.to(first)
    start /= torch.linalg.vector_norm(start)
    return start.add_(first, alpha=1.0 / norms[0] if norms[0] else 0.0), square, tuple(norms), largest


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors to a flat vector with at least single precision. Complex numbers become pairs."""
    values = (real(tensor.detach()).reshape(-1).to(tensors[0].device) for tensor in tensors)
    return torch.cat([value.float() if value.dtype in HALF else value for value in values])


def _parts(vector: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    """Split a flat vector into tensors with the shapes and dtypes of `like`; the inverse of `_flat`."""
    place = 0
    for tensor in like:
        size = tensor.numel() * (2 if tensor.is_complex() else 1)
        part = vector[place : place + size]
        place += size
        part = torch.view_as_complex(part.reshape(-1, 2).contiguous()) if tensor.is_complex() else part
        yield part.reshape(tensor.shape).to(tensor)
