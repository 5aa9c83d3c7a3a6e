"""Transfer rule of fused recurrent layers: the real cells are run on a white input (theory/cells.py)."""

from __future__ import annotations

from collections.abc import Sequence

from gradlint.theory.cells import CellResponse, respond
from gradlint.theory.signal import Cotangent, Pull, Signal, joined
from gradlint.theory.transfer import Call, Moved, Pulls, plain

_LATE = 0.5  # share of the cotangent on the last tenth of the steps from where on it counts as sitting on the last step


def recurrent(call: Call) -> Moved | None:
    """A fused RNN, LSTM or GRU: level of its output, and the gradient that comes back to its input."""
    found = call.signals
    if not found or len(found[0][1].sizes) != 3:
        return None
    slot, signal = found[0]
    time = int(call.node.attrs.get("time_axis", 0))
    batch = 1 - time if time < 2 else 0
    response = respond(
        call.node,
        level=signal.level,
        mean=signal.mean,
        over_time=signal.shared[time],
        over_batch=signal.shared[batch],
        steps=signal.sizes[time],
    )
    if response is None:
        return None
    behind = _output(call, signal, response, time)

    def back(pulls: Sequence[Pull]) -> Pulls:
        cotangent = joined(pulls, behind)
        factor = _factor(response, cotangent, time)
        alike = tuple(0.0 for _ in signal.sizes)
        yield slot, Pull(Cotangent(cotangent.energy + factor, alike, cotangent.variance + response.sd**2))

    return Moved(behind, back)


def _factor(response: CellResponse, cotangent: Cotangent, time: int) -> float:
    """log10 of the squared factor for a cotangent that sits where its profile says."""
    profile = cotangent.profile.get(time)
    if profile is not None and profile[-max(profile.size // 10, 1) :].sum() > _LATE * profile.size:
        return response.last
    return response.factor_for(cotangent.alike[time])


def _output(call: Call, signal: Signal, response: CellResponse, time: int) -> Signal:
    """The output sequence; final states, which are other outputs of the operator, are taken for it."""
    sizes = call.sizes if len(call.sizes) == 3 else (*signal.sizes[:2], int(call.node.attrs.get("hidden_size", signal.sizes[2])))
    batch = 1 - time if time < 2 else 0
    own = {time: response.over_time, batch: response.over_batch}
    shared = tuple(own.get(axis, response.mean**2) for axis in range(3))
    variance = signal.variance + response.level_sd**2
    return plain(signal, level=response.level, mean=response.mean, sizes=sizes, shared=shared, variance=variance, channels=2)
