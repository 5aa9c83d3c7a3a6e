"""A model whose start is sound, with a recipe that breaks it, and its twin with one that trains it.

A factory that returns `gradlint.Target` says what the model is fed, what its loss is and how it will be trained.
"""

from __future__ import annotations

import torch
from torch import nn

import gradlint

BATCH, WIDTH, CLASSES = 64, 24, 5


def _classifier(recipe: gradlint.Recipe) -> gradlint.Target:
    """A small classifier on points whose class is that of the nearest of five centers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(WIDTH, 64), nn.ReLU(),
        nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip
    points, centers = torch.randn(BATCH, WIDTH), torch.randn(CLASSES, WIDTH)
    nearest = torch.cdist(points, centers).argmin(1)
    return gradlint.Target(net, (points,), target=nearest, loss=nn.functional.cross_entropy, recipe=recipe)


def learning_rate_broken() -> gradlint.Target:
    """A learning rate that fits Adam in its thousandths, given to SGD with momentum by the unit."""
    return _classifier(gradlint.Recipe("sgd", lr=3.0, momentum=0.9))


def learning_rate_healthy() -> gradlint.Target:
    """The same, with a learning rate that is usual."""
    return _classifier(gradlint.Recipe("sgd", lr=0.05, momentum=0.9))
