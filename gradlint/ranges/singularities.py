"""Operators that break at a point, such as log at 0, and whether the range of their argument keeps them away from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from gradlint.graph import Graph, Node, Ref
from gradlint.masks import Masks
from gradlint.ops import activation, operator
from gradlint.ranges.case import Case, name_of
from gradlint.ranges.intervals import Interval, largest_of, smallest_of
from gradlint.ranges.propagation import cases

_NEAR = 1e-7  # relative distance to a point below which float32 hardly tells an argument from it
_CLOSE = 0.8  # share of the way to a point beyond which a measured argument reaches it within a few updates
_FAR = 6  # largest number of operators between a rectifier and a root
_KEEPERS = frozenset({"reshape", "cast", "sum", "mean", "max", "avg_pool", "max_pool", "dropout", "abs"})


@dataclass(frozen=True, slots=True)
class Singularity:
    """An operator whose argument may leave the range in which the operator is safe.

    Attributes:
        node: Id of the operator.
        operand: Id of the node that makes the argument, or "" if the argument is inside the operator.
        function: Name of the function.
        interval: Range of the argument.
        low: The argument is safe strictly above this.
        high: The argument is safe strictly below this.
        pole: Whether the operator breaks at an argument of 0.
        slope: Whether only the derivative breaks, and not the value.
        expected: Whether training plausibly brings the argument there. Otherwise the interval merely does not exclude it.
        tiny: Smallest positive normal number of the dtype of the argument.
        cancels: Whether the argument is a difference, which loses its digits long before it reaches `tiny`.
    """

    node: str
    operand: str
    function: str
    interval: Interval
    low: float = -math.inf
    high: float = math.inf
    pole: bool = False
    slope: bool = False
    expected: bool = False
    tiny: float = 2.0**-126
    cancels: bool = False

    @property
    def overflows(self) -> bool:
        """Whether the result overflows the range of its dtype, rather than leaving the domain of the function."""
        return math.isfinite(self.high) and math.isinf(self.low) and not self.pole

    @property
    def points(self) -> tuple[float, ...]:
        """Arguments at which the operator breaks, as far as they lie in the range of the argument."""
        if self.pole:
            return (0.0,)
        low = (self.low,) if math.isfinite(self.low) and self.interval.low <= self.low else ()
        return (*low, self.high) if math.isfinite(self.high) and self.interval.high >= self.high else low

    def nearness(self, low: float, high: float) -> float:
        """Return how far measured arguments in [low, high] have come to the point: 1 at the point, 0 at a distance of 1 or more.

        Distances are compared on a logarithmic scale, because an argument close to 0 is mostly an exponential of something that
        training changes at a constant rate: 1e-26 is two thirds of the way to the smallest float32. The scale ends at a
        relative distance of `_NEAR` for an argument whose digits cancel. The result is NaN if the arguments lie on both sides
        of a pole or are NaN.
        """
        if math.isnan(low) or math.isnan(high) or (self.pole and low < 0.0 < high):
            return math.nan
        if self.overflows:
            return max(high, 0.0) / self.high
        largest = max(abs(low), abs(high))
        if self.pole:
            return self._progress(min(abs(low), abs(high)), 0.0, largest)
        ways = [self._progress(low - self.low, self.low, largest)] if math.isfinite(self.low) else []
        return max(
            [*ways, self._progress(self.high - high, self.high, largest)] if math.isfinite(self.high) else ways, default=0.0
        )

    def _progress(self, distance: float, point: float, largest: float) -> float:
        if distance <= 0.0:
            return 1.0
        if point == 0.0 and not self.cancels:
            share = math.log(distance) / math.log(self.tiny)
        else:
            share = _CLOSE * math.log(distance / max(abs(point), largest if self.cancels else 0.0)) / math.log(_NEAR)
        return min(max(share, 0.0), 0.99)

    def hit(self, low: float, high: float) -> bool:
        """Return whether measured arguments in [low, high] include the point or a number next to it."""
        return self.nearness(low, high) >= (1.0 if self.slope else _CLOSE)


def singularities(graph: Graph, given: Mapping[str, Interval] = MappingProxyType({})) -> list[Singularity]:
    """Return the operators whose argument may reach a point at which they break, in execution order.

    A hand-written softmax that overflows is reported once, at its exponential, and not again at its denominator.

    Args:
        graph: The graph.
        given: Ranges by node id of inputs that come from another model, whose weights learn from the gradient of these inputs.
    """
    with_gradient, masks = _with_gradient(graph, given), Masks(graph).made
    found: list[Singularity] = []
    overflowing: set[str] = set()
    for case in cases(graph, given):
        node = case.node
        for item in _of(case):
            if node.id in masks:  # the log of a mask of zeros and ones, added to logits
                continue
            if item.slope and (item.operand not in with_gradient or "no-grad" in node.notes or _is_masked(case, item.operand)):
                continue  # no weight depends on a gradient that reaches the inputs alone
            if item.overflows and item.expected:
                overflowing.add(node.id)
            spared = item.interval.maker in overflowing or _is_guarded_twice(case, item)
            found.append(replace(item, expected=False) if spared and not item.overflows else item)
    return found


def _with_gradient(graph: Graph, given: Collection[str]) -> set[str]:
    """Return the ids of the nodes whose gradient reaches a trainable weight."""
    found = set(given)
    for node in graph:
        own = any(weight.trainable for weight in node.weights.values())
        if node.is_float and not operator(node.op).cuts and (own or any(parent.id in found for parent in graph.parents(node.id))):
            found.add(node.id)
    return found


def _is_masked(case: Case, operand: str) -> bool:
    """Return whether a rectifier before an operator removes its infinite slope.

    The derivative of the rectifier is zero wherever the operand is zero, if the operators between them return zero only for the
    zeros of the rectifier.
    """
    node = case.graph[operand]
    for _ in range(_FAR):
        function = activation(node.op, node.attrs)
        if function is not None and function.has_floor and operator(node.op).monotone:
            return name_of(node) != "Clip"  # which is clamp; before torch 2.14 it passes gradient at its ends
        refs = [ref for ref in node.inputs if ref is not None and case.graph[ref.node].is_float]
        keeps = node.op in _KEEPERS and "constant" not in node.attrs
        if not refs or not (keeps or node.op in {"mul", "div", "pow"}) or (not keeps and case.found[node.id].low != 0.0):
            return False
        if len(refs) > 1 and len(set(refs)) > 1:
            return False
        node = case.graph[refs[0].node]
    return False


def _of(case: Case) -> Iterator[Singularity]:
    find = _FINDERS.get(case.node.op)
    refs = [ref for ref in case.node.inputs if ref is not None]
    if find is None or not refs or not case.node.is_float or not case.graph[refs[0].node].is_float:
        return
    for item in find(case, refs):
        operand = case.graph[item.operand] if item.operand else case.node
        yield replace(item, tiny=smallest_of(operand.dtype), cancels=_cancels(case, item))


def _cancels(case: Case, item: Singularity) -> bool:
    """Return whether an argument is a difference, whose digits cancel near zero."""
    maker = item.interval.maker
    return (maker in case.graph and case.graph[maker].op == "sub") or (
        bool(item.operand) and case.producer(Ref(item.operand), "sub") is not None
    )


def _edge(case: Case, ref: Ref, low: float, *, slope: bool = False, function: str = "") -> Iterator[Singularity]:
    """Yield a singularity if an argument that must stay above `low` may reach it."""
    x = case.at(ref)
    if x.low <= low:
        yield Singularity(
            case.node.id, ref.node, function or case.node.op, x, low=low, slope=slope and x.low == low, expected=x.at_low
        )


def _logs(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    name = case.name
    if name == "xlogy":
        if len(refs) > 1:
            yield from _edge(case, refs[1], 0.0, slope=True, function="xlogy")
        return
    if name == "logit":
        x = case.at(refs[0])
        if "eps" not in case.node.attrs and (x.low <= 0.0 or x.high >= 1.0):
            expected = (x.low <= 0.0 and x.at_low) or (x.high >= 1.0 and x.at_high)
            yield Singularity(case.node.id, refs[0].node, "logit", x, low=0.0, high=1.0, expected=expected)
        return
    yield from _edge(case, refs[0], -1.0 if name == "log1p" else 0.0, function="log" if name == "Log" else name)


def _roots(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    maker = case.at(refs[0]).maker
    cancels = bool(maker) and case.graph[maker].op == "sub"  # a variance by subtraction, which rounding may make negative
    yield from _edge(case, refs[0], 0.0, slope=case.node.op == "sqrt" and not cancels)


def _quotients(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    inputs = case.node.inputs
    below = refs[0] if case.node.op == "reciprocal" else inputs[1] if len(inputs) > 1 else None
    if below is not None:
        yield from _pole(case, below, "1/x" if case.node.op == "reciprocal" else "division")


def _pole(case: Case, ref: Ref, function: str) -> Iterator[Singularity]:
    x = case.at(ref)
    if x.low <= 0.0 <= x.high:
        readers = case.graph.children(case.node.id)
        angle = bool(readers) and all(name_of(reader).lower() in {"atan", "arctan"} for reader in readers)
        expected = x.crosses_zero and (x.all_zero or not angle)  # the arctangent of a quotient is finite at the pole
        yield Singularity(case.node.id, ref.node, function, x, pole=True, expected=expected)


def _sums(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    if case.name == "addcdiv" and len(refs) > 2:
        yield from _pole(case, refs[2], "division")


def _powers(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    exponent = case.number("constant", "exponent")
    if case.node.inputs[0] is None:
        yield from _exponentials(case, refs)
    elif exponent is None:
        x = case.at(refs[0])
        if x.low < 0.0:  # at 0 torch defines the gradient of the exponent as 0
            yield Singularity(case.node.id, refs[0].node, "pow", x, low=0.0, slope=True, expected=x.at_low)
    elif exponent < 0.0 and exponent % 1.0 == 0.0:
        yield from _pole(case, refs[0], f"x**{exponent:g}")
    elif exponent % 1.0 != 0.0:
        x = case.at(refs[0])
        if x.low < 0.0 or exponent < 1.0:  # above 1 the slope at 0 is 0
            yield from _edge(case, refs[0], 0.0, slope=exponent > 0.0, function=f"x**{exponent:g}")


def _angles(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    name = case.name.lower().replace("arc", "a")
    x = case.at(refs[0])
    where = (case.node.id, refs[0].node)
    if name in {"acos", "asin", "atanh"} and (x.low <= -1.0 or x.high >= 1.0):
        expected = (x.low <= -1.0 and x.at_low) or (x.high >= 1.0 and x.at_high)
        inside = x.low >= -1.0 and x.high <= 1.0
        yield Singularity(*where, name, x, low=-1.0, high=1.0, slope=inside and name != "atanh", expected=expected)
    elif name == "acosh":
        yield from _edge(case, refs[0], 1.0, slope=True, function="acosh")
    elif name == "atan2" and len(refs) > 1:
        other = case.at(refs[1])
        if x.all_zero and other.all_zero and x.crosses_zero and other.crosses_zero:
            yield Singularity(*where, "atan2", x, pole=True, slope=True, expected=True)
    elif name == "tan":
        if max(abs(x.low), abs(x.high)) >= math.pi / 2 and x.high - x.low > 0.0:
            yield Singularity(*where, "tan", x, low=-math.pi / 2, high=math.pi / 2, expected=x.at_low and x.at_high)
    elif name in {"sinh", "cosh"}:
        yield from _exponentials(case, refs)


def _exponentials(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    node, x = case.node, case.at(refs[0])
    limit = math.log(largest_of(node.dtype))
    name = case.name if node.op in {"exp", "tan"} else "exp"
    if node.op == "pow":
        base = case.number("constant")
        if base is None or base <= 0.0 or base == 1.0:
            return
        limit /= abs(math.log(base))
        name, x = f"{base:g}**x", x if base > 1.0 else replace(x, low=-x.high, high=-x.low, at_low=x.at_high, at_high=x.at_low)
    elif case.name == "exp2":
        limit /= math.log(2.0)
    elif case.name.lower() in {"sinh", "cosh"}:
        limit += math.log(2.0)
        if x.largest > x.high:
            x = replace(x, low=-x.high, high=-x.low, at_low=x.at_high, at_high=x.at_low)
    if x.high >= limit:
        yield Singularity(node.id, refs[0].node, name.lower(), x, high=limit, expected=x.at_high)


def _softmaxes(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    """Yield singularities of a softmax that an ONNX graph composes without the shift by the maximum, or takes the log of."""
    if case.node.attrs.get("shifted") is False:
        yield from _exponentials(case, refs)
    elif case.node.attrs.get("fused") is False:
        between = Interval(0.0, 1.0, at_low=True, at_high=True, maker=case.node.id)
        apart = case.at(refs[0]).largest > 700.0
        yield Singularity(case.node.id, "", "log(softmax)", between, low=0.0, expected=apart)  # its argument is inside the node


def _variances(case: Case, refs: list[Ref]) -> Iterator[Singularity]:
    """Yield a singularity for the unbiased variance of one element, which is 0/0."""
    attrs = case.node.attrs
    biased = attrs.get("unbiased") is False or attrs.get("correction") == 0
    if case.count() == 1 and not biased:
        nothing = Interval(0.0, 0.0, at_low=True, at_high=True, all_zero=True, maker=case.node.id)
        yield Singularity(case.node.id, refs[0].node, f"unbiased {case.name} of one element", nothing, pole=True, expected=True)


def _is_guarded_twice(case: Case, item: Singularity) -> bool:
    """Return whether one condition selects both a safe argument before an operator and its result after it."""
    if not item.operand:
        return False
    before = case.graph[item.operand]
    readers = case.graph.children(case.node.id)
    if name_of(before).lower() not in {"where", "masked_fill"} or not readers:
        return False
    condition = _condition(before)
    return all(name_of(reader).lower() in {"where", "masked_fill"} and _condition(reader) == condition for reader in readers)


def _condition(node: Node) -> Ref | None:
    slot = 0 if name_of(node).lower() == "where" else 1
    return node.inputs[slot] if len(node.inputs) > slot else None


_FINDERS: Mapping[str, Callable[[Case, list[Ref]], Iterator[Singularity]]] = {
    "log": _logs,
    "sqrt": _roots,
    "rsqrt": _roots,
    "div": _quotients,
    "reciprocal": _quotients,
    "add": _sums,
    "pow": _powers,
    "tan": _angles,
    "exp": _exponentials,
    "softmax": _softmaxes,
    "log_softmax": _softmaxes,
    "var": _variances,
}
