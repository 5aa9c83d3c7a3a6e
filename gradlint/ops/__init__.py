"""The operator vocabulary: one row per operator, shared by both front ends."""

from gradlint.ops.table import OPERATORS, UNKNOWN, Kind, Operator, by_onnx, by_torch, operator

__all__ = ["OPERATORS", "UNKNOWN", "Kind", "Operator", "by_onnx", "by_torch", "operator"]
