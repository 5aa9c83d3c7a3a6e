"""One ONNX node with its operands, while it is being translated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx

from gradlint.frontends.onnx.constants import Constant
from gradlint.graph import Ref, Weight

_STATISTICS = ("running_mean", "running_var")
Operand = Ref | Constant | None


@dataclass
class Call:
    """A node with its operands, and what is found out about it: `op`, `attrs` and `weights` as in `gradlint.graph.Node`."""

    node: onnx.NodeProto
    operands: list[Operand]
    version: int
    make_weight: Callable[[Constant, int, bool], Weight]
    op: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)

    def constant(self, slot: int) -> Constant | None:
        """The operand in `slot` when it is constant and there."""
        operand = self.operands[slot] if slot < len(self.operands) else None
        return operand if isinstance(operand, Constant) else None

    def matrix(self, slot: int) -> Constant | None:
        """The operand in `slot` when it can be a weight: constant, floating, of at least one dimension, not empty."""
        constant = self.constant(slot)
        return constant if constant is not None and constant.is_float and constant.shape and constant.size else None

    def add_weight(self, role: str, constant: Constant | None, out_axis: int = 0) -> None:
        """Give the constant the role, when there is one."""
        if constant is not None:
            axis = min(out_axis, len(constant.shape) - 1)
            self.weights[role] = self.make_weight(constant, axis, role not in _STATISTICS)
