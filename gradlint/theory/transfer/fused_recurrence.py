"""Transfer rule of fused recurrent layers, whose real cells are run on a white input; see `recurrence.cells`."""

from __future__ import annotations

from collections.abc import Sequence

from gradlint.ops import Kind
from gradlint.theory.recurrence.cells import CellResponse, respond
from gradlint.theory.transfer.rule import TRANSFER, Call, OperandCotangents, TransferResult, as_gaussian
from gradlint.theory.transfer.signal import Cotangent, CotangentTerm, Signal, joined

_LATE = 0.5  # share of the cotangent on the last tenth of the steps above which it counts as one on the last step alone


@TRANSFER.rule(Kind.RNN)
def recurrent(call: Call) -> TransferResult | None:
    """Return the transfer of a fused RNN, LSTM or GRU: the level of its output and the gradient factor to its input."""
    found = call.signals
    packed = call.node.attrs.get("batch_sizes")
    if not found or len(found[0][1].sizes) != (2 if packed else 3):
        return None
    slot, signal = found[0]
    time = int(call.node.attrs.get("time_axis", 0))
    batch = 0 if packed or time > 1 else 1 - time
    response = respond(
        call.node,
        level=signal.level,
        mean=signal.mean,
        over_time=signal.shared[time],
        over_batch=signal.shared[batch],
        steps=len(packed) if packed else signal.sizes[time],
    )
    if response is None:
        return None
    output = _output(call, signal, response, time)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        factor = _factor(response, cotangent, time)
        correlation = tuple(0.0 for _ in signal.sizes)
        yield slot, CotangentTerm(Cotangent(cotangent.energy + factor, correlation, cotangent.variance + response.sd**2))

    return TransferResult(output, back)


def _factor(response: CellResponse, cotangent: Cotangent, time: int) -> float:
    """Return log10 of the squared gradient factor for a cotangent with this profile over time."""
    profile = cotangent.profile.get(time)
    if profile is not None and profile[-max(profile.size // 10, 1) :].sum() > _LATE * profile.size:
        return response.last
    return response.factor_for(cotangent.correlation[time])


def _output(call: Call, signal: Signal, response: CellResponse, time: int) -> Signal:
    """Return the signal of the output sequence, which also stands for the final states, the other outputs of the operator."""
    last = len(signal.sizes) - 1
    known = len(call.sizes) == last + 1
    sizes = call.sizes if known else (*signal.sizes[:last], int(call.node.attrs.get("hidden_size", signal.sizes[last])))
    own = {time: response.over_time, 1 - time if time < 2 else 0: response.over_batch} if last == 2 else {}
    shared = tuple(own.get(axis, response.mean**2) for axis in range(last + 1))
    variance = signal.variance + response.level_sd**2
    return as_gaussian(
        signal, level=response.level, mean=response.mean, sizes=sizes, shared=shared, variance=variance, channels=last
    )
