"""Random networks: the theory's prediction against the probe's measurement at every operator.

MLPs and CNNs of every activation, initialization, normalization and wiring, in train mode on a batch of 8. Prints a row per
network as soon as it is compared, then the error by family, the error that each operator adds, and the networks that are
predicted worst. `--count 40` is a digest for every day; `--only INDEX` does single networks of the same seed again.
"""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Rows, parser
from rich.console import Console
from rich.table import Table
from theory_common import (
    Compared,
    Predict,
    Quality,
    attempted,
    compare,
    decades,
    families,
    largest,
    plain_predict,
    quality_limits,
    quality_table,
    save,
    step_table,
    worst,
)
from torch import Tensor, nn

from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.measure import measure
from gradlint.result import Measurement
from gradlint.theory.prediction import Predicted

QUICK = 20  # networks of a quick run
BATCH = 8
CLASSES = 10
MOST_WORK = 1e9  # multiply-adds of one image through a CNN: a second or so for a pass of the batch
FLOAT32, FLOAT64 = 15.0, 140.0  # decades that squares of these stay clear of overflow and underflow within
CANCELS = -15.0  # decades of z - tanh z below which double precision has lost it

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "prelu": nn.PReLU,
    "softplus": nn.Softplus,
    "mish": nn.Mish,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "celu": lambda: nn.CELU(0.5),
    "relu6": nn.ReLU6,
    "softsign": nn.Softsign,
    "hardsigmoid": nn.Hardsigmoid,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
}
UNBOUNDED = ("relu", "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish")
INITS = ("he", "lecun", "orthogonal", "uniform", "default", "mis-scaled")
NORMS = ("none", "batch", "layer", "group", "rms")
WIRINGS = ("plain", "pre-norm", "post-norm")
DOWN = ("none", "none", "stride", "max", "avg")


@dataclass(frozen=True)
class Recipe:
    """What one network is made of. `gain` multiplies the weights of a mis-scaled `init`, `base` is what it starts from."""

    index: int
    kind: str
    depth: int
    width: int
    activation: str
    init: str
    base: str
    gain: float
    bias: float  # standard deviation of the biases; the default initialization has its own
    norm: str
    residual: str
    branch: int  # weight layers of a residual branch
    features: int = 0  # of the input of an MLP
    image: int = 0  # pixels on a side
    kernel: int = 0
    down: str = "none"  # what halves the image, half-way
    pooled: bool = True  # head on the mean over the image, else on all of it

    def __str__(self) -> str:
        gain = f" x{self.gain:.2f}" if self.init == "mis-scaled" else ""
        branch = f" of {self.branch}" if self.residual != "plain" else ""
        size = f", {self.image} px, kernel {self.kernel}, down {self.down}{'' if self.pooled else ', flat'}" if self.image else ""
        bias = f", bias {self.bias:g}" if self.bias else ""
        return (
            f"#{self.index} {self.kind} {self.depth} x {self.width}, {self.activation}, {self.base}{gain}{bias}, "
            f"{self.norm} norm, {self.residual}{branch}{size}"
        )


def draw(seed: int, index: int) -> Recipe:
    """The recipe of one network. Activations take turns; every tenth network is made to explode."""
    rng = random.Random(f"{seed}:{index}")  # noqa: S311 - networks, not secrets
    init = rng.choice(INITS)
    recipe = Recipe(
        index=index,
        kind="mlp" if index % 3 else "cnn",
        depth=rng.randint(5, 60),
        width=16 * round(2 ** rng.uniform(2, 5)),
        activation=list(ACTIVATIONS)[index % len(ACTIVATIONS)],
        init=init,
        base=rng.choice(("he", "lecun", "orthogonal", "uniform")) if init == "mis-scaled" else init,
        gain=10 ** rng.uniform(math.log10(0.3), math.log10(3.0)) if init == "mis-scaled" else 1.0,
        bias=0.0 if init == "default" else rng.choice((0.0, 0.0, 0.1, 0.5)),
        norm=rng.choice(NORMS),
        residual=rng.choice(WIRINGS),
        branch=rng.choice((1, 2)),
        features=rng.choice((16, 64, 256)),
    )
    if index % 10 == 1:
        gain, activation = rng.uniform(1.8, 3.0), rng.choice(UNBOUNDED)
        recipe = replace(recipe, depth=rng.randint(40, 60), activation=activation, norm="none", residual="plain")
        recipe = replace(recipe, init="mis-scaled", base=rng.choice(("he", "orthogonal")), gain=gain)
    return _convolutional(recipe, rng) if recipe.kind == "cnn" else recipe


def _convolutional(recipe: Recipe, rng: random.Random) -> Recipe:
    image, kernel, width = rng.choice((8, 12, 16)), rng.choice((1, 3, 3, 3, 5)), 16 * rng.randint(1, 8)
    while width > 16 and recipe.depth * (width * kernel * image) ** 2 > MOST_WORK:
        width -= 16
    depth = max(5, min(recipe.depth, int(MOST_WORK / (width * kernel * image) ** 2)))
    down, pooled = rng.choice(DOWN), rng.random() < 0.7
    return replace(recipe, depth=depth, width=width, image=image, kernel=kernel, down=down, pooled=pooled, features=3)


class OverChannels(nn.Module):
    """A normalization of the last axis, applied to axis 1 of images."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, channels, h, w) to the same."""
        out: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class Residual(nn.Module):
    """`after(x + branch(x))`."""

    def __init__(self, branch: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.branch, self.after = branch, after

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        out: Tensor = self.after(x + self.branch(x))
        return out


class _Builder:
    """Makes the layers of one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def weights(self, inside: int, stride: int = 1) -> nn.Module:
        r = self.recipe
        if r.kind == "mlp":
            return self.initialized(nn.Linear(inside, r.width))
        return self.initialized(nn.Conv2d(inside, r.width, r.kernel, stride, r.kernel // 2))

    def initialized(self, layer: nn.Linear | nn.Conv2d) -> nn.Module:
        r = self.recipe
        fan_in = layer.weight[0].numel()
        if r.base == "he":
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / fan_in))
        elif r.base == "lecun":
            nn.init.normal_(layer.weight, 0.0, math.sqrt(1.0 / fan_in))
        elif r.base == "orthogonal":
            nn.init.orthogonal_(layer.weight)
        elif r.base == "uniform":
            nn.init.xavier_uniform_(layer.weight)
        if r.base != "default" and layer.bias is not None:
            nn.init.normal_(layer.bias, 0.0, r.bias) if r.bias else nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight.mul_(r.gain)
        return layer

    def norm(self) -> list[nn.Module]:
        r = self.recipe
        image = r.kind == "cnn"
        if r.norm == "batch":
            return [nn.BatchNorm2d(r.width) if image else nn.BatchNorm1d(r.width)]
        if r.norm == "group":
            return [nn.GroupNorm(4, r.width)]
        if r.norm == "none":
            return []
        over = nn.LayerNorm(r.width) if r.norm == "layer" else nn.RMSNorm(r.width)
        return [OverChannels(over) if image else over]

    def act(self) -> nn.Module:
        return ACTIVATIONS[self.recipe.activation]()

    def block(self) -> nn.Module:
        """A plain layer, or `x + branch(x)` with the norm before the branch or behind the sum."""
        r = self.recipe
        if r.residual == "plain":
            return nn.Sequential(self.weights(r.width), *self.norm(), self.act())
        layers: list[nn.Module] = []
        for _ in range(r.branch):
            if r.residual == "pre-norm":
                layers += [*self.norm(), self.act(), self.weights(r.width)]
            else:
                layers += [self.weights(r.width), self.act()]
        return Residual(nn.Sequential(*layers), nn.Sequential(*(self.norm() if r.residual == "post-norm" else [])))

    def down(self) -> list[nn.Module]:
        r = self.recipe
        halved: dict[str, Callable[[], nn.Module]] = {
            "stride": lambda: self.weights(r.width, 2),
            "max": lambda: nn.MaxPool2d(2),
            "avg": lambda: nn.AvgPool2d(2),
        }
        return [halved[r.down]()] if r.down != "none" else []

    def model(self) -> nn.Module:
        r = self.recipe
        count = max(1, (r.depth - 2) // (1 if r.residual == "plain" else r.branch))
        blocks = [self.block() for _ in range(count)]
        blocks[count // 2 : count // 2] = self.down()
        head: list[nn.Module] = []
        size = r.width
        if r.kind == "cnn":
            side = r.image // (1 if r.down == "none" else 2)
            head = [nn.AdaptiveAvgPool2d(1) if r.pooled else nn.Identity(), nn.Flatten()]
            size *= 1 if r.pooled else side * side
        last = self.norm() if r.residual == "pre-norm" else []
        return nn.Sequential(self.weights(r.features), *blocks, *last, *head, self.initialized(nn.Linear(size, CLASSES)))


def build(recipe: Recipe, draw_of_weights: int = 0) -> nn.Module:
    """The network of a recipe, in train mode; the same weights every time, others for another `draw_of_weights`."""
    torch.manual_seed(recipe.index + 1_000_003 * draw_of_weights)
    return _Builder(recipe).model().train()


def probed(recipe: Recipe, dtype: str, seeds: int, draw_of_weights: int = 0) -> tuple[TorchRunnable, Measurement]:
    """A network as gradlint sees it, and what the probe measured. Raises GradlintError."""
    shape = (BATCH, 3, recipe.image, recipe.image) if recipe.kind == "cnn" else (BATCH, recipe.features)
    model = build(recipe, draw_of_weights).to(getattr(torch, dtype))
    runnable = TorchRunnable(model, (InputSpec(None, dtype, shape, given=True),))
    return runnable, measure(runnable, seeds=seeds)


def redrawn(recipe: Recipe, dtype: str, seeds: int) -> Predict:
    """A stand-in for theory: what the probe measures on the same network with other weights."""
    _, measurement = probed(recipe, dtype, seeds, draw_of_weights=1)
    nodes = {node: Predicted(gains.backward, gains.forward) for node, gains in measurement.gains.items()}
    return lambda _: nodes


def examine(recipe: Recipe, seeds: int, *, floor: bool = False) -> Compared:
    """Compare one network, in double precision where single does not reach, and shallower where that does not either."""
    dtype = "float64" if recipe.activation == "tanhshrink" else "float32"
    while True:
        runnable, measurement = probed(recipe, dtype, seeds)
        gains = [value for item in measurement.gains.values() for value in (item.backward, item.forward) if value is not None]
        reach = FLOAT32 if dtype == "float32" else FLOAT64
        holds = bool(gains) and all(abs(value) < reach for value in gains)
        if recipe.activation == "tanhshrink":
            holds = holds and all((item.forward or 0.0) > CANCELS for item in measurement.gains.values())
        if holds or (dtype == "float64" and recipe.depth <= 5):
            break
        if dtype == "float64":
            recipe = replace(recipe, depth=max(5, recipe.depth * 2 // 3))
        dtype = "float64"
    labels = {name: str(value) for name, value in asdict(recipe).items()} | {"dtype": dtype}
    predicted_by = redrawn(recipe, dtype, seeds) if floor else plain_predict
    return compare(str(recipe), runnable.graph, measurement, labels=labels, predicted_by=predicted_by)


def cells(model: Compared) -> tuple[str, ...]:
    """Errors and growth of one network."""
    growth, error = model.growth, (largest(model.backward, 50), largest(model.backward))
    coverage = f"{Quality.of([model.backward]).coverage:.0%}"
    return (*(f"{part:.3f}" for part in error), coverage, decades(growth.measured[0]), decades(growth.predicted[0]))


def report(models: list[Compared], console: Console, failed: int) -> None:
    """Print the tables."""
    rows = families(models, ("kind", "init", "activation", "norm", "residual"))
    console.print(quality_table("Predicted against measured at every operator, decades", rows))
    console.print(step_table(models))
    table = Table("network", "median", "95 %", "inside", "growth", "predicted", title="Predicted worst")
    for model in worst(models, 15):
        table.add_row(model.name, *cells(model))
    console.print(table)
    grown = np.array([model.growth.measured[0] for model in models])
    double = sum(model.labels["dtype"] == "float64" for model in models)
    console.print(
        f"{len(models)} networks, {double} in double precision; {(grown >= 10).sum()} grow by 10 decades or more, "
        f"{(grown <= -10).sum()} fade by as much; {1000 * np.median([m.seconds for m in models]):.0f} ms for a prediction"
    )
    console.print(quality_limits(models, failed=failed, median=0.05, p95=0.20), highlight=False)


def main() -> None:
    """Print the tables."""
    options = parser(__doc__, f"{QUICK} networks, one seed")
    options.add_argument("--count", type=int, help="networks, 300 by default")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--seeds", type=int, help="inputs and cotangents that each is probed with, 3 by default")
    options.add_argument("--floor", action="store_true", help="compare with the same networks of other weights, not with theory")
    options.add_argument("--only", type=int, nargs="+", metavar="INDEX", help="these networks alone")
    options.add_argument("--save", type=Path, metavar="FILE.jsonl", help="write one JSON line a network")
    asked = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console, models, start = Console(width=150), [], time.perf_counter()
    chosen = asked.only or range(asked.count or (QUICK if asked.quick else 300))
    seeds = asked.seeds or (1 if asked.quick else 3)
    rows = Rows(
        "median:>6", "95 %", "inside", "growth", "predicted", "network:<", title="Backward gains at every operator, decades"
    )
    for index in chosen:
        recipe = draw(asked.seed, index)
        if model := attempted(console, str(recipe), partial(examine, recipe, seeds, floor=asked.floor)):
            models.append(model)
            rows.add(*cells(model), model.name)
    save(asked.save, models)
    report(models, console, len(chosen) - len(models))
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
