"""What a check costs against one eager forward and backward pass of the same batch, in the same run.

Prints one row per model: seconds of the eager pass, and ratios of a whole check with one seed, with three, with a recipe, and
with its rehearsal. The passes alternate and medians are taken, so the ratios hold on a noisy machine. A second table has the
peak of memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
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


def transformer() -> nn.Module:
    """Twelve pre-norm encoder layers of width 256."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)


class LastStep(nn.Module):
    """An LSTM read at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, steps, 64) to (batch, 10)."""
        return self.head(self.rnn(x)[0][:, -1])


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-50, 8 x 128 px": (resnet50, (8, 3, 128, 128)),
    "transformer, 12 layers, 8 x 64 tokens": (transformer, (8, 64, 256)),
    "LSTM, 8 x 512 steps": (LastStep, (8, 512, 64)),
}


def eager(model: nn.Module, x: Tensor) -> None:
    """One forward and backward pass as training would do it."""
    model(x).sum().backward()
    model.zero_grad()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _built(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    return build(), torch.randn(shape)


def checks(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, by column."""
    return {
        "eager": partial(eager, model, x),
        "1 seed": partial(gradlint.check, model, x, seeds=1),
        "3 seeds": partial(gradlint.check, model, x),
        "recipe": partial(gradlint.check, model, x, recipe=RECIPE, rehearse=0),
        "recipe and rehearsal": partial(gradlint.check, model, x, recipe=RECIPE),
    }


def time_table(repeats: int) -> Table:
    """Seconds of an eager pass, and the checks as multiples of it."""
    table = Table("model", "eager forward + backward, s", "1 seed", "3 seeds", "recipe", "recipe and rehearsal")
    for name in MODELS:
        runs = checks(*_built(name))
        runs["eager"]()
        runs["1 seed"]()
        rows = []
        for index in range(repeats):
            asked = {key: run for key, run in runs.items() if not index or not key.startswith("recipe")}  # those are long: once
            rows.append({key: _seconds(run) for key, run in asked.items()})
        base = [row["eager"] for row in rows]
        ratios = {key: median(row[key] / row["eager"] for row in rows if key in row) for key in list(runs)[1:]}
        table.add_row(name, f"{median(base):.3f}", *(f"{value:.2f}x" for value in ratios.values()))
    return table


def peak_of(name: str, column: str) -> None:
    """Print the megabytes that one run of a fresh process needs beyond what it held before."""
    model, x = _built(name)
    gradlint.check(nn.Linear(2, 2), seeds=1, recipe=RECIPE, rehearse=2)  # imports are not what is measured
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _peak_memory()
    checks(model, x)[column]()
    print(_peak_memory() - before)


def _peak_memory() -> float:
    """Megabytes of this process at its peak; ru_maxrss would count its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def memory_table() -> Table:
    """Peak megabytes of an eager pass, and the checks as multiples of it, each in a process of its own (Linux)."""
    table = Table("model", "eager, MB", "1 seed", "3 seeds", "recipe", "recipe and rehearsal")
    for name in MODELS:
        peaks = []
        for column in checks(nn.Identity(), torch.zeros(1)):
            asked = [sys.executable, __file__, "--peak", name, column]
            peaks.append(float(subprocess.run(asked, check=True, capture_output=True, text=True).stdout))  # noqa: S603 - itself
        table.add_row(name, f"{peaks[0]:.0f}", *(f"{peak / peaks[0]:.2f}x" for peak in peaks[1:]))
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "COLUMN"), help="megabytes of one run, for the table of memory")
    options = parser.parse_args()
    if options.peak:
        peak_of(*options.peak)
        return
    console = Console(width=110)
    console.print(time_table(options.repeats))
    console.print(memory_table())


if __name__ == "__main__":
    main()
