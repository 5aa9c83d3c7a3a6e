"""What a check costs against one eager forward and backward pass of the same batch, in the same run.

Prints one row per model: seconds of the eager pass, and ratios of a whole check with one and with three seeds. The passes
alternate and medians are taken, so the ratios hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import gradlint


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


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    table = Table("model", "eager forward + backward, s", "1 seed", "3 seeds", "of that probe")
    for name, (build, shape) in MODELS.items():
        torch.manual_seed(0)
        model, x = build(), torch.randn(shape)

        def eager(model: nn.Module = model, x: Tensor = x) -> None:
            model(x).sum().backward()
            model.zero_grad()

        eager()
        gradlint.check(model, x, seeds=1)
        rows, probe = [], 0.0
        for _ in range(repeats):
            base = _seconds(eager)
            one = _seconds(lambda model=model, x=x: gradlint.check(model, x, seeds=1))
            start = time.perf_counter()
            report = gradlint.check(model, x, seeds=3)
            three = time.perf_counter() - start
            probe = report.result.timings["probe"] / three
            rows.append((base, one / base, three / base))
        columns = [median(row[index] for row in rows) for index in range(3)]
        table.add_row(name, f"{columns[0]:.3f}", f"{columns[1]:.2f}x", f"{columns[2]:.2f}x", f"{probe:.0%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
