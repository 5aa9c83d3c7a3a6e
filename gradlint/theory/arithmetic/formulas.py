"""Formulas of weight layers, normalization and pointwise operators, with the numbers of the model inserted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradlint.graph import Node, Weight
from gradlint.ops import Dispatch, Kind
from gradlint.theory.arithmetic.equations import Equation, Number, Term, below, number
from gradlint.theory.gaussian.functions import function_of
from gradlint.theory.gaussian.pointwise_of_gaussian import apply, expect
from gradlint.theory.transfer import fluctuation
from gradlint.theory.transfer.norms import statistics_of
from gradlint.theory.transfer.rule import Call, log10, mean_of, mean_square
from gradlint.theory.transfer.signal import Cotangent, Signal, averaged, log_sum

_HE = "He, Zhang, Ren, Sun 2015, arXiv 1502.01852"
_MEAN_FIELD = "Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232"
_BATCH_NORM = "Yang et al. 2019, arXiv 1902.08129"
_OTHER_NORM = "Doshi, He, Gromov 2021, arXiv 2111.12143"
_RESIDUAL = "Zhang, Dauphin, Ma 2019, arXiv 1901.09321"
_EPS = 1e-5
_DEPENDENT = "what the factors have in common"
_KNOWS = "the gradient is not independent of the signal"


@dataclass(frozen=True, slots=True)
class Case:
    """One operator with the signals of its operands and its output, and the cotangent of its output."""

    call: Call
    output: Signal
    cotangent: Cotangent | None

    @property
    def node(self) -> Node:
        """The operator."""
        return self.call.node

    @property
    def first(self) -> Signal:
        """The first operand that is a signal."""
        return self.call.signals[0][1]

    def weight(self, *roles: str) -> Weight | None:
        """Return the first weight that has one of these roles, or None."""
        return next((self.node.weights[role] for role in roles if role in self.node.weights), None)

    def correlation(self, axis: int) -> float:
        """Return the correlation of the gradients of two elements along an axis."""
        return self.cotangent.correlation[axis] if self.cotangent is not None else 0.0


@dataclass(frozen=True, slots=True)
class Formulas:
    """Equations of one operator.

    Attributes:
        forward: The second moment of the output.
        backward: The squared gradient factor to each operand that is a signal, or one factor for all of them.
        source: The paper that derives the formulas, or "".
        random: Whether the only uncertainty of the gradient factor is its variation over draws of the weights.
    """

    forward: Equation
    backward: tuple[Equation, ...] = ()
    source: str = ""
    random: bool = False


FORMULAS: Dispatch[Callable[[Case], Formulas | None]] = Dispatch()
"""The formulas of operators. A formula returns None for an application that it does not cover."""


# weights ----------------------------------------------------------------------------------------------------------------


@FORMULAS.rule(Kind.LINEAR, Kind.CONV)
def layer(case: Case) -> Formulas | None:
    """Return the formulas of a linear layer or a convolution."""
    weight = case.weight("weight")
    if weight is None or len(weight.shape) < 2:
        return None
    fan, square, signal = _fan(case, weight), number(mean_square(weight)), case.first
    mean = mean_of(weight) * signal.mean
    aligned = fan * max(fan - 1.0, 0.0) * mean * mean
    terms: list[Term] = [(number(fan), square, Number(signal.log_q))]
    formula = "q' = n E[W^2] q"
    if aligned > 0.0:
        terms.append((number(fan), number(fan - 1.0), number(mean * mean), Number(signal.log_q)))
        formula += " + n (n-1) E[W]^2 m^2 q"
    terms.append((number(mean_square(case.weight("bias"))),))
    because = "padding, and rows of W of unlike size" if len(weight.shape) > 2 else "rows of W of unlike size"
    forward = Equation(f"{formula} + E[b^2]", tuple(terms), because, typical=_typical(case, terms))
    backward = Equation("n E[W^2]", ((number(fan), square),), _beside(case, weight))
    return Formulas(forward, (backward,), _HE, random=True)


def _beside(case: Case, weight: Weight) -> str:
    """Return the reasons for which the gradient factor of a layer may differ from n E[W^2]."""
    cotangent, mean = case.cotangent, mean_of(weight)
    if cotangent is None:
        return ""
    reasons = {
        _KNOWS: mean == 0.0,
        "what gradients of the units share meets the mean of W": mean != 0.0,
        "padding": len(weight.shape) > 2,
        "rows of W of unlike size": bool(cotangent.profile),
        "the norm behind divides by the size of the rows": bool(cotangent.projected_out),
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def _typical(case: Case, terms: Sequence[Term]) -> float:
    """Return the log10 correction for the mean square over finitely many inputs; 0 if channels are propagated one by one."""
    whole, *others = (sum(item.power for item in term) for term in terms)
    if case.output.means is not None or not math.isfinite(whole):
        return 0.0
    taken = fluctuation.shift(fluctuation.of_square(case.first.distribution_at(""), case.first.sizes))
    return log_sum([whole + taken, *others]) - log_sum([whole, *others])


def _fan(case: Case, weight: Weight) -> float:
    """Return the number of inputs that one output sums; for a transposed convolution, the mean over outputs."""
    if case.node.op != "conv_transpose":
        return float(weight.fan_in)
    axis = len(case.output.sizes) - len(weight.shape) + 1
    spread = math.prod(old / new for old, new in zip(case.first.sizes[axis + 1 :], case.output.sizes[axis + 1 :], strict=True))
    groups = max(int(case.node.attrs.get("groups", case.node.attrs.get("group", 1))), 1)
    return case.first.sizes[axis] / groups * math.prod(weight.shape[2:]) * spread


@FORMULAS.rule(Kind.NORM)
def norm(case: Case) -> Formulas | None:
    """Return the formulas of a normalization on the statistics of its input, or of a BatchNorm on running statistics."""
    node, signal = case.node, case.first
    gamma, beta = number(mean_square(case.weight("scale"), 1.0)), number(mean_square(case.weight("bias")))
    eps = float(node.attrs.get("eps", node.attrs.get("epsilon", _EPS)) or 0.0)
    running = node.op == "batch_norm" and not node.attrs.get("training", case.call.training) and "running_var" in node.weights
    if running:
        variance = number(float(np.mean(node.weights["running_var"].array())) + eps)
        offset = number(_mean_term(case, eps))
        divisor = replace(variance, divides=True)
        forward = Equation(
            "q' = g^2 q / (v + eps) + g^2 m^2 / (v + eps) + b^2, v and m as stored",
            ((gamma, Number(signal.log_q), divisor), (offset,), (beta,)),
            "channels of unlike size",
        )
        return Formulas(forward, (Equation("g^2 / (v + eps)", ((gamma, divisor),), forward.because),), _BATCH_NORM)
    over = statistics_of(case.call, signal)
    if over is None or node.op in {"l2_normalize", "local_response_norm"}:
        return None
    common = averaged(over.sizes, signal.shared, over.axes) if over.centered else 0.0
    varying = Number(signal.log_q + log10(max(1.0 - common, 1e-9)))
    power = Number(max(varying.log, log10(eps)) + math.log10(1.0 + 10.0 ** -abs(varying.log - log10(eps)))) if eps else varying
    divisor = replace(power, divides=True)
    name = "v" if over.centered else "q"
    forward = Equation(f"q' = g^2 {name} / ({name} + eps) + b^2", ((gamma, varying, divisor), (beta,)), "units of unlike size")
    lost = "what lies along the mean and the signal falls out, and v fluctuates"
    backward = Equation(f"g^2 / ({name} + eps)", ((gamma, divisor),), lost)
    return Formulas(forward, (backward,), _BATCH_NORM if node.op == "batch_norm" else _OTHER_NORM)


def _mean_term(case: Case, eps: float) -> float:
    mean = case.weight("running_mean")
    if mean is None:
        return 0.0
    variance = np.asarray(case.node.weights["running_var"].array(), dtype=np.float64) + eps
    values = np.square(np.asarray(mean.array(), dtype=np.float64)) / np.maximum(variance, 1e-30)
    return float(values.mean()) * mean_square(case.weight("scale"), 1.0)


# pointwise --------------------------------------------------------------------------------------------------------------


@FORMULAS.rule(Kind.ACTIVATION, Kind.MATH, "neg")
def function(case: Case) -> Formulas | None:
    """Return the formulas of a function of one tensor."""
    function, signal = function_of(case.node), case.first
    if function is None:
        return None
    moved = apply(function, signal.distribution_at(case.call.ref(case.call.signals[0][0]).node))
    slope = log10(expect(moved.slope * moved.slope)) + moved.log_factor if np.isfinite(moved.slope).all() else math.nan
    if not (moved.distribution.finite and math.isfinite(slope)):
        return None
    kind = "Gaussian" if signal.distribution is None else "a function of a Gaussian"
    name = case.node.op
    forward = Equation(
        f"q' = E {name}(z)^2, z {kind} with E z^2 = q, E z = m",
        ((Number(2.0 * moved.distribution.level),),),
        "units of unlike size",
    )
    backward = Equation(f"E {name}'(z)^2", ((Number(slope),),), _KNOWS)
    return Formulas(forward, (backward,), _MEAN_FIELD, random=True)


@FORMULAS.rule(Kind.ADD)
def add(case: Case) -> Formulas | None:
    """Return the formulas of a sum of signals, or of a signal and a weight or constant."""
    found = case.call.signals
    if len(found) < 2:
        weight = next(iter(case.node.weights.values()), None)
        if weight is None and isinstance(case.node.attrs.get("constant"), (int, float)):
            return function(case)
        terms: tuple[Term, ...] = ((Number(case.first.log_q),), (number(mean_square(weight)),))
        return Formulas(Equation("q' = q + E[b^2]", terms, "means of one sign"), (_one(),))
    scale = case.node.attrs.get("alpha")
    alpha = number(float(scale) ** 2 if isinstance(scale, (int, float)) else 1.0)
    scales: list[Term] = [(), *([(alpha,)] * (len(found) - 1) if alpha.log else [()] * (len(found) - 1))]
    summands: tuple[Term, ...] = tuple((*scaled, Number(signal.log_q)) for scaled, (_, signal) in zip(scales, found, strict=True))
    formula = "q' = " + " + ".join(f"{'a^2 ' * bool(scaled)}q{index}" for index, scaled in enumerate(scales, 1))
    factors = tuple(Equation("a^2", ((alpha,),), _BROADCAST) if scaled else _one(_BROADCAST) for scaled in scales)
    return Formulas(Equation(formula, summands, "means, and what the summands have in common"), factors, _RESIDUAL)


_BROADCAST = "the operand is broadcast, and its copies' gradients add"


def _one(because: str = _BROADCAST) -> Equation:
    return Equation("1", ((number(1.0),),), because)


@FORMULAS.rule(Kind.MUL)
def multiply(case: Case) -> Formulas | None:
    """Return the formulas of a product or quotient."""
    found = case.call.signals
    if len(found) == 2 and case.node.op != "div":
        left, right = (Number(signal.log_q) for _, signal in found)
        sides = (Equation("q2", ((right,),), _DEPENDENT), Equation("q1", ((left,),), _DEPENDENT))
        return Formulas(Equation("q' = q1 q2", ((left, right),), _DEPENDENT), sides)
    if len(found) == 2:
        left, right = (Number(signal.log_q) for _, signal in found)
        under = replace(right, divides=True)
        because = "what varies of the divisor, and " + _DEPENDENT
        sides = (Equation("1 / q2", ((under,),), because), Equation("q1 / q2^2", ((left, under, under),), because))
        return Formulas(Equation("q' = q1 / q2", ((left, under),), because), sides)
    weight, constant = next(iter(case.node.weights.values()), None), case.node.attrs.get("constant")
    signal = Number(case.first.log_q)
    if weight is not None and case.node.op == "mul":
        second, because = number(mean_square(weight)), "units of unlike size"
        return Formulas(Equation("q' = E[s^2] q", ((second, signal),), because), (Equation("E[s^2]", ((second,),), because),))
    if isinstance(constant, (int, float)) and constant and (case.node.op == "mul" or case.node.inputs[0] is not None):
        factor = replace(number(float(constant) ** 2), divides=case.node.op == "div")
        formula = "q / c^2" if factor.divides else "c^2 q"
        return Formulas(Equation(f"q' = {formula}", ((signal, factor),)), (Equation(formula.replace("q", "1"), ((factor,),)),))
    return None


@FORMULAS.rule(Kind.DROPOUT)
def dropout(case: Case) -> Formulas:
    """Return the formulas of dropout."""
    active = bool(case.node.attrs.get("training", case.node.attrs.get("train", case.call.training)))
    keep = below(1.0 - float(case.node.attrs.get("p", 0.0)) if active else 1.0)
    return Formulas(
        Equation("q' = q / (1-p)", ((Number(case.first.log_q), keep),)), (Equation("1 / (1-p)", ((keep,),)),), _MEAN_FIELD
    )
