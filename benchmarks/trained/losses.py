"""Losses by name, and the loss of the best constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.trained.data import HELD_OUT, dataset, held_out
from benchmarks.trained.spec import Loss, Spec

TEMPERATURE = 0.2
LossFunction = Callable[[Any, Tensor], Tensor]


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())


def _unguarded(output: Tensor, target: Tensor) -> Tensor:
    probabilities = output.flatten(0, -2)
    return -torch.log(probabilities[torch.arange(len(probabilities)), target.flatten()]).mean()


def _elbo(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    rebuilt, mean, logvar = output
    error = 0.5 * (rebuilt - target).pow(2).flatten(1).sum(-1)
    return (error + 0.5 * (mean.pow(2) + logvar.exp() - logvar - 1).sum(-1)).mean()


def _likelihood(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    del target  # the data themselves
    z, change = output
    return (0.5 * z.pow(2).mean(-1) + 0.5 * math.log(2 * math.pi) - change / z.shape[-1]).mean()


def _contrast(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    one, other = output
    logits = one @ other.T / TEMPERATURE
    return 0.5 * (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target))


_LOSSES: dict[str, LossFunction] = {
    "ce": _cross_entropy,
    "bce": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
    "elbo": _elbo,
    "nll": _likelihood,
    "infonce": _contrast,
}


def loss_function(loss: Loss) -> LossFunction:
    """A function of the network's output and the target that returns a scalar."""
    plain = _unguarded if loss.log else _LOSSES[loss.name]

    def value(output: Any, target: Tensor) -> Tensor:
        scalar = plain(output, target)
        if loss.summed:
            scalar = scalar * target.numel()
        return scalar if loss.weight == 1.0 else loss.weight * scalar

    return value


def floors(spec: Spec) -> tuple[float, float]:
    """The loss of the best constant output, on the rows of training and on the held-out batches.

    The constant is fitted on the rows of training and may differ from output to output: the mean for squared errors, the median
    for absolute and Huber losses, base rates for cross-entropies. The ELBO, a flow and two towers know no constant; the best that
    knows nothing of a row is the mean image with an empty code, a normal distribution of each coordinate, and equal similarities.
    """
    _, target = dataset(spec)
    seen, kept = target[:-HELD_OUT], torch.cat([aim for _, aim in held_out(spec)])
    scale = spec.loss.weight * (spec.batch * target[0].numel() if spec.loss.summed else 1)
    return scale * _floor(spec, seen, seen), scale * _floor(spec, seen, kept)


def _floor(spec: Spec, seen: Tensor, rows: Tensor) -> float:
    name = spec.loss.name
    if name == "ce":
        constant = torch.bincount(seen.flatten(), minlength=int(seen.max()) + 1).float().clamp_min(1).log()
        value = functional.cross_entropy(constant.expand(rows.numel(), -1), rows.flatten())
    elif name == "bce":
        value = functional.binary_cross_entropy(seen.mean(0).clamp(1e-3, 1 - 1e-3).expand_as(rows), rows)
    elif name == "elbo":
        value = 0.5 * (rows - seen.mean(0)).pow(2).flatten(1).sum(-1).mean()
    elif name == "nll":
        spread = seen.std(0)
        value = (0.5 * ((rows - seen.mean(0)) / spread).pow(2) + 0.5 * math.log(2 * math.pi) + spread.log()).mean()
    elif name == "infonce":
        value = torch.tensor(math.log(spec.batch))
    else:
        constant = seen.mean(0) if name == "mse" else seen.median(0).values
        value = _LOSSES[name](constant.expand_as(rows), rows)
    return float(value)
