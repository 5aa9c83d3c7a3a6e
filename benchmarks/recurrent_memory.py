"""Which small recurrent networks learn to remember, and whether the reach that gradlint states beforehand tells.

"reach" is the number of steps within which the gradient of the last state shrinks 1000-fold at the start; it is infinite where
the gradient keeps its size or grows. What only far steps tell is predicted to be learned from the last state over up to one
reach ("yes"), and not over more than MEMORY reaches ("no"); between the two no prediction is made ("?"). Everything else is
predicted to be learned. Each network is trained by Adam on new data at every update, and has learned if it gets nine in ten right
(adding: a squared error under a quarter of that of a constant). The tasks:

- recall: the first of all tokens is asked for after noise. "last" reads the last state, "every" asks at every step, "pooled"
  reads the mean of all states.
- late: at every step the token of two steps before is asked for, and the first of all tokens at the last step alone, with half
  of the loss.
- adding: the sum of the two numbers that are marked (Hochreiter and Schmidhuber 1997). Marks are at every distance, so that near
  ones teach what far ones need: no prediction is made.
- local: the token of two steps before, read from the last state or asked for at every step.

Prints a row per network as soon as it is trained, then how many learned by task, readout and sequence length in reaches. The
numbers of gradlint/measurements/reach.py come from here.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from common import Rows, every, parser
from torch import Tensor, nn
from torch.nn import functional

import gradlint
from gradlint.measurements.reach import MEMORY, shortest_reach

WIDTH, CUES, NOISE, BATCH = 32, 4, 4, 32
UPDATES, CHECKED = 800, 25
BINS = (1.0, MEMORY, 4.0, math.inf)  # ends, in reaches


class Plain(nn.Module):
    """h = act(U x_t + W h), written out."""

    def __init__(self, gain: float, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.u, self.w, self.act = nn.Linear(CUES + NOISE, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False), act
        nn.init.orthogonal_(self.w.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """All states."""
        h, states = x.new_zeros(len(x), WIDTH), []
        for t in range(x.shape[1]):
            h = self.act(self.u(x[:, t]) + self.w(h))
            states.append(h)
        return torch.stack(states, 1)


class Elementwise(nn.Module):
    """h = act(U x_t + r * h): each unit on its own."""

    def __init__(self, factor: float, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.u, self.r, self.act = nn.Linear(CUES + NOISE, WIDTH), nn.Parameter(torch.full((WIDTH,), factor)), act

    def forward(self, x: Tensor) -> Tensor:
        """All states."""
        h, states = x.new_zeros(len(x), WIDTH), []
        for t in range(x.shape[1]):
            h = self.act(self.u(x[:, t]) + self.r * h)
            states.append(h)
        return torch.stack(states, 1)


def rnn(gain: float | None, nonlinearity: str = "tanh") -> nn.Module:
    """Torch's plain cell; without a gain as torch draws it."""
    made = nn.RNN(CUES + NOISE, WIDTH, nonlinearity=nonlinearity, batch_first=True)
    if gain is not None:
        nn.init.orthogonal_(made.weight_hh_l0, gain)
    return made


def lstm(forget: float) -> nn.Module:
    """An LSTM whose forget gates have this bias."""
    made = nn.LSTM(CUES + NOISE, WIDTH, batch_first=True)
    with torch.no_grad():
        made.bias_ih_l0[WIDTH : 2 * WIDTH] = forget
        made.bias_hh_l0[WIDTH : 2 * WIDTH] = 0.0
    return made


def gru(update: float) -> nn.Module:
    """A GRU whose update gates have this bias."""
    made = nn.GRU(CUES + NOISE, WIDTH, batch_first=True)
    with torch.no_grad():
        made.bias_ih_l0[WIDTH : 2 * WIDTH] = update
        made.bias_hh_l0[WIDTH : 2 * WIDTH] = 0.0
    return made


CELLS: dict[str, Callable[[], nn.Module]] = {
    "tanh, default": partial(rnn, None),
    "tanh, gain 0.8": partial(rnn, 0.8),
    "tanh, gain 0.9": partial(rnn, 0.9),
    "tanh, gain 1": partial(rnn, 1.0),
    "tanh, gain 1.5": partial(rnn, 1.5),
    "relu, gain 0.8": partial(rnn, 0.8, "relu"),
    "relu, gain 1": partial(rnn, 1.0, "relu"),
    "LSTM, default": partial(lstm, 0.0),
    "LSTM, forget +1": partial(lstm, 1.0),
    "LSTM, forget +4": partial(lstm, 4.0),
    "GRU, default": partial(gru, 0.0),
    "GRU, update +3": partial(gru, 3.0),
    "loop, tanh, gain 0.9": partial(Plain, 0.9, torch.tanh),
    "loop, relu, gain 0.9": partial(Plain, 0.9, torch.relu),
    "elementwise 0.7, relu": partial(Elementwise, 0.7, torch.relu),
    "elementwise 0.98, relu": partial(Elementwise, 0.98, torch.relu),
    "elementwise 0.9, tanh": partial(Elementwise, 0.9, torch.tanh),
}


class Reader(nn.Module):
    """A recurrence and a linear layer that reads it at its last state, at every one, or their mean."""

    def __init__(self, body: nn.Module, outputs: int, read: str) -> None:
        super().__init__()
        self.body, self.head, self.read = body, nn.Linear(WIDTH, outputs), read

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, steps, inputs) to (batch, outputs), or that at every step."""
        found = self.body(x)
        states = found[0] if isinstance(found, tuple) else found
        if self.read == "last":
            states = states[:, -1]
        elif self.read == "pooled":
            states = states.mean(1)
        return self.head(states)


@dataclass(frozen=True)
class Model:
    """One training."""

    cell: str
    task: str  # recall, late, adding or local
    read: str  # last, every or pooled
    steps: int

    def data(self) -> tuple[Tensor, Tensor]:
        """A new batch: inputs, and what is asked for."""
        if self.task == "adding":
            return self._marked()
        cue, tokens = torch.randint(CUES, (BATCH,)), CUES + torch.randint(NOISE, (BATCH, self.steps))
        tokens[:, 0] = cue
        target = cue[:, None].expand(-1, self.steps) if self.task == "recall" else (tokens % CUES).roll(2, 1)
        if self.task == "late":
            target[:, -1] = cue
        return functional.one_hot(tokens, CUES + NOISE).float(), target if self.read == "every" else target[:, -1]

    def _marked(self) -> tuple[Tensor, Tensor]:
        values, marks = torch.rand(BATCH, self.steps), torch.zeros(BATCH, self.steps)
        for half in (0, self.steps // 2):
            marks.scatter_(1, torch.randint(half, half + self.steps // 2, (BATCH, 1)), 1.0)
        x = torch.cat((torch.stack((values, marks), -1), torch.zeros(BATCH, self.steps, CUES + NOISE - 2)), -1)
        return x, (values * marks).sum(1, keepdim=True)

    def built(self) -> Reader:
        """The model at its start, always the same."""
        torch.manual_seed(0)
        return Reader(CELLS[self.cell](), 1 if self.task == "adding" else CUES, self.read)

    def reach(self) -> float:
        """Steps within which the gradient shrinks 1000-fold, infinite where it does not shrink."""
        result = gradlint.check(self.built(), (self.data()[0],), seeds=1, select=("GL5",)).result
        found = shortest_reach([item for item in result.time if item.horizon is not None])
        return found.horizon if found is not None else math.inf

    def predicted(self, reaches: float) -> str:
        """Whether it will learn over so many reaches: yes, no, or ? where no prediction is made."""
        far = (self.task == "recall" and self.read == "last") or self.task == "late"
        if self.task == "adding":
            return "?"
        if not far or reaches <= 1.0:
            return "yes"
        return "no" if reaches > MEMORY else "?"

    def trained(self) -> tuple[bool, int, float]:
        """Whether it learns, after how many updates, and the last mean of its accuracy (of its error, for adding)."""
        module = self.built()
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        recent: list[float] = []
        for update in range(1, UPDATES + 1):
            x, target = self.data()
            output = module(x)
            if self.task == "adding":
                loss = functional.mse_loss(output, target)
                recent.append(float(loss.detach()))
            else:
                loss = functional.cross_entropy(output.flatten(0, -2), target.flatten())
                if self.task == "late":  # what is asked once counts as much as the rest
                    loss = loss + functional.cross_entropy(output[:, -1], target[:, -1])
                last = (output[:, -1], target[:, -1]) if self.read == "every" else (output, target)
                recent.append(float((last[0].argmax(-1) == last[1]).float().mean()))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            if update % CHECKED == 0:
                mean = sum(recent[-CHECKED:]) / CHECKED
                if (mean < 1.0 / 24.0) if self.task == "adding" else (mean > 0.9):
                    return True, update, mean
        return False, UPDATES, mean


def models() -> Iterator[Model]:
    """What only far steps tell, at four lengths for every cell; then what else may be asked."""
    for cell in CELLS:
        for steps in (20, 40, 80, 120):
            yield Model(cell, "recall", "last", steps)
    for cell in CELLS:
        yield Model(cell, "adding", "last", 30)
        yield Model(cell, "late", "every", 90)
        yield Model(cell, "local", "last", 90)
        yield Model(cell, "local", "every", 90)
        yield Model(cell, "recall", "every", 90)
        yield Model(cell, "recall", "pooled", 90)


def summary(found: Mapping[tuple[str, str], Sequence[tuple[float, bool]]]) -> None:
    """Print how many learned, by task, readout and length in reaches."""
    rows = Rows("task:<8", "reads:<7", *(f"up to {end:g}" for end in BINS), title="Learned, by sequence length in reaches")
    for (task, read), runs in found.items():
        cells = []
        for low, high in zip((0.0, *BINS), BINS, strict=False):
            inside = [learned for reaches, learned in runs if low < reaches <= high or (low == reaches == 0.0)]
            cells.append(f"{sum(inside)} of {len(inside)}" if inside else "-")
        rows.add(task, read, *cells)


def main() -> None:
    """Print the tables."""
    options = parser(__doc__, "every seventh network")
    options.add_argument("--only", default="", help="networks whose row contains this")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows = Rows("cell:<24", "task:<8", "reads:<7", "steps", "reach", "predicted", "learned", "updates", "last", "seconds")
    found: dict[tuple[str, str], list[tuple[float, bool]]] = defaultdict(list)
    right = told = 0
    for model in every(list(models()), 7 if chosen.quick else 1):
        if chosen.only not in f"{model.cell} {model.task} {model.read} {model.steps}":
            continue
        start = time.perf_counter()
        reach = model.reach()
        predicted = model.predicted(model.steps / reach)
        learned, updates, last = model.trained()
        found[model.task, model.read].append((model.steps / reach, learned))
        told += predicted != "?"
        right += predicted == ("yes" if learned else "no")
        spent = time.perf_counter() - start
        facts = (f"{reach:.1f}", predicted, "yes" if learned else "no", updates, f"{last:.3f}", f"{spent:.1f}")
        rows.add(model.cell, model.task, model.read, model.steps, *facts)
    summary(found)
    print(f"{right} of {told} predictions hold")


if __name__ == "__main__":
    main()
