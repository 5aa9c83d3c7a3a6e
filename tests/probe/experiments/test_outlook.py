"""A rehearsal that ends no better than the best constant is judged as plain training is."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradlint
from gradlint.measurements.rehearsal import LEARNED, Outlook, Rehearsal
from gradlint.recipe import Recipe
from tests.models.rehearsal_cases import mlp, rehearsed

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
SIGNAL = (X[:, :1] * X[:, 1:2] + X[:, 2:3].sin()) / 1.2


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _wide(std: float | None = None, outputs: int = 1) -> nn.Sequential:
    model = mlp(8, 32, 32, outputs)
    for layer in model:
        if std is not None and isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    return model


def _ends(model: nn.Module, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor], recipe: Recipe, steps: int) -> float:
    """The loss after a training loop as tutorials write it."""
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[recipe.optimizer]
    optimizer = kind(model.parameters(), lr=recipe.lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(X), target).backward()
        optimizer.step()
    return float(loss(model(X), target).detach())


REGRESSIONS = [(60.0, 20.0, F.mse_loss), (-300.0, 40.0, F.l1_loss), (10.0, 1.0, F.smooth_l1_loss)]


@pytest.mark.parametrize("recipe", ["sgd lr=1e-8", "adam lr=1e-8"])
@pytest.mark.parametrize(("mean", "deviation", "loss"), REGRESSIONS)
def test_a_rate_that_no_affordable_run_can_make_up_for_is_unstable(
    mean: float, deviation: float, loss: Callable[[Tensor, Tensor], Tensor], recipe: str
):
    target = mean + deviation * SIGNAL
    report = gradlint.check(_wide(), X, loss=loss, target=target, recipe=recipe, seeds=1)
    found = report.result.observed["rehearsal"]
    assert found.outlook is Outlook.SLOW
    assert report.verdict == "unstable"
    assert _ends(_wide(), target, loss, Recipe.parse(recipe), 300) > found.chance


@pytest.mark.parametrize(
    ("recipe", "mean", "deviation", "steps"),
    [
        ("sgd lr=1e-3", 0.0, 1.0, 2000),
        ("sgd lr=1e-3", 10.0, 1.0, 2000),
        ("adam lr=1e-4", 0.0, 1.0, 2000),
        ("adam lr=1e-5", 0.0, 1.0, 6000),
        ("adam lr=1e-3", 60.0, 20.0, 2000),
        ("adam lr=1e-3", 0.0, 1e-3, 2000),
    ],
)
def test_a_loss_that_falls_steadily_is_never_called_stuck(recipe: str, mean: float, deviation: float, steps: int):
    target = mean + deviation * SIGNAL
    found = rehearsed(_wide(), X, recipe, loss=F.mse_loss, target=target)
    assert not found.fails
    assert found.outlook is None
    torch.manual_seed(0)
    assert _ends(_wide(), target, F.mse_loss, Recipe.parse(recipe), steps) < (1.0 - LEARNED) * (found.chance or 0.0)


def test_a_warm_up_is_reckoned_at_its_full_rate():
    found = rehearsed(_wide(), X, "adamw lr=1e-3 schedule=warmup:1000", loss=F.mse_loss, target=SIGNAL)
    assert not found.is_certain


def test_a_first_loss_of_thousands_of_constants_that_stays_high_is_unstable():
    report = gradlint.check(_wide(1.5), X, loss=F.mse_loss, target=SIGNAL, recipe="adamw lr=1e-4", seeds=1)
    found = report.result.observed["rehearsal"]
    assert found.losses[0] > 1000.0 * found.chance
    assert found.outlook is Outlook.SCALE
    assert report.verdict == "unstable"
    errors = {finding.rule: finding for finding in report.findings if finding.severity == "error"}
    assert set(errors) >= {"GL107", "GL807"}
    assert errors["GL807"].caused_by == "GL107"


def test_an_offset_target_is_an_error_of_its_own_where_nothing_brings_the_loss_down():
    target = 1000.0 + SIGNAL
    held = gradlint.check(_wide(), X, loss=F.mse_loss, target=target, recipe="adam lr=1e-4", seeds=1)
    assert held.verdict == "unstable"
    assert "GL601" in {finding.rule for finding in held.findings if finding.severity == "error"}
    assert not [f for f in gradlint.check(_wide(), X, loss=F.mse_loss, target=SIGNAL).findings if f.rule in {"GL107", "GL601"}]


def test_a_limit_far_below_the_rate_is_the_consequence_of_the_scale():
    report = gradlint.check(_wide(2.0), 30.0 * X, loss=F.mse_loss, target=SIGNAL, recipe="sgd lr=0.1", seeds=1)
    (found,) = [finding for finding in report.findings if finding.rule == "GL703"]
    assert found.evidence["factor"] > 1000.0
    assert found.caused_by in {"GL107", "GL601"}


def test_a_loss_that_starts_at_the_constant_of_one_class_alone_is_left_alone():
    labels = torch.zeros(64, dtype=torch.long)
    found = rehearsed(_wide(outputs=3), X, "sgd lr=0.1", loss=F.cross_entropy, target=labels)
    assert not found.fails


def test_classes_that_stay_at_their_base_rates_are_found():
    labels = (SIGNAL[:, 0] > 0.8).long()
    found = rehearsed(_wide(outputs=2), X, "adam lr=1e-9", loss=F.cross_entropy, target=labels)
    assert found.is_certain
    assert not rehearsed(_wide(outputs=2), X, "adam lr=1e-3", loss=F.cross_entropy, target=labels).fails


def _unknown(output: Tensor, _: Tensor) -> Tensor:
    return output.square().mean() + output.roll(1, 0).mul(output).mean().cos()


def test_nothing_is_said_of_a_constant_that_is_no_baseline():
    assert rehearsed(_wide(), X, "sgd lr=1e-3", loss=_unknown, target=SIGNAL).outlook is None


# bare weights -------------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A linear layer whose output is scaled by a function of a bare weight."""

    def __init__(self, function: Callable[[Tensor], Tensor], value: float) -> None:
        super().__init__()
        self.fc, self.sigma, self.function = nn.Linear(8, 1), nn.Parameter(torch.full((1,), value)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.function(self.sigma)


def _first_bad_step(model: nn.Module, target: Tensor, recipe: Recipe, steps: int) -> int | None:
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), target)
        if not math.isfinite(loss.item()):
            return step
        loss.backward()
        optimizer.step()
    return None


def _left(model: nn.Module, target: Tensor) -> Rehearsal:
    return rehearsed(model, X, "adam lr=1e-3", loss=F.mse_loss, target=target)


def test_a_bare_weight_that_walks_out_of_its_domain_is_named_with_the_step():
    def make() -> Scaled:
        torch.manual_seed(0)
        return Scaled(torch.sqrt, 0.1)

    found = _left(make(), torch.zeros(64, 1))
    (item,) = found.leaving
    assert (item.weight, item.function, item.confirmed) == ("sigma", "sqrt", True)
    assert item.step == _first_bad_step(make(), torch.zeros(64, 1), Recipe("adam", 1e-3), 3000)
    assert not _left(Scaled(torch.sqrt, 0.3), torch.zeros(64, 1)).leaving  # the factor beside it is gone before
    report = gradlint.check(make(), X, loss=F.mse_loss, target=torch.zeros(64, 1), recipe="adam lr=1e-3", seeds=1)
    assert report.verdict == "unstable"
    assert any("sigma, which stands bare in sqrt" in finding.message for finding in report.findings)


@pytest.mark.parametrize(
    "function", [torch.sqrt, torch.reciprocal, lambda s: 1.0 / s**2, torch.exp, lambda s: 1.0 / F.softplus(s)]
)
def test_a_bare_weight_that_finds_its_place_is_left_alone(function: Callable[[Tensor], Tensor]):
    target = X[:, :1] + X[:, 1:2]
    assert not _left(Scaled(function, 0.8), target).leaving


def test_the_scale_of_a_likelihood_is_held_up_by_its_own_gradient():
    model = Scaled(torch.ones_like, 1.0)
    with torch.no_grad():
        model.fc.weight.copy_(0.9 * torch.eye(8)[:1])

    def likelihood(output: Tensor, target: Tensor) -> Tensor:
        return (model.sigma.log() + 0.5 * ((target - output) / model.sigma).square()).mean()

    found = rehearsed(model, X, "adam lr=1e-3", loss=likelihood, target=X[:, :1])
    assert not found.leaving
