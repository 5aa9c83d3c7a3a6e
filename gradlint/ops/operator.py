"""What the vocabulary knows of one operator: its names, its kind and, of a function of one tensor, what it looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from gradlint.ops.pointwise import Pointwise

Attributes = Mapping[str, Any]
Kernel = Callable[..., Any] | str
"""What computes an ONNX operator on torch tensors: the dotted name of a function of torch that takes one tensor, or a function.

The function takes the module torch, so that nothing here imports it, then the inputs, and by keyword the ONNX attributes with
the defaults of the specification.
"""


class Kind(StrEnum):
    """What an operator does to a signal; structure and rules speak of kinds, theory of operators."""

    INPUT = "input"
    LINEAR = "linear"  # a weight layer: mixes units with a weight
    MATMUL = "matmul"  # mixes two activations
    CONV = "conv"
    NORM = "norm"
    ACTIVATION = "activation"
    SOFTMAX = "softmax"
    ATTENTION = "attention"
    RNN = "rnn"
    DROPOUT = "dropout"
    ADD = "add"
    MUL = "mul"
    MATH = "math"  # pointwise, not an activation, possibly singular
    EMBEDDING = "embedding"
    CONCAT = "concat"
    POOL = "pool"
    REDUCE = "reduce"
    SHAPE = "shape"  # moves, copies or selects elements
    CUT = "cut"  # no gradient passes
    LOSS = "loss"
    CONTROL = "control"
    UNKNOWN = "unknown"


class Spelling(NamedTuple):
    """How exporters spell a function with other operators.

    Attributes:
        at: Canonical names of operators. Every spelling contains at least one of them.
        within: Largest difference from the function on [-7.3, 5.6].
    """

    at: tuple[str, ...]
    within: float = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """A row of the vocabulary. Attributes after `onnx` describe functions of one tensor; `tests/ops` checks them against torch.

    Attributes:
        name: Canonical name.
        kind: Effect on a signal.
        torch: Names of torch and aten functions; see `table`.
        onnx: ONNX op types, without their domains.
        function: Value, derivative and kinks, or a function that makes them from the attributes of a node.
        parameters: Attributes in torch and in ONNX that `function` reads.
        kernels: Functions that compute it on torch tensors, by op type; "domain::type" outside the default domain.
        monotone: Whether it never decreases.
        shrinks: Whether its value lies between 0 and its argument.
        bounded: Whether its values are bounded.
        rectifier: Whether it passes positive inputs nearly unchanged and nearly nothing of negative inputs.
        dead: Where a unit passes no gradient: "below", at the value for the most negative inputs; at both "ends"; or "", nowhere.
        ends: These two values. None if attributes set them.
        final: Whether it turns logits into a prediction at the end of a model.
        learned: Attribute that a weight of the operator replaces.
        clip: Limits of the ONNX Clip that it is exported as.
        spelling: How it is exported if ONNX has no such operator.
    """

    name: str
    kind: Kind
    torch: tuple[str, ...] = ()
    onnx: tuple[str, ...] = ()
    function: Pointwise | Callable[[Attributes], Pointwise] | None = None
    parameters: tuple[str, ...] = ()
    kernels: Mapping[str, Kernel] = field(default_factory=lambda: MappingProxyType({}))
    monotone: bool = True
    shrinks: bool = False
    bounded: bool = False
    rectifier: bool = False
    dead: Literal["", "below", "ends"] = ""
    ends: tuple[float, float] | None = None
    final: bool = False
    learned: str = ""
    clip: tuple[float, float] | None = None
    spelling: Spelling | None = None

    @property
    def cuts(self) -> bool:
        """Whether the operator's output carries no gradient to its input."""
        return self.kind is Kind.CUT

    @property
    def saturates(self) -> bool:
        """Whether the operator is an activation that saturates for large inputs of both signs."""
        return self.kind is Kind.ACTIVATION and self.bounded and not self.rectifier

    @property
    def is_unbounded(self) -> bool:
        """Whether the operator is an activation with unbounded values."""
        return self.kind is Kind.ACTIVATION and self.function is not None and not self.bounded

    @property
    def kinks(self) -> tuple[float, ...]:
        """Points at which the function with default attributes is not smooth."""
        function = self.of({})
        return () if function is None else function.kinks

    @property
    def steepest(self) -> float:
        """Largest slope of the function with default attributes, or 1 for an operator without a function."""
        function = self.of({})
        return 1.0 if function is None else float(np.max(function.slope(np.arange(-2000, 2001) / 100.0)))

    def of(self, attrs: Attributes) -> Pointwise | None:
        """Return the function with the attributes of a node, or None for an operator that is not a function of one tensor."""
        return self.function if self.function is None or isinstance(self.function, Pointwise) else self.function(attrs)
