"""What a published failure is: a small model as the report has it, and the same one with the published fix."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn


class Fails(StrEnum):
    """How training fails; `training.failure` decides by the same words."""

    NON_FINITE = "non-finite"  # the loss or a gradient is NaN or infinite
    DIVERGES = "diverges"  # the loss is not finite or ten times its first value, and does not come back
    STUCK = "stuck"  # the loss falls by less than a tenth
    BEHIND = "behind"  # after as many steps the loss is three times that of the fixed model, or more


@dataclass(frozen=True)
class Setup:
    """All that a training run needs; `recipe` holds the keyword arguments of gradlint.Recipe."""

    model: nn.Module
    inputs: Any
    target: Any = None
    loss: Callable[[Any, Any], Tensor] | None = None
    recipe: dict[str, Any] | None = None
    mode: str = "train"


@dataclass(frozen=True)
class Case:
    """One published failure. `expects` are the rules of which at least one must speak for `broken`, and none for `fixed`."""

    name: str
    source: str
    kind: str
    broken: Callable[[], Setup]
    fixed: Callable[[], Setup]
    expects: frozenset[str]
    fails: Fails
    steps: int


def published(name: str, *, kind: str, fails: Fails, expects: str, steps: int = 40) -> Callable[[Callable[[bool], Setup]], Case]:
    """Turn `build(fixed)` into a Case. The last paragraph of its docstring, headed "Source:", says where it was published."""

    def register(build: Callable[[bool], Setup]) -> Case:
        text = inspect.getdoc(build) or ""
        _, heading, source = text.partition("Source: ")
        assert heading, f"{name}: the docstring names no source"

        def seeded(fixed: bool) -> Setup:
            torch.manual_seed(0)
            return build(fixed)

        return Case(
            name=name,
            source=" ".join(source.split()),
            kind=kind,
            broken=functools.partial(seeded, False),
            fixed=functools.partial(seeded, True),
            expects=frozenset(expects.split()),
            fails=fails,
            steps=steps,
        )

    return register


def blobs(samples: int, features: int, classes: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Points around one center a class, and their classes: a task that a linear model learns."""
    labels = torch.arange(samples) % classes
    centers = torch.randn(classes, features)
    return centers[labels] + spread * torch.randn(samples, features), labels


def mse(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, target)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())
