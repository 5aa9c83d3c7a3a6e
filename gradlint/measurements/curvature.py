"""The measured curvature of the loss as a function of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from gradlint.measurements import is_surrogate


@dataclass(frozen=True, slots=True)
class Curvature:
    """Curvature of the loss at the initial weights, and the learning-rate limit that follows for a recipe.

    Attributes:
        loss: Value of the loss.
        sharpness: Largest eigenvalue of the Hessian H.
        lowest: Smallest eigenvalue of H.
        error: Estimated relative error of `sharpness`.
        gradient_norms: Gradient norm over all weights, one value for each batch or draw of dropout.
        gradient_largest: Largest absolute entry of those gradients.
        weights: Number of trainable weight elements.
        limit: Learning rate above which the recipe is unstable in the quadratic model of the loss; see `Recipe.limit`. Infinite
            if no direction has positive curvature.
        preconditioned: Largest eigenvalue of P^-1/2 H P^-1/2 for an optimizer that divides by P, else None.
        stands_in: Description of the loss if the user gave none, else "".
        products: Number of Hessian-vector products that were computed.
        exact: Whether these products are exact (double backward) rather than central differences of gradients.
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
        """Median of `gradient_norms`."""
        return median(self.gradient_norms)

    @property
    def is_surrogate(self) -> bool:
        """Whether gradlint made the loss up."""
        return is_surrogate(self.stands_in)
