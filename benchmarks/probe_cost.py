"""What a check costs against one eager forward and backward pass of the same batch, in the same run.

Prints a row as soon as it is measured, one per model and check: a whole check with one seed, with three, with a recipe, and with
its rehearsal. Checks and eager passes take turns and the median of the ratios of neighbors is taken, so that they hold on a noisy
machine. The peak of memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from common import Rows, parser, peak_growth, wall_seconds
from torch import Tensor, nn

import gradlint

RECIPE = gradlint.Recipe("adamw", lr=1e-4)


class Bottleneck(nn.Module):
    """The block of ResNet-50 (He 2016)."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        plain = stride == 1 and inside == out
        self.skip = nn.Identity() if plain else nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, inside, h, w) to (batch, 4 width, h / stride, w / stride)."""
        return torch.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Module:
    """ResNet-50 with random weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(depth):
            layers.append(Bottleneck(inside, width, stride if index == 0 else 1))
            inside = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000))


def transformer(layers: int) -> nn.Module:
    """Pre-norm encoder layers of width 256."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class LastStep(nn.Module):
    """An LSTM read at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, steps, 64) to (batch, 10)."""
        return self.head(self.rnn(x)[0][:, -1])


Model = tuple[Callable[[], nn.Module], tuple[int, ...]]

MODELS: dict[str, Model] = {
    "ResNet-50, 8 x 128 px": (resnet50, (8, 3, 128, 128)),
    "transformer, 12 layers, 8 x 64 tokens": (partial(transformer, 12), (8, 64, 256)),
    "LSTM, 8 x 512 steps": (LastStep, (8, 512, 64)),
}
QUICK: dict[str, Model] = {
    "transformer, 2 layers, 8 x 64 tokens": (partial(transformer, 2), (8, 64, 256)),
    "LSTM, 8 x 64 steps": (LastStep, (8, 64, 64)),
}
EAGER = "eager forward + backward"


def eager(model: nn.Module, x: Tensor) -> None:
    """One forward and backward pass as training would do it."""
    model(x).sum().backward()
    model.zero_grad()


def checks(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the eager pass is the first."""
    return {
        EAGER: partial(eager, model, x),
        "check, 1 seed": partial(gradlint.check, model, x, seeds=1),
        "check, 3 seeds": partial(gradlint.check, model, x),
        "check, recipe": partial(gradlint.check, model, x, recipe=RECIPE, rehearse=0),
        "check, recipe and rehearsal": partial(gradlint.check, model, x, recipe=RECIPE),
    }


def built(name: str) -> dict[str, Callable[[], object]]:
    """What is timed of one model, with the same weights and inputs every time."""
    build, shape = (MODELS | QUICK)[name]
    torch.manual_seed(0)
    return checks(build(), torch.randn(shape))


def imported() -> None:
    """Do once what only the first check of a process pays for."""
    gradlint.check(nn.Linear(2, 2), seeds=1, recipe=RECIPE, rehearse=2)


def print_peak(name: str, check: str) -> None:
    """Print the megabytes that one check needs beyond what the process held before."""
    run = built(name)[check]
    imported()
    print(peak_growth(run))


def peak(name: str, check: str) -> float:
    """The megabytes of one check, measured in a fresh process."""
    command = [sys.executable, __file__, "--peak", name, check]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603 - itself


def measure(name: str, repeats: int, *, memory: bool) -> None:
    """Print the rows of one model. A rehearsal is long, and is timed once."""
    rows = Rows("", "seconds", "x eager", "MB", "x eager", title=name)
    runs = built(name)
    base, base_peak = runs[EAGER], 0.0
    base()
    for check, run in runs.items():
        pairs = [(wall_seconds(base), wall_seconds(run)) for _ in range(1 if "rehearsal" in check else repeats)]
        cells = [f"{median(own for _, own in pairs):.3f}", f"{median(own / other for other, own in pairs):.2f}"]
        if memory:
            needed = peak(name, check)
            base_peak = base_peak or needed
            cells += [f"{needed:.0f}", f"{needed / base_peak:.2f}"]
        rows.add(check, *cells)


def main() -> None:
    """Print the tables."""
    options = parser(__doc__, "smaller models, one repeat, one thread, no memory")
    options.add_argument("--repeats", type=int, default=3, help="times that all but the rehearsal is measured")
    options.add_argument("--peak", nargs=2, metavar=("MODEL", "CHECK"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.peak:
        print_peak(*chosen.peak)
        return
    if chosen.quick:
        torch.set_num_threads(1)  # threads that wait for one another on a busy machine are not what is measured
    imported()
    for name in QUICK if chosen.quick else MODELS:
        measure(name, 1 if chosen.quick else chosen.repeats, memory=not chosen.quick)


if __name__ == "__main__":
    main()
