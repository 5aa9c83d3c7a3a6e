"""Formulas of operators that mix elements of one tensor, or of two: attention, matrix products, concatenation, means."""

from __future__ import annotations



def softmax(case: Case) -> Formulas | None:
    """A softmax."""
    if case.node.op == "log_softmax":
        return None
    axis = axis_of(case.node, ("dim", "axis"), len(case.behind.sizes), len(case.behind.sizes) - 1)
    sharp, length = concentration(case.first, axis), max(case.behind.sizes[axis], 1)
    first, second = number(sharp), below(length)
    kept = (number(1.0 - sharp), number(1.0 - case.alike(axis)))
    return Formulas(
        Equation("q' = S / T, S = E sum A^2 = 1 / (1 + (T-1) exp(-s^2))", ((first, second),)),
        (Equation("S (1-S) (1-r) / T, r what gradients share along it", ((first, *kept, second),)),),
        _ATTENTION,
    )


def attend(case: Case) -> Formulas | None:
    """Scaled dot-product attention as one operator."""
    found = dict(case.call.signals)
    if not {0, 1, 2} <= set(found) or len(found[2].shared) < 2:
        return None
    value, logits = found[2], found[0].log_q + found[1].log_q + log10(found[0].sizes[-1])
    del logits
    share = max(value.shared[-2], 0.0)
    sharp = max((10.0 ** (case.behind.log_q - value.log_q) - share) / max(1.0 - share, 1e-12), 0.0)
    forward = Equation(
        "q' = q_v r + q_v (1-r) S, r what tokens share, S = E sum A^2",
        ((Number(value.log_q), number(share)), (Number(value.log_q), number(1.0 - share), number(sharp))),
    )
    logit = _simulated("through the softmax of the logits")
    return Formulas(forward, (logit, logit, _simulated("through the averages that it enters")), _ATTENTION)


def _simulated(what: str) -> Equation:
    return Equation(what, ((number(1.0),),), "as the transfer rule of the operator says")


def product(case: Case) -> Formulas | None:
    """A matrix product of two signals."""
    found = case.call.signals
    if len(found) != 2 or len(found[0][1].sizes) < 2 or len(found[1][1].sizes) < 2 or case.node.attrs.get("equation"):
        return None
    left, right = (Number(signal.log_q) for _, signal in found)
    length, rows, columns = found[0][1].sizes[-1], case.behind.sizes[-2], case.behind.sizes[-1]
    together = "what the terms of a sum have in common"
    sides = (
        Equation("n q2, n columns each row meets", ((number(columns), right),), together),
        Equation("n q1, n rows each column meets", ((number(rows), left),), together),
    )
    scaled = tuple(replace(side, terms=((*side.terms[0], number(length), below(side_length)),)) for side, side_length in ())
    del scaled
    return Formulas(Equation("q' = n q1 q2, n terms in a sum", ((number(length), left, right),), together), sides, _ATTENTION)


def concat(case: Case) -> Formulas | None:
    """Tensors side by side."""
    found = case.call.signals
    whole = sum(signal.size for _, signal in found)
    if not whole or whole != case.behind.size:
        return None
    shares = [number(signal.size / whole) for _, signal in found]
    terms = tuple((share, Number(signal.log_q)) for share, (_, signal) in zip(shares, found, strict=True))
    return Formulas(
        Equation("q' = the mean of q by size", terms), tuple(Equation("its share of the size", ((share,),)) for share in shares)
    )


def pool(case: Case) -> Formulas | None:
    """An average over windows."""
    signal = case.first
    if case.node.op in {"upsample", "max_pool"} or len(signal.sizes) != len(case.behind.sizes):
        return None
    window = window_of(case.node, signal.sizes, case.behind.sizes)
    axes = [axis for axis, size in enumerate(window) if size > 1]
    return _mean(signal, math.prod(window), averaged(window, signal.shared, axes))


def reduce(case: Case) -> Formulas | None:
    """A mean or a sum over axes."""
    signal = case.first
    axes = reduced_axes(case.node, signal.sizes, case.behind.sizes)
    count = math.prod(signal.sizes[axis] for axis in axes)
    name = str(case.node.attrs.get("name", case.node.op)).lower()
    if case.node.op not in {"mean", "sum"} or name not in {"mean", "sum", "reducemean", "reducesum", "globalaveragepool"}:
        return None
    return _mean(signal, count, averaged(signal.sizes, signal.shared, axes), total=case.node.op == "sum")


def _mean(signal: Signal, count: int, share: float, *, total: bool = False) -> Formulas:
    """Means of `count` elements that keep `share` of q; sums are as many times larger."""
    common = number(min(max((share * count - 1.0) / (count - 1.0), 0.0), 1.0)) if count > 1 else number(1.0)
    other = number(1.0 - 10.0**common.log)
    k, q = number(count), Number(signal.log_q)
    over = replace(k, divides=True)
    if total:
        return Formulas(
            Equation("q' = k q (1-r) + k^2 q r, k elements, r what they share", ((k, q, other), (k, k, q, common))),
            (Equation("k", ((k,),), "as theory counts gradients: per element of the operand"),),
        )
    forward = Equation("q' = q (1-r) / k + q r, k elements, r what they share", ((q, other, over), (q, common)))
    return Formulas(forward, (Equation("1 / k", ((over,),), "windows that overlap"),))


