"""Recipes: what users write, what optimizers say, and the learning rates up to which a recipe is stable."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from gradlint.cli import cli
from gradlint.errors import ConfigError
from gradlint.frontends.targets import as_recipe
from gradlint.recipe import _ALSO, OPTIMIZERS, Recipe

TEXTS = (
    "sgd lr=0.1",
    "sgd lr=0.1 momentum=0.9 weight_decay=0.0001 nesterov=True",
    "adamw lr=0.0003 clip_norm=1 schedule=warmup:500+cosine",
    "adam lr=0.001 precision=fp16 betas=0.9/0.95 loss_scale=1024",
)
MISTAKES = {
    "adamm lr=1": "unknown optimizer 'adamm'",
    "sgd rl=1": "no setting is called 'rl'",
    "sgd lr=fast": "lr=fast is not a number",
    "sgd lr=-1": "lr is -1",
    "sgd lr=nan": "lr is nan",
    "sgd precision=fp12": "unknown precision 'fp12'",
    "sgd schedule=warm": "unknown schedule 'warm'",
    "sgd lr=inf": "lr is inf",
    "sgd loss_scale=0": "loss_scale is 0",
    "adam betas=0.9": "betas are",
    "adam betas=0.9/1": "betas are",
}


def _linear() -> list[nn.Parameter]:
    return list(nn.Linear(2, 2).parameters())


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_a_recipe_is_read_back_as_that_recipe(text: str):
    assert Recipe.parse(text).text == text
    assert Recipe.parse(Recipe.parse(text).text) == Recipe.parse(text)


@pytest.mark.parametrize("text", MISTAKES)
def test_what_no_optimizer_takes_is_refused_by_name(text: str):
    with pytest.raises(ConfigError, match=MISTAKES[text]):
        Recipe.parse(text)


def test_warmup_is_read_from_the_schedule():
    assert Recipe(schedule="warmup:500 cosine").warmup == 500
    assert Recipe(schedule="cosine").warmup == Recipe().warmup == 0


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
            Recipe("sgd", lr=0.1, momentum=0.9, nesterov=True),
        ),
        (lambda p: torch.optim.Adam(p, lr=3e-4, betas=(0.9, 0.98)), Recipe("adam", lr=3e-4, betas=(0.9, 0.98))),
        (lambda p: torch.optim.AdamW(p, lr=3e-4), Recipe("adamw", lr=3e-4, weight_decay=0.01)),
        (
            lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.01}, {"params": p[1:], "lr": 0.3}], lr=0.1),
            Recipe("sgd", lr=0.3),
        ),
    ],
    ids=["sgd", "adam", "adamw", "groups"],
)
def test_recipe_of_an_optimizer_has_its_settings(make, recipe: Recipe):
    assert Recipe.from_optimizer(make(_linear())) == recipe


def test_what_an_optimizer_does_not_know_can_be_added():
    optimizer = torch.optim.SGD(_linear(), lr=0.1)
    assert Recipe.from_optimizer(optimizer, clip_norm=1.0, schedule="cosine") == Recipe(lr=0.1, clip_norm=1.0, schedule="cosine")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_a_recipe_is_one_of_torch(name: str):
    kinds = {kind.lower(): kind for kind in dir(torch.optim)}
    if name not in kinds:
        pytest.skip(f"torch {torch.__version__} has no {name}")
    weights = [weight for weight in _linear() if weight.ndim == 2]  # all that Muon takes
    optimizer = getattr(torch.optim, kinds[name])(weights, lr=0.01)
    assert Recipe.from_optimizer(optimizer).optimizer == name


def test_name_that_torch_has_not_is_refused():
    with pytest.raises(ConfigError, match="unknown optimizer 'adamx'"):
        Recipe("adamx")


def test_scheduler_that_starts_low_is_a_warmup_to_the_full_learning_rate():
    optimizer = torch.optim.Adam(_linear(), lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 500))
    assert Recipe.from_optimizer(optimizer) == Recipe("adam", lr=1e-3, schedule="warmup:500")


def test_scheduler_that_starts_at_zero_is_a_warmup():
    optimizer = torch.optim.Adam(_linear(), lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 500))
    assert Recipe.from_optimizer(optimizer) == Recipe("adam", lr=1e-3, schedule="warmup:100")


def test_one_cycle_is_a_warmup_to_its_maximum():
    optimizer = torch.optim.SGD(_linear(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=100)
    found = Recipe.from_optimizer(optimizer)
    assert (found.lr, found.warmup) == (0.5, 25)


def test_schedule_of_vaswani_leaves_the_learning_rate_of_the_first_step():
    optimizer = torch.optim.Adam(_linear(), lr=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 512**-0.5 * min((step + 1) ** -0.5, (step + 1) * 4000**-1.5))
    assert Recipe.from_optimizer(optimizer).lr == pytest.approx(512**-0.5 * 4000**-1.5)


def test_optimizer_in_use_is_taken_at_its_learning_rate_of_now():
    weights = _linear()
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    scheduler.step()
    found = Recipe.from_optimizer(optimizer)
    assert (found.lr, found.schedule) == (pytest.approx(1e-4), None)


# stability --------------------------------------------------------------------------------------------------------------


def _radius(step) -> float:
    """Spectral radius of a linear recurrence, given as a function of its state."""
    return float(np.abs(np.linalg.eigvals(step)).max())


def _momentum(lr: float, beta: float, curvature: float, *, ahead: bool) -> np.ndarray:
    """State (w, m) of torch.optim.SGD: m = beta m + h w; w -= lr (m, or h w + beta m)."""
    buffer = np.array([curvature, beta])
    step = np.array([curvature, 0.0]) + beta * buffer if ahead else buffer
    return np.array([[1.0, 0.0] - lr * step, buffer])


@pytest.mark.parametrize("curvature", [0.3, 7.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("nesterov", [False, True])
def test_recurrence_of_momentum_turns_unstable_at_the_limit(curvature: float, beta: float, nesterov: bool):
    limit = Recipe(momentum=beta, nesterov=nesterov).limit(curvature)
    assert _radius(_momentum(0.999 * limit, beta, curvature, ahead=nesterov)) < 1.0
    assert _radius(_momentum(1.001 * limit, beta, curvature, ahead=nesterov)) > 1.0


@pytest.mark.parametrize("decay", [0.0, 0.1, 3.0])
def test_recurrence_of_averaged_gradients_with_decoupled_decay_turns_unstable_at_the_limit(decay: float):
    curvature, beta = 40.0, 0.9
    limit = Recipe("adamw", betas=(beta, 0.999), weight_decay=decay).limit(curvature)
    for factor, stable in ((0.999, True), (1.001, False)):
        lr = factor * limit
        average = np.array([(1.0 - beta) * curvature, beta])
        assert (_radius(np.array([[1.0 - lr * decay, 0.0] - lr * average, average])) < 1.0) is stable


def test_adam_at_its_default_betas_is_stable_up_to_38_over_the_preconditioned_sharpness():
    assert Recipe("adam").limit(1.0) == pytest.approx(38.0)


def test_nothing_limits_the_learning_rate_where_nothing_curves_upwards():
    assert Recipe().limit(-1.0) == Recipe("adamw", weight_decay=0.1).limit(0.0) == math.inf


NEAR = {"learning_rate": "lr", "momentun": "momentum", "wd": "weight_decay", "max_norm": "clip_norm", "warmup_steps": "schedule"}


@pytest.mark.parametrize(("name", "near"), NEAR.items())
@pytest.mark.parametrize("as_text", [True, False])
def test_an_unknown_setting_gets_the_nearest_name(name, near, as_text):
    with pytest.raises(ConfigError, match=rf"no setting is called '{name}'\n.*did you mean {near}\?"):
        as_recipe(f"sgd {name}=0.9" if as_text else {name: 0.9})


def test_other_names_of_settings_lead_to_settings():
    assert set(_ALSO.values()) <= {field.name for field in fields(Recipe)}
    assert not set(_ALSO) & {field.name for field in fields(Recipe)}


def test_a_value_of_another_type_is_told():
    with pytest.raises(ConfigError, match=r"recipe: lr='0.9': .*\n.*numbers"):
        as_recipe({"lr": "0.9"})


def test_a_schedule_is_read_with_plus_and_with_blanks():
    written = Recipe.parse("schedule=warmup:100+cosine")
    assert as_recipe({"schedule": "warmup:100+cosine"}) == written == Recipe(schedule="warmup:100 cosine")


def test_the_help_tells_the_syntax_of_recipes_and_their_settings():
    text = " ".join(CliRunner().invoke(cli, ["check", "--help"]).output.split())
    assert "schedule=warmup:100+cosine" in text
    assert all(field.name in text for field in fields(Recipe) if field.compare and field.name != "optimizer")
