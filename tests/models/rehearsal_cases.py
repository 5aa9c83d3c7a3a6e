"""Small models, losses and a training loop for the tests of the rehearsal."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlint.frontends.torch.module import TorchRunnable
from gradlint.measurements.rehearsal import Rehearsal
from gradlint.probe.measure import measure
from gradlint.recipe import Recipe, Task
from gradlint.result import Measurement

LABELS = torch.arange(32) % 4


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside), act()]
    return nn.Sequential(*layers[:-1])


def probed(model: nn.Module, inputs: Any, recipe: str, **task: Any) -> Measurement:
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    return measure(TorchRunnable(model, args=args), seeds=1, task=Task(recipe=Recipe.parse(recipe), **task))


def rehearsed(model: nn.Module, inputs: Any, recipe: str, **task: Any) -> Rehearsal:
    found = probed(model, inputs, recipe, **task)
    assert found.rehearsal is not None, found.notes
    return found.rehearsal


def blobs(samples: int = 32, features: int = 16) -> Tensor:
    return torch.randn(4, features)[LABELS[:samples]] + 0.5 * torch.randn(samples, features)


def ce(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target)


def mse(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output, target)


def by_hand(logits: Tensor, target: Tensor) -> Tensor:
    return -logits.softmax(-1).log().gather(1, target[:, None]).mean()


def trained(model: nn.Module, inputs: Any, target: Tensor, recipe: Recipe, steps: int, **settings: Any) -> list[float]:
    """The losses of a training loop as tutorials write it."""
    kinds = {kind.__name__.lower(): kind for kind in vars(torch.optim).values() if isinstance(kind, type)}
    optimizer = kinds[recipe.optimizer](model.parameters(), lr=recipe.lr, **settings)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(recipe.precision)
    scaler = torch.amp.GradScaler("cpu", enabled=recipe.precision == "fp16")
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(recipe.warmup, 1)))
    losses = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
            loss = functional.cross_entropy(model(inputs), target)
        losses.append(float(loss.detach()))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if recipe.clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), recipe.clip_value)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        warmup.step()
    return losses
