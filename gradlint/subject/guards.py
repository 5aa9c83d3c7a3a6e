"""What keeps an operator from making NaN or infinity: one sentence for each fault, or else for each operator."""

from __future__ import annotations

from gradlint.measurements.faults import Fault, bare, is_matrix_function
from gradlint.ops import by_torch

_BY_FAULT = {
    Fault.IGNORED: "check the labels against ignore_index; where a batch may have none, skip it, or divide the sum by the number "
    "of labels, at least 1",
    Fault.WEIGHTLESS: "give every class that occurs a weight above zero",
    Fault.FORBIDDEN: "check the mask against the targets: what is masked must not be a target",
    Fault.EMPTY: "skip the term where nothing is selected, or divide the sum by the count, at least 1",
    Fault.NEGATIVE: "clamp the operand to zero or more, and add eps inside the root or the power",
    Fault.SINGLE: "take the biased estimate (correction=0), or more than one value",
    Fault.MASKED_ROW: "leave a position of each row unmasked, or mask with a finite value such as torch.finfo(x.dtype).min, "
    "before the softmax and not behind it",
    Fault.PRODUCT: "fill with a finite value before the product, such as torch.finfo(x.dtype).min in place of -inf; or take "
    "torch.xlogy where its operands need no gradient",
    Fault.DIFFERENCE: "put a finite value in place of the infinity before the sum or the difference",
    Fault.QUOTIENT: "add eps to the divisor, or clamp it away from zero; a count to at least 1",
    Fault.EIGENVALUES: "add distinct jitter to the diagonal, a + torch.diag(torch.linspace(0, 1e-3, n)) times its scale, so that "
    "no two eigenvalues are equal; or use eigenvalues alone (torch.linalg.eigvalsh), whose gradient is finite",
    Fault.SINGULAR_VALUES: "add distinct jitter to the diagonal, a + torch.diag(torch.linspace(1e-4, 1e-3, n)) times its scale, "
    "so that no two singular values are equal; or use them alone (torch.linalg.svdvals), whose gradient is finite",
    Fault.SINGULAR: "add eps to the diagonal, a + eps * torch.eye(n), so that the matrix is regular",
    Fault.MASK: "leave the masked places out before it, or mask with a finite value such as torch.finfo(x.dtype).min",
    Fault.CONSTANT: "fix that constant; a mask made by masked_fill or torch.where has no 0 * inf",
    Fault.INPUT: "clean the data: a NaN or an infinity in one sample reaches every weight",
    Fault.TARGET: "clean the target, or leave out the terms without one before the loss",
}
_LOGS = {
    "softmax": "use log_softmax, which takes softmax and log in one step",
    "sigmoid": "use logsigmoid, or binary_cross_entropy_with_logits on what enters the sigmoid",
    "": "clamp the operand of the log away from zero, or use log_softmax or binary_cross_entropy_with_logits on logits",
}
_LOG_IN_PRODUCT = (
    "clamp the operand of the log away from zero, log(p.clamp(min=eps)), for 0 * log 0 is NaN; or take torch.xlogy, "
)
_LOG_IN_PRODUCT += "which is 0 there, where its operands need no gradient"
_EPS_INSIDE = "add eps inside the root, where its derivative is not finite at zero; a where behind the root does not help"
_EXPONENT = "clamp the exponent, or what is raised to a power"
_BASE = "clamp the base above zero, or add eps to it"
_DIVISOR = "add eps to the divisor, or clamp it away from zero; a where behind the division does not help"
_INSIDE = "clamp the argument strictly inside the domain, x.clamp(-1 + eps, 1 - eps)"
_RANGE = "its operands leave the range of the type: normalize or scale down what enters, or reduce the growth before it"
_UNKNOWN = "keep its operands away from where its value or its derivative is not finite"
_BY_OPERATOR = {
    **dict.fromkeys(("sqrt", "rsqrt", "norm", "linalg_norm", "linalg_vector_norm", "vector_norm", "cdist"), _EPS_INSIDE),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean", "dist", "pairwise_distance", "normalize"), _EPS_INSIDE),
    **dict.fromkeys(("exp", "expm1", "exp2", "sinh", "cosh", "logsumexp"), _EXPONENT),
    **dict.fromkeys(("div", "true_divide", "truediv", "divide", "reciprocal"), _DIVISOR),
    **dict.fromkeys(("acos", "asin", "atanh", "arccos", "arcsin", "arctanh", "erfinv", "logit"), _INSIDE),
    "softmax": "subtract the largest logit before the exponential, as torch.softmax does",
    "acosh": "clamp the argument above 1",
    "log1p": "clamp the operand above -1; for log(1 - p) take logsigmoid of minus what enters the sigmoid",
    "ctc_loss": "use zero_infinity=True, and check that no target is longer than its input, repeated labels counted twice",
    "binary_cross_entropy": "take binary_cross_entropy_with_logits on what enters the sigmoid",
}
_LOGARITHMS = frozenset({"log", "log2", "log10", "xlogy"})
_GROWING = frozenset(
    {"square", "pow", "mul", "matmul", "linear", "conv", "add", "sub", "sum", "mean", "loss", "bilinear", "prod"}
)


def guard(name: str, fault: Fault | None = None, *, squashed: str = "", backward: bool = False, product: bool = False) -> str:
    """Return what to do about an operator that makes NaN or infinity.

    Args:
        name: The name of the function.
        fault: Why it does, if that is known.
        squashed: "softmax" or "sigmoid" if it takes the result of one.
        backward: Whether only its gradient is not finite.
        product: Whether a product makes NaN of its infinity.
    """
    name = bare(name)
    if fault is not None and not (fault is Fault.QUOTIENT and name == "normalize"):
        return _BY_FAULT[fault]
    if name in _LOGARITHMS:
        return _LOG_IN_PRODUCT if product and squashed != "sigmoid" else _LOGS[squashed]
    if name == "pow":
        return _BASE if backward else _EXPONENT
    if is_matrix_function(name):
        return _BY_FAULT[Fault.SINGULAR]
    if name in _BY_OPERATOR:
        return _BY_OPERATOR[name]
    return _RANGE if name in _GROWING or by_torch(name).name in _GROWING else _UNKNOWN
