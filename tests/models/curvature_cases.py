"""Small networks with their losses, as objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlint.api import _specs
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.experiments.objective import Objective
from gradlint.recipe import Task

Loss = Callable[[Any, Any], Tensor]


class Language(nn.Module):
    """A tiny transformer over tokens, with dropout."""

    def __init__(self, *, norm_first: bool = True, act: Callable[[Tensor], Tensor] = functional.relu) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, 0.1, act, batch_first=True, norm_first=norm_first)
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(ids)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def perceptron(act: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), act(), nn.Linear(12, 8), act(), nn.Linear(8, 3))


def convolutional(act: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), act(), nn.Conv2d(4, 6, 3), act(), nn.Flatten(), nn.Linear(96, 3)
    return nn.Sequential(*layers)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "perceptron": (perceptron, lambda: torch.randn(16, 6)),
    "convolutional": (convolutional, lambda: torch.randn(16, 2, 8, 8)),
    "transformer": (Language, lambda: torch.randint(11, (4, 5))),
    "recurrent": (Recurrent, lambda: torch.randn(4, 7, 3)),
}
SMOOTH: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "perceptron": (lambda: perceptron(nn.Tanh), NETWORKS["perceptron"][1]),
    "convolutional": (lambda: convolutional(nn.GELU), NETWORKS["convolutional"][1]),
    "transformer": (lambda: Language(act=functional.gelu), NETWORKS["transformer"][1]),
    "recurrent": NETWORKS["recurrent"],
}


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())


def squared(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output, target)


LOSSES: dict[str, tuple[Loss, Callable[[Tensor], Tensor]]] = {
    "cross-entropy": (cross_entropy, lambda output: torch.randint(output.shape[-1], output.shape[:-1])),
    "squared error": (squared, torch.randn_like),
}


@contextmanager
def objective(model: nn.Module, x: Any, task: Task | None = None) -> Iterator[Objective]:
    """The objective of a module inside `untouched`, after the pass that draws its graph."""
    runnable = TorchRunnable(model, _specs((x,), {}))
    with runnable.untouched(), torch.enable_grad():
        runnable.forward([spec.draw(np.random.default_rng(0)) for spec in runnable.inputs])
        yield Objective(runnable, task or Task())


def posed(name: str, loss: str, networks: Any) -> tuple[nn.Module, Tensor, Task]:
    torch.manual_seed(0)
    make, draw = networks[name]
    model, x = make(), draw()
    function, goal = LOSSES[loss]
    return model, x, Task(loss=function, target=goal(model(x).detach()))
