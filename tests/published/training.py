"""Training in plain torch, to tell a failure from a fix without gradlint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tests.published.case import Fails, Setup

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def train(setup: Setup, steps: int) -> list[float]:
    """The loss before every step; it ends with NaN at the first loss or gradient that is not finite."""
    torch.manual_seed(0)
    recipe = setup.recipe or {}
    model, optimizer = setup.model.train(setup.mode == "train"), _optimizer(setup)
    warmup = int(str(recipe.get("schedule") or "warmup:0").partition(":")[2])
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe["lr"] * min(1.0, (step + 1) / max(warmup, 1))
        optimizer.zero_grad()
        with _precision(recipe):
            loss = _loss(setup, _forward(model, setup.inputs))
        loss.backward()
        finite = math.isfinite(loss.item()) and all(bool(gradient.isfinite().all()) for gradient in _gradients(model))
        losses.append(loss.item() if finite else math.nan)
        if not finite:
            break
        if recipe.get("clip_norm") is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe["clip_norm"])
        optimizer.step()
    return losses


def failure(losses: list[float], fixed: list[float]) -> set[Fails]:
    """All ways in which a run failed, beside that of the fixed model; empty for one that trains."""
    first, last = losses[0], losses[-1]
    if math.isnan(last):
        # gradients that overflow after a loss that rose are a divergence as much as numbers that end
        return {Fails.NON_FINITE} | ({Fails.DIVERGES, Fails.BEHIND} if len(losses) > 1 else set())
    # a loss may be negative (a log-density), so progress is measured against the size of its first value
    ways = {Fails.DIVERGES: last > first + 9.0 * abs(first), Fails.STUCK: last > first - 0.1 * abs(first)}
    return {way for way, holds in {**ways, Fails.BEHIND: last > 3.0 * abs(fixed[-1])}.items() if holds}


def _optimizer(setup: Setup) -> torch.optim.Optimizer:
    recipe = setup.recipe or {}
    settings = {key: recipe[key] for key in ("lr", "momentum", "weight_decay") if key in recipe}
    return OPTIMIZERS[recipe["optimizer"]](setup.model.parameters(), **settings)


def _precision(recipe: dict[str, Any]) -> AbstractContextManager[Any]:
    half = HALVES.get(recipe.get("precision", "fp32"))
    return torch.autocast("cpu", dtype=half) if half else nullcontext()


def _forward(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _loss(setup: Setup, output: Any) -> Tensor:
    return output if setup.loss is None else setup.loss(output, setup.target)


def _gradients(model: nn.Module) -> Iterator[Tensor]:
    return (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
