"""`Call`: one ONNX node with its operands, while it is translated to a `gradlint.graph.Node`."""

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
    """An ONNX node with its operands, and the parts of the translated node.

    Attributes:
        node: The ONNX node.
        operands: One entry per input: a node output, a constant, or None for an input that is left out.
        version: The opset version of the node's domain.
        make_weight: A function of a constant, its axis of output units and whether it is trained, which makes a `Weight`.
        op, attrs, weights: As in `gradlint.graph.Node`; filled in during the translation.
    """

    node: onnx.NodeProto
    operands: list[Operand]
    version: int
    make_weight: Callable[[Constant, int, bool], Weight]
    op: str = "unknown"
    attrs: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)

    def constant(self, slot: int) -> Constant | None:
        """Return the operand in `slot` if it is a constant, otherwise None."""
        operand = self.operands[slot] if slot < len(self.operands) else None
        return operand if isinstance(operand, Constant) else None

    def float_constant(self, slot: int) -> Constant | None:
        """Return the operand in `slot` if it can be a weight: a float constant with an axis that is not empty. Otherwise None."""
        constant = self.constant(slot)
        return constant if constant is not None and constant.is_float and constant.shape and constant.size else None

    def add_weight(self, role: str, constant: Constant | None, out_axis: int = 0) -> None:
        """Add `constant` as the weight with this role. None is ignored."""
        if constant is not None:
            axis = min(out_axis, len(constant.shape) - 1)
            self.weights[role] = self.make_weight(constant, axis, role not in _STATISTICS)
