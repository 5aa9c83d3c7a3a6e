"""What the theory of infinitely wide layers and infinitely large batches leaves out."""

from __future__ import annotations

import math
from collections.abc import Iterable


def fourth_moment(widths: Iterable[int], kurtosis: float = 2.0) -> float:
    """E |J u|^4 / (E |J u|^2)^2 of the Jacobian J of a random network and any unit vector u: prod(1 + (3 k - 1) / n).

    `widths` are the fan_in of its Gaussian layers; `kurtosis` is E phi'^4 / (E phi'^2)^2 of the activation, 2 for ReLU, which
    gives prod(1 + 5/n), and 1 for a linear network (Hanin 2018, 1801.03744). Infinite where a float cannot hold it.
    """
    log = _log_fourth(widths, kurtosis)
    return math.exp(log) if log < 700.0 else math.inf


def decades_deviation(widths: Iterable[int], kurtosis: float = 2.0) -> float:
    """Standard deviation over initializations of log10 |J u|, close to normally distributed (Hanin, Nica 2018, 1812.05994)."""
    return 0.5 * math.sqrt(_log_fourth(widths, kurtosis)) / math.log(10.0)


def _log_fourth(widths: Iterable[int], kurtosis: float) -> float:
    return sum(math.log1p(max(3.0 * kurtosis - 1.0, 0.0) / max(width, 1)) for width in widths)


def largest_singular_value(layers: int, gain: float = 1.0) -> float:
    """Largest squared singular value of a product of wide square Gaussian layers: gain^(2 L) (L + 1)^(L + 1) / L^L.

    The mean square of all singular values is gain^(2 L), so the largest direction grows about e (L + 1/2) times faster
    (Pennington, Schoenholz, Ganguli 2017, 1711.04735; the edge of the Fuss-Catalan distribution).
    """
    edge = (layers + 1) * math.log(layers + 1) - layers * math.log(layers) if layers else 0.0
    log = edge + 2.0 * layers * math.log(gain) if gain > 0.0 else -math.inf
    return math.exp(log) if log < 700.0 else math.inf


def batch_norm_growth(batch: int) -> float:
    """Squared factor of the gradient per layer of weights and BatchNorm alone on a batch of B: (B - 2)/(B - 3).

    Over infinitely large batches it is 1 (Yang 2019, 1902.08129). `batch` counts the values that one channel is normalized over;
    infinite for three or fewer, where the mean does not exist.
    """
    return (batch - 2) / (batch - 3) if batch > 3 else math.inf
