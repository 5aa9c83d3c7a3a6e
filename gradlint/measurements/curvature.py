"""What was measured of the loss as a function of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from gradlint.measurements import is_surrogate


@dataclass(frozen=True, slots=True)
class Curvature:
    """The loss around the weights as they are, and what a recipe makes of it.

    `sharpness` and `lowest` are the largest and the smallest eigenvalue of the Hessian, `error` is the estimated relative error
    of the first; `preconditioned` is the largest eigenvalue of P^-1/2 H P^-1/2, P being what the optimizer divides by. From the
    learning rate `limit` on, the recipe is unstable in the quadratic model of the loss: infinite where nothing curves upwards.
    `gradient_norms` has one value for each batch, or draw of dropout, that was looked at, `gradient_largest` is the largest entry
    of those gradients, each of which has one for each of the `weights`. `stands_in` says what the loss is
    where the user gave none. `products` counts the products with the Hessian, which are `exact` or central differences.
    """

    loss: float
    sharpness: float
    lowest: float
    error: float
    gradient_norms: tuple[float, ...]
    gradient_largest: float
    weights: int
    limit: float
    preconditioned: float | None = None
    stands_in: str = ""
    products: int = 0
    exact: bool = True

    @property
    def gradient_norm(self) -> float:
        """Median of the gradient norms."""
        return median(self.gradient_norms)

    @property
    def is_surrogate(self) -> bool:
        """Whether the loss was made up, for want of one."""
        return is_surrogate(self.stands_in)
