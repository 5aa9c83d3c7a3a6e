"""The best constant of a batch is what a formula says, and None where a constant is no baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradlint.probe.experiments.constant import best_constant

Loss = Callable[[Any, Any], Tensor]


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TARGET = 60.0 + 20.0 * _drawn(32, 12)
OUTPUT = _drawn(32, 12, seed=1)
RARE = (torch.arange(64) % 10 == 0).long()


def _entropy(*shares: float) -> float:
    return -sum(share * math.log(share) for share in shares)


def _pinball(output: Tensor, target: Tensor) -> Tensor:
    return torch.maximum(0.9 * (target - output), 0.1 * (output - target)).mean()


def _gaussian(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, log_variance = output
    return 0.5 * ((target - mean).square() / log_variance.exp() + log_variance).mean()


def _logcosh(output: Tensor, target: Tensor) -> Tensor:
    return (output - target + F.softplus(2.0 * (target - output)) - math.log(2.0)).mean()


def _grid(loss: Loss, target: Tensor) -> float:
    """The lowest loss of 20000 constants, for an output of one unit."""
    values = torch.linspace(float(target.min()), float(target.max()), 20000)
    return min(float(loss(value.expand(target.shape), target)) for value in values)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_it_is_the_variance_for_squared_errors(scale: float):
    target = scale * TARGET
    expected = float((target - target.mean(0)).square().mean())
    assert best_constant(F.mse_loss, OUTPUT, target) == pytest.approx(expected, rel=1e-4)
    summed = best_constant(lambda y, t: (y - t).square().sum(), OUTPUT, target)
    assert summed == pytest.approx(expected * target.numel(), rel=1e-4)


def test_it_is_the_distance_from_the_median_for_absolute_errors():
    expected = float((TARGET - TARGET.median(0).values).abs().mean())
    assert best_constant(F.l1_loss, OUTPUT, TARGET) == pytest.approx(expected, rel=1e-4)


def test_it_is_the_entropy_of_the_base_rates_for_cross_entropies():
    rates = _entropy(7 / 64, 57 / 64)
    logits = _drawn(64, 2)
    assert best_constant(F.cross_entropy, logits, RARE) == pytest.approx(rates, rel=1e-3)
    assert best_constant(F.nll_loss, logits.log_softmax(-1), RARE, last="log_softmax") == pytest.approx(rates, rel=1e-3)
    one, rare = logits[:, :1], RARE[:, None].float()
    assert best_constant(F.binary_cross_entropy_with_logits, one, rare) == pytest.approx(rates, rel=1e-3)
    assert best_constant(F.binary_cross_entropy, one.sigmoid(), rare, last="sigmoid") == pytest.approx(rates, rel=1e-3)


@pytest.mark.parametrize("loss", [F.smooth_l1_loss, _logcosh, _pinball, lambda y, t: (y - t).square().mean().sqrt()])
def test_it_is_found_for_other_losses_as_a_fine_grid_finds_it(loss: Loss):
    target = 5.0 + 3.0 * _drawn(64, 1)
    assert best_constant(loss, _drawn(64, 1, seed=1), target) == pytest.approx(_grid(loss, target), rel=0.01)


def test_it_takes_several_outputs_together():
    target = 5.0 + 3.0 * _drawn(64, 1)
    expected = 0.5 * (1.0 + math.log(float(target.var(unbiased=False))))
    assert best_constant(_gaussian, (_drawn(64, 1, seed=1), _drawn(64, 1, seed=2)), target) == pytest.approx(expected, rel=1e-3)


def test_channels_share_their_positions():
    image = _drawn(8, 3, 10, 10) + 10.0 * torch.arange(3.0)[:, None, None]
    expected = float((image - image.mean((0, 2, 3), keepdim=True)).square().mean())
    assert best_constant(F.mse_loss, _drawn(8, 3, 10, 10, seed=1), image) == pytest.approx(expected, rel=1e-4)


def test_few_samples_of_many_classes_leave_equal_probabilities():
    """A constant for each of a thousand classes would learn sixteen labels by heart."""
    assert best_constant(F.cross_entropy, _drawn(16, 1000), 7 * torch.arange(16)) == pytest.approx(math.log(1000.0), rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (F.mse_loss, torch.full((32, 12), 3.0)),
        (F.mse_loss, None),
        (lambda y, _: y.mean(), None),
        (lambda y, _: -y.square().clamp(min=1e-6).log().mean(), None),
        (lambda y, _: -F.cosine_similarity(y, y.flip(0)).mean(), None),
        (lambda y, _: F.softplus(y - y.square()).mean(), None),
        (lambda y, _: F.cross_entropy(10.0 * F.normalize(y) @ F.normalize(y).T, torch.arange(32).roll(1)), None),
        (lambda y, _: (y[0] - y[1:]).pow(0.5).item(), None),
    ],
    ids=["one target", "raises", "unbounded", "slowly unbounded", "collapse", "adversarial", "contrastive", "no tensor"],
)
def test_none_where_a_constant_is_no_baseline(loss: Loss, target: Tensor | None):
    assert best_constant(loss, OUTPUT, target) is None


def test_none_without_a_batch():
    assert best_constant(F.mse_loss, torch.tensor(1.0), torch.tensor(2.0)) is None
    assert best_constant(F.mse_loss, torch.ones(1, 2), torch.zeros(1, 2)) is None
