"""How far above the stability limit that gradlint reports small networks really fail to train.

Prints one row per network as soon as it is trained: the limit of SGD, and for multiples of it what 100 steps on one batch lead
to, the mean loss of the last ten over the first loss ("x" where it is not finite); then the same for momentum 0.9 and for Adam.
The last column is how far the gradient norm falls within 100 steps at half the limit. Below: at each multiple, the share of
networks whose loss does not fall by half. The thresholds of rules GL702 and GL703 come from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import Rows, every, parser
from probe_cost import Bottleneck
from torch import Tensor, nn
from torch.nn import functional

import gradlint
from gradlint import engine
from gradlint.frontends.inputs import from_array
from gradlint.options import Options
from gradlint.recipe import Recipe, Task

FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 32.0, 64.0)
RECIPES = {"SGD": Recipe(), "momentum 0.9": Recipe(momentum=0.9), "Adam": Recipe("adam")}
STEPS = 100


class Language(nn.Module):
    """A small language model: next token of a noisy Markov chain over 50 tokens."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.place = nn.Parameter(0.02 * torch.randn(16, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=norm_first)
        self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(64, 50)

    def forward(self, ids: Tensor) -> Tensor:
        """From (batch, 16) to (batch, 16, 50)."""
        return self.head(self.body(self.embed(ids) + self.place))


class LastStep(nn.Module):
    """A recurrence of width 64, read at its last step."""

    def __init__(self, kind: type[nn.RNN | nn.LSTM]) -> None:
        super().__init__()
        self.rnn = kind(8, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, steps, 8) to (batch, 10)."""
        return self.head(self.rnn(x)[0][:, -1])


def perceptron(act: type[nn.Module], classes: int = 10, *, he: bool = False) -> nn.Module:
    """Four hidden layers of width 64."""
    widths = (32, 64, 64, 64, 64)
    layers = [part for inside, width in pairwise(widths) for part in (nn.Linear(inside, width), act())]
    model = nn.Sequential(*layers, nn.Linear(64, classes))
    for layer in model:
        if he and isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def residual() -> nn.Module:
    """A ResNet of three bottlenecks."""
    stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    blocks = Bottleneck(16, 4, 1), Bottleneck(16, 8, 2), Bottleneck(32, 16, 2)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def blobs(*shape: int, scale: float = 1.0, samples: int = 128) -> tuple[Tensor, Tensor]:
    """Ten overlapping classes."""
    labels = torch.arange(samples) % 10
    return scale * (0.5 * torch.randn(10, *shape)[labels] + torch.randn(samples, *shape)), labels


def chain() -> tuple[Tensor, Tensor]:
    """Tokens that follow one another by a fixed table, nine times in ten."""
    table, ids = torch.randint(50, (50,)), torch.randint(50, (64, 17))
    for step in range(16):
        ids[:, step + 1] = torch.where(torch.rand(64) < 0.9, table[ids[:, step]], ids[:, step + 1])
    return ids[:, :-1], ids[:, 1:]


def smooth() -> tuple[Tensor, Tensor]:
    """A regression."""
    x = torch.randn(256, 32)
    return x, torch.tanh(2.0 * x[:, :1] + x[:, 1:2])


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Over the last axis."""
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "ReLU, torch's start": (lambda: perceptron(nn.ReLU), lambda: blobs(32)),
    "ReLU, He": (lambda: perceptron(nn.ReLU, he=True), lambda: blobs(32)),
    "ReLU, inputs x 10": (lambda: perceptron(nn.ReLU), lambda: blobs(32, scale=10.0)),
    "tanh": (lambda: perceptron(nn.Tanh), lambda: blobs(32)),
    "ReLU, He, regression": (lambda: perceptron(nn.ReLU, 1, he=True), smooth),
    "tanh, regression": (lambda: perceptron(nn.Tanh, 1), smooth),
    "residual": (residual, lambda: blobs(3, 16, 16)),
    "pre-norm transformer": (lambda: Language(norm_first=True), chain),
    "post-norm transformer": (lambda: Language(norm_first=False), chain),
    "LSTM, 32 steps": (lambda: LastStep(nn.LSTM), lambda: blobs(32, 8)),
    "RNN, 32 steps": (lambda: LastStep(nn.RNN), lambda: blobs(32, 8)),
}


@dataclass
class Setup:
    """A network with its data, the same each time."""

    name: str

    def made(self) -> tuple[nn.Module, Tensor, Tensor, Callable[[Any, Any], Tensor]]:
        """Model, inputs, target and loss."""
        torch.manual_seed(0)
        build, draw = NETWORKS[self.name]
        model, (x, y) = build(), draw()
        return model, x, y, functional.mse_loss if y.is_floating_point() else cross_entropy

    def limit(self, recipe: Recipe) -> float:
        """What gradlint reports."""
        model, x, y, loss = self.made()
        task = Task(loss=loss, target=y, recipe=recipe, rehearse=0)
        measurement = engine.examine(model, Options(inputs=(from_array(None, x.numpy()),), seeds=1, task=task))[1].measurement
        if measurement is None or measurement.curvature is None:
            raise gradlint.GradlintError(f"{self.name}: the curvature was not measured")
        return measurement.curvature.limit

    def trained(self, recipe: Recipe, lr: float) -> tuple[float, float]:
        """The last losses over the first, infinite where they are not finite; the first gradient norm over the last."""
        model, x, y, loss = self.made()
        weights = list(model.parameters())
        optimizer = torch.optim.Adam(weights, lr) if recipe.adaptive else torch.optim.SGD(weights, lr, recipe.momentum)
        losses, norms = [], []
        for _ in range(STEPS):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            norms.append(math.sqrt(sum(float(w.grad.square().sum()) for w in weights if w.grad is not None)))
            optimizer.step()
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                return math.inf, math.nan
        return mean(losses[-10:]) / losses[0], norms[0] / norms[-1] if norms[-1] else math.inf


def main() -> None:
    """Print the tables."""
    options = parser(__doc__, "every fourth network, every third multiple of the limit")
    options.add_argument("--only", nargs="+", metavar="NAME", choices=NETWORKS, help="these networks alone")
    options.add_argument("--recipe", nargs="+", metavar="RECIPE", choices=RECIPES, help="these optimizers alone")
    chosen = options.parse_args()
    names = chosen.only or every(list(NETWORKS), 4 if chosen.quick else 1)
    factors = every(FACTORS, 3 if chosen.quick else 1)
    torch.set_num_threads(1)
    for title in chosen.recipe or RECIPES:
        recipe = RECIPES[title]
        rows = Rows("network:<24", "limit:>8", *(f"x {factor:g}" for factor in factors), "norm falls", title=title)
        failed = np.zeros(len(factors))
        for name in names:
            setup = Setup(name)
            limit = setup.limit(recipe)
            runs = [setup.trained(recipe, factor * limit) for factor in factors]
            failed += [ratio > 0.5 for ratio, _ in runs]
            cells = (f"{ratio:.2f}" if math.isfinite(ratio) else "x" for ratio, _ in runs)
            rows.add(name, f"{limit:.3g}", *cells, f"{runs[0][1]:.3g}")
        rows.add("share that fails", "", *(f"{share:.0%}" for share in failed / len(names)))


if __name__ == "__main__":
    main()
