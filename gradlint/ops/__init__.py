"""The operator vocabulary: one row per operator, shared by both front ends and read by everybody who asks what one is like."""

from gradlint.ops.dispatch import Dispatch
from gradlint.ops.operator import Kind, Operator, Spelling
from gradlint.ops.pointwise import Pointwise, derivative, with_slope
from gradlint.ops.table import OPERATORS, UNKNOWN, activation, attributes_of, by_nonlinearity, by_onnx, by_torch, operator

__all__ = [
    "OPERATORS",
    "UNKNOWN",
    "Dispatch",
    "Kind",
    "Operator",
    "Pointwise",
    "Spelling",
    "activation",
    "attributes_of",
    "by_nonlinearity",
    "by_onnx",
    "by_torch",
    "derivative",
    "operator",
    "with_slope",
]
