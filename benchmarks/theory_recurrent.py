"""Predicted growth of recurrences against the measured one: tanh and ReLU RNNs, LSTMs and GRUs, over gain and width.

Recurrent matrices are Gaussian or orthogonal, each gate scaled by the gain; input weights and biases are torch's. Each is
measured twice: by autograd in double precision, and by gradlint's probe, in single precision as a training would be. Prints a row
per model as soon as it is measured, then a summary: the errors of the growth per time step, in decades per step, and of the
gradient between output and input sequence, in decades, with the milliseconds of a prediction. "seeds" is how far single
measurements are from their median, "step" the exponent of the loop, "step, node" that of the cheaper run that the prediction of a
graph pays for.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from common import Rows, parser
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from gradlint.frontends.targets import Target
from gradlint.load import load
from gradlint.structure import Structure
from gradlint.theory.recurrence.cells import CellResponse, respond
from gradlint.theory.recurrence.loops import Loop, loops

BATCH = 8
SEEDS = 3
KINDS = {
    "rnn tanh": lambda width: nn.RNN(width, width),
    "rnn relu": lambda width: nn.RNN(width, width, nonlinearity="relu"),
    "lstm": lambda width: nn.LSTM(width, width),
    "gru": lambda width: nn.GRU(width, width),
}
FULL = (32, 64, 128, 256, 512), (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0), 100  # widths, gains, steps
QUICK = (32, 128), (0.75, 1.5, 3.0), 50
COLUMNS = ("seeds", "step", "step, probe", "step, node", "steady", "last step", "every step", "level")


class LastStep(nn.Module):
    """A recurrence read at its last step."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """From (time, batch, inputs) to (batch, hidden)."""
        found: Tensor = self.body(x)[0][-1]
        return found


@dataclass(frozen=True)
class Measured:
    """Growth per step over the sequence and over its steady middle, factors in decades, and level of the output."""

    step: float
    steady_step: float
    last: float
    independent: float
    level: float
    seeds: float


def build(kind: str, width: int, gain: float, draw: str, seed: int) -> nn.Module:
    """A recurrence whose recurrent matrices have the gain."""
    torch.manual_seed(seed)
    model = KINDS[kind](width)
    for name, weight in model.named_parameters():
        if name.startswith("weight_hh"):
            for gate in weight.detach().split(width):
                if draw == "orthogonal":
                    nn.init.orthogonal_(gate, gain)
                else:
                    nn.init.normal_(gate, std=gain / math.sqrt(width))
    return model


def by_autograd(model: nn.Module, steps: int, width: int) -> Measured:
    """Medians over seeds, in double precision."""
    model = model.double()
    found = [_once(model, torch.randn(steps, BATCH, width, dtype=torch.double)) for _ in range(SEEDS)]
    model.float()
    middle = [median(values) for values in zip(*found, strict=True)]
    return Measured(*middle, max(abs(values[0] - middle[0]) for values in found))


def _once(model: nn.Module, x: Tensor) -> tuple[float, ...]:
    x.requires_grad_()
    y = model(x)[0]
    everywhere = torch.randn_like(y)
    at_end = torch.zeros_like(y)
    at_end[-1] = torch.randn_like(y[-1])
    squares = []
    for cotangent in (everywhere, at_end):
        (gradient,) = torch.autograd.grad(y, x, cotangent, retain_graph=True)
        squares.append(gradient.square().sum((1, 2)).numpy() / cotangent.square().sum().item())
    logs = np.log10(np.maximum(squares[1][::-1], 1e-300))
    logs = logs[: int(np.argmax(logs < -290)) or logs.size]
    size = logs.size
    return (
        _slope(logs),
        _slope(logs[size // 3 : size - size // 4]),
        0.5 * math.log10(squares[1].sum()),
        0.5 * math.log10(squares[0].sum()),
        0.5 * math.log10(y.detach().square().mean().item()),
    )


def _slope(logs: np.ndarray) -> float:
    return 0.5 * float(np.polyfit(np.arange(logs.size), logs, 1)[0])


def by_probe(model: nn.Module, steps: int, width: int) -> tuple[Loop, float | None]:
    """The recurrence that gradlint sees, and the growth per step that its probe measures."""
    loaded = load(Target(LastStep(model), (torch.randn(steps, BATCH, width),), {}))
    measurement = loaded.measure(seeds=SEEDS, seed=0, progress=lambda _: None)
    (loop,) = loops(Structure(loaded.graph_of()))
    return loop, next((item.growth.per_step for item in measurement.time), None)


def errors(node: CellResponse, loop: CellResponse, measured: Measured, probed: float | None) -> Iterator[tuple[str, float]]:
    """Predicted minus measured, by column; what the probe could not hold in single precision is left out."""
    yield "seeds", measured.seeds
    yield "step", loop.step - measured.step
    if probed is not None and measured.last < 15.0 and measured.level < 15.0:
        yield "step, probe", loop.step - probed
    yield "step, node", node.step - measured.step
    yield "steady", loop.steady_step - measured.steady_step
    yield "last step", 0.5 * node.last - measured.last
    yield "every step", 0.5 * node.independent - measured.independent
    yield "level", node.level - measured.level


def compared(model: nn.Module, steps: int, width: int) -> tuple[float, dict[str, float]]:
    """Growth per step, and the errors by column; "ms" is the time of a prediction, "inside" whether its interval holds."""
    measured = by_autograd(model, steps, width)
    loop, probed = by_probe(model, steps, width)
    start = time.process_time()
    predicted = respond(loop.cell, level=0.0, steps=steps)
    spent = 1e3 * (time.process_time() - start)
    longer = loop.response(steps)
    assert predicted is not None
    assert longer is not None
    found = dict(errors(predicted, longer, measured, probed))
    return measured.step, found | {"ms": spent, "inside": float(abs(found["every step"]) <= 1.645 * predicted.sd)}


def summary(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """The errors by group of models: median and largest."""
    table = Table("median, largest", "models", *COLUMNS, "step < 0.01", "in 90 %", "ms")
    for group, rows in found.items():
        cells = [f"{median(rows[name]):.4f} {max(rows[name]):.3f}" if name in rows else "-" for name in COLUMNS]
        near, inside = (f"{100.0 * np.mean(hits):.0f} %" for hits in (np.array(rows["step"]) < 0.01, rows["inside"]))
        table.add_row(group, str(len(rows["ms"])), *cells, near, inside, f"{median(rows['ms']):.0f} {max(rows['ms']):.0f}")
    return table


def main() -> None:
    """Print the tables."""
    options = parser(__doc__, "two widths, three gains, 50 steps")
    options.add_argument("--widths", type=int, nargs="+")
    options.add_argument("--gains", type=float, nargs="+")
    options.add_argument("--steps", type=int)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    chosen = options.parse_args()
    widths, gains, steps = QUICK if chosen.quick else FULL
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    steps = chosen.steps or steps
    table = Rows("model:<34", "measured", *COLUMNS, "ms", title="Growth per step, and predicted minus measured")
    for kind, width, gain, draw in itertools.product(
        chosen.kinds, chosen.widths or widths, chosen.gains or gains, ("gaussian", "orthogonal")
    ):
        growth, rows = compared(build(kind, width, gain, draw, seed=width), steps, width)
        shown = (f"{rows[name]:+.4f}" if name in rows else "-" for name in COLUMNS)
        table.add(f"{kind} {width}, gain {gain:g}, {draw}", f"{growth:+.4f}", *shown, f"{rows['ms']:.0f}")
        for group in (kind, f"width {width}", f"gain {gain:g}", "all"):
            for name, error in rows.items():
                found[group][name].append(abs(error))
    Console(width=180).print(summary(found))


if __name__ == "__main__":
    main()
