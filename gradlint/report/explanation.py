"""The explanation of one operator as text, the output of `gradlint explain`; it fits 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gradlint.predicted_growth import INTERVAL
from gradlint.report import printable
from gradlint.report.chart import picture
from gradlint.report.wording import decimal, short_path
from gradlint.theory.arithmetic.equations import Equation, shown

if TYPE_CHECKING:
    from gradlint.explain import Explanation
    from gradlint.graph import Node
    from gradlint.theory.arithmetic.derivation import BackwardFactor
    from gradlint.theory.recurrence.loops import Loop
from gradlint.theory.transfer.signal import Signal

_NO_MEAN = 1e-6  # relative to sqrt(q): a smaller mean is rounding error and is shown as 0
_LEAD = 12  # width of the left column


def render(explanations: Sequence[Explanation], *, width: int = 80, unicode: bool = False) -> str:
    """Return one block of text per operator, at most `width` characters wide."""
    return "\n".join("\n".join([*_block(item, width, unicode=unicode), ""]) for item in explanations)


def _block(item: Explanation, width: int, *, unicode: bool) -> Iterator[str]:
    node = item.node
    source = node.definition or node.source
    where = f"{short_path(source.file)}:{source.line}" if source else ""
    yield printable("   ".join(part for part in (node.id, node.op, node.module, where) if part))
    yield ""
    for role, text in _weights(node):
        yield from _wrapped(role, text, width)
    yield from _signals(item, width)
    yield ""
    if item.derivation.forward is None or item.predicted is None:
        yield from _wrapped("", "Theory does not follow it: it is no float signal that begins at an input.", width)
        return
    yield from _equation("forward", item.derivation.forward, "", width)
    yield from _wrapped("", _level(item), width)
    if item.predicted.backward is None:
        yield ""
        yield from _wrapped(
            "backward", "No gradient comes back to it: outputs that it does not lead to are where they start.", width
        )
    for back in item.derivation.backward:
        yield ""
        yield from _backward(item, back, width)
    if item.reasons and item.predicted.backward is not None:
        yield ""
        for lead, reason in zip(["interval", *[""] * len(item.reasons)], item.reasons, strict=False):
            yield from _wrapped(lead, reason, width)
    if item.derivation.source:
        yield from _wrapped("source", item.derivation.source, width)
    if item.loop is not None:
        yield ""
        yield from _wrapped("recurrence", _loop(item.loop), width)
    if item.stack is not None:
        yield ""
        yield from _wrapped("phase", str(item.stack), width)
        yield from (f"  {line.rstrip()}" for line in picture(item.stack.phase, unicode=unicode))


def _wrapped(lead: str, text: str, width: int) -> Iterator[str]:
    for line in textwrap.wrap(printable(text), max(width - _LEAD - 2, 30), break_on_hyphens=False):
        yield f"  {lead:<{_LEAD}}{printable(line)}"  # a line may begin in the middle of a word
        lead = ""


def _weights(node: Node) -> Iterator[tuple[str, str]]:
    for role, weight in node.weights.items():
        found = weight.statistics
        gain = f", gain {(weight.fan_in * found.mean_square) ** 0.5:.3g}" if len(weight.shape) > 1 and "bias" not in role else ""
        sizes = f"{weight.dtype}{list(weight.shape)}"
        yield role, f"{sizes}: mean {found.mean:.3g}, mean square {found.mean_square:.4g}{gain}"


def _signals(item: Explanation, width: int) -> Iterator[str]:
    """Yield a table of the signals before and after the operator: level, second moment q, mean, and shares of q.

    The shares are the part of q that two samples, and two positions, have in common.
    """
    rows = [("before", printable(name), signal) for name, signal in item.before]
    rows += [("behind", printable(item.node.id), item.behind)] if item.behind is not None else []
    if not rows:
        return
    longest = max(min(max(len(name) for _, name, _ in rows), width - 61), 8)
    yield f"  {'':<{longest + 39}}{'q shared by':>20}"
    yield f"  {'signal':<{longest + 10}}{'level':>8}{'q':>11}{'mean':>10}{'samples':>9}{'positions':>11}"
    for lead, name, signal in rows:
        cut = name if len(name) <= longest else f"..{name[2 - longest :]}"
        level, shares = _power(signal.level), _shares(signal)
        yield f"  {lead:<8}{cut:<{longest + 2}}{level:>8}{shown(signal.log_q):>11}{_mean(signal):>10}{shares}".rstrip()


def _mean(signal: Signal) -> str:
    if abs(signal.mean) < _NO_MEAN or not math.isfinite(signal.level):
        return "0"
    return "-" * (signal.mean < 0.0) + shown(signal.level + math.log10(abs(signal.mean)))


def _shares(signal: Signal) -> str:
    if not signal.shared:
        return ""
    positions = [axis for axis in range(1, len(signal.shared)) if axis != signal.channels and signal.sizes[axis] > 1]
    alike = f"{max(0.0, *(signal.shared[axis] for axis in positions)):>11.0%}" if positions else ""
    return f"{max(signal.shared[0], 0.0):>9.0%}{alike}"


def _power(decades: float | None) -> str:
    """Format a level or a gradient, given in decades, as a power of ten."""
    return "zero" if decades == -math.inf else f"10^{decimal(decades, 2)}"


def _equation(lead: str, equation: Equation, tail: str, width: int) -> Iterator[str]:
    """Yield formula, numbers and result of an equation. Numbers that equal the result are not repeated."""
    text, result = equation.numbers, shown(equation.result)
    if equation.formula == result:
        yield from _wrapped(lead, f"{result}{tail}", width)
        return
    yield from _wrapped(lead, equation.formula, width)
    if text != result:
        yield from _wrapped("", f"= {text}", width)
    yield from _wrapped("", f"= {result}{tail}", width)
    for factor, because in equation.beside:
        yield from _wrapped("", f"x {shown(factor)}: {because}", width)


def _level(item: Explanation) -> str:
    assert item.predicted is not None
    gains = item.gains.get(item.node.id)
    measured = f"; measured {_power(gains.forward)}" if gains is not None and gains.forward is not None else ""
    return f"level {_power(item.predicted.forward)}{_spread(item.predicted.forward_sd)}{measured}"


def _backward(item: Explanation, back: BackwardFactor, width: int) -> Iterator[str]:
    several = len(item.derivation.backward) > 1
    if several:
        yield from _wrapped("backward", f"to {back.operand}", width)
    yield from _equation(
        "" if several else "backward", back.factor, f", so the gradient x{shown(0.5 * back.factor.result)}", width
    )
    spread = _spread(item.predicted.backward_sd) if item.predicted is not None else ""
    names = (item.node.id, back.operand)
    behind, before = (_power(item.backward.get(name)) for name in names)
    yield from _wrapped("", f"from {behind}{spread} to {before}", width)
    found = [item.gains[name].backward for name in names if name in item.gains]
    if len(found) == len(names) and None not in found:
        yield from _wrapped("", f"measured: from {_power(found[0])} to {_power(found[1])}", width)
    if back.share is not None:
        yield from _wrapped("", f"{back.share:.0%} of the gradient at {back.operand} comes through here", width)


def _loop(loop: Loop) -> str:
    """Describe what the recurrent matrix does to a gradient over time."""
    known = ((loop.radius, "spectral radius {:.3g}"), (loop.norm, "largest singular value {:.3g}"))
    parts = [text.format(value) for value, text in known if value is not None]
    exponent, horizon = loop.lyapunov(), loop.horizon()
    if exponent is not None:
        parts.append(f"Lyapunov exponent {exponent:+.3g} a step (nats)")
    if horizon is not None:
        steps = "never" if math.isinf(horizon) else f"after {horizon:.0f} steps"
        parts.append(f"three decades {'gained' if (exponent or 0.0) > 0.0 else 'lost'} {steps}")
    return "; ".join(parts)


def _spread(deviation: float) -> str:
    return f" (+-{INTERVAL * deviation:.2f})" if INTERVAL * deviation >= 0.005 else ""
