"""Why an operator returns NaN or infinity, where its name alone does not say it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """The reason for a NaN or an infinity, as messages say it."""

    IGNORED = "every label is ignored, and the mean of no term is 0/0"
    WEIGHTLESS = "the class weights of all labels are zero, and their mean is 0/0"
    FORBIDDEN = "a target lies where the input is -inf"
    EMPTY = "nothing is selected, and the mean of no value is 0/0"
    NEGATIVE = "a negative number lies outside its domain"
    SINGLE = "fewer than two values have no spread"
    MASKED_ROW = "a row is masked everywhere, and a softmax of nothing but -inf is 0/0"
    PRODUCT = "0 * inf"
    DIFFERENCE = "inf - inf"
    QUOTIENT = "0 / 0"
    EIGENVALUES = "eigenvalues coincide, and the gradient of eigenvectors divides by their differences"
    SINGULAR_VALUES = "singular values coincide or are zero, and the gradient of singular vectors divides by their differences"
    SINGULAR = "the matrix is singular"
    MASK = "the -inf of a mask enters it"
    CONSTANT = "a constant beside it is not finite"
    INPUT = "the input holds it"
    TARGET = "the target holds it"


_EIGENVECTORS = frozenset({"eigh", "eig", "symeig", "lobpcg"})
_SINGULAR_VECTORS = frozenset({"svd", "svd_lowrank", "pca_lowrank"})
_MATRICES = frozenset(
    {
        "cholesky",
        "cholesky_ex",
        "cholesky_inverse",
        "cholesky_solve",
        "det",
        "inv",
        "inv_ex",
        "inverse",
        "logdet",
        "lstsq",
        "lu_solve",
    }
    | {"pinv", "pinverse", "qr", "slogdet", "solve", "solve_ex", "solve_triangular", "triangular_solve"}
)
_SOFTMAXES = frozenset({"softmax", "log_softmax", "masked_softmax"})
_PRODUCTS = frozenset({"mul", "multiply", "prod", "cumprod", "addcmul", "xlogy"})
_SUMS = frozenset({"add", "sub", "subtract", "rsub", "sum", "mean", "cumsum", "nansum", "logaddexp"})
_QUOTIENTS = frozenset({"div", "divide", "true_divide", "truediv", "reciprocal", "normalize", "l2_normalize"})
_ROOTS = frozenset({"sqrt", "rsqrt", "pow"})
_MEANS = frozenset({"mean", "nanmean", "median", "nanmedian", "reducemean"})
_SPREADS = frozenset({"std", "var", "std_mean", "var_mean"})
_LABELED = frozenset({"cross_entropy", "nll_loss", "cross_entropy_loss", "nll_loss_nd", "nll_loss2d"})
_DIVERGENCES = frozenset({"kl_div", "binary_cross_entropy", "binary_cross_entropy_with_logits"})


def bare(name: str) -> str:
    """Return the name of a function as people write it: without a namespace, a sign of an in-place write, or capitals."""
    return name.rpartition(":")[2].strip("_").lower()


def is_matrix_function(name: str) -> bool:
    """Return whether a function breaks, or raises, for a singular matrix."""
    return bare(name).removeprefix("linalg_") in _MATRICES


def fault_of(name: str, kind: str, operands: tuple[tuple[float, float], ...], *, backward: bool, masked: bool) -> Fault | None:
    """Return why an operator is not finite, as far as its operands tell; None where its name says enough.

    Args:
        name: The name of the function.
        kind: "NaN" or "infinity".
        operands: The smallest and the largest value of each float operand.
        backward: Whether the value is finite and only the gradient is not.
        masked: Whether an operand holds an infinity.
    """
    name = bare(name)
    if is_matrix_function(name):
        return Fault.SINGULAR
    if backward:
        return _backward(name, masked=masked)
    if kind == "NaN":
        return _invalid(name, operands, masked=masked)
    if masked and name in _LABELED | _DIVERGENCES:
        return Fault.FORBIDDEN
    return Fault.MASK if masked else None


def because(fault: Fault | None, becomes: str, mask: str) -> str:
    """Return the end of a message about a culprit: why, what put in the infinity, and what makes NaN of it."""
    parts = [f": {fault}" if fault is not None and fault not in {Fault.INPUT, Fault.TARGET} else ""]
    parts.append(f"; the infinity comes from {mask}" if mask else "")
    return "".join([*parts, f"; {becomes} makes NaN of it" if becomes else ""])


def _backward(name: str, *, masked: bool) -> Fault | None:
    if name.removeprefix("linalg_") in _EIGENVECTORS:
        return Fault.EIGENVALUES
    if name.removeprefix("linalg_") in _SINGULAR_VECTORS:
        return Fault.SINGULAR_VALUES
    if not masked:
        return None
    if name in _SOFTMAXES or "attention" in name or name == "logsumexp":
        return Fault.MASKED_ROW
    return Fault.PRODUCT if name in _PRODUCTS else Fault.MASK


def _invalid(name: str, operands: tuple[tuple[float, float], ...], *, masked: bool) -> Fault | None:
    """Return why a value is NaN."""
    if name in _SPREADS and not masked:
        return Fault.SINGLE
    if name in _MEANS and not masked:
        return Fault.EMPTY
    if name in _ROOTS and operands and min(low for low, _ in operands) < 0.0:
        return Fault.NEGATIVE
    if masked and name in _SOFTMAXES:
        return Fault.MASKED_ROW if not any(high == float("inf") for _, high in operands) else Fault.DIFFERENCE
    if "attention" in name:
        return Fault.MASKED_ROW
    if name in _QUOTIENTS and operands and not masked:
        return Fault.QUOTIENT
    if masked and name in _PRODUCTS | _DIVERGENCES:
        return Fault.PRODUCT
    if masked and name in _SUMS:
        return Fault.DIFFERENCE
    if masked and name in _LABELED:
        return Fault.PRODUCT if len(operands) > 1 else Fault.MASKED_ROW
    if masked:
        return Fault.MASK
    return Fault.CONSTANT if name in _PRODUCTS | _SUMS and len(operands) == 1 else None


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The first operator whose result ranks above all its operands, where finite < infinity < NaN.

    An infinity that the user puts in on purpose, such as a mask of -inf, ranks below one that an operator makes.
    """

    node: str
    kind: str  # "NaN" or "infinity"
    operands: tuple[tuple[float, float], ...] = ()  # smallest and largest value of each float operand
    fault: Fault | None = None  # why, where the name of the operator does not say it
    becomes: str = ""  # the operator that makes NaN of the infinity, with its line; "" for none
    mask: str = ""  # what put in the infinity that the operator meets, with its line; "" for none

    @property
    def given(self) -> str:
        """The operands for a message, " (operands in [-3, 5], [0, 0])", or nothing where there is none."""
        operands = ", ".join(f"[{low:.3g}, {high:.3g}]" for low, high in self.operands)
        return f" (operands in {operands})" if operands else ""

    @property
    def because(self) -> str:
        """Why, as the end of a message."""
        return because(self.fault, self.becomes, self.mask)
