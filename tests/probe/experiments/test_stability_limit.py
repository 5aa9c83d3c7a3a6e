"""Stability limits against training, and what a check makes of them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlint
from gradlint.api import _specs
from gradlint.frontends.onnx.file import read_onnx
from gradlint.measurements.curvature import Curvature
from gradlint.onnx_torch.runnable import OnnxRunnable
from gradlint.probe.experiments.curvature import gradient_of, measure_curvature
from gradlint.probe.experiments.objective import Objective
from gradlint.process.messages import pack, unpack
from gradlint.recipe import Recipe, Task
from tests.models.curvature_cases import convolutional, objective, perceptron, squared
from tests.models.exports import SCRIPT

Loss = Callable[[Any, Any], Tensor]


@dataclass
class Quadratic:
    """Linear regression, whose Hessian is that of the inputs, with torch's own optimizer."""

    x: Tensor
    y: Tensor

    @classmethod
    def drawn(cls) -> Quadratic:
        generator = torch.Generator().manual_seed(0)
        scales = torch.tensor([0.5, 1.0, 1.0, 2.0, 3.0])
        return cls(
            scales * torch.randn(64, 5, generator=generator),
            torch.randn(64, 1, generator=generator),
        )

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(5, 1)

    def limit(self, recipe: Recipe) -> float:
        with objective(self.model(), self.x, Task(loss=squared, target=self.y)) as found:
            return measure_curvature(found, recipe).limit

    def losses(self, make: Callable[[Any], torch.optim.Optimizer], steps: int = 600) -> list[float]:
        model = self.model().double()
        return trained(model, self.x.double(), lambda output: squared(output, self.y.double()), make(model.parameters()), steps)


def trained(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, steps: int
) -> list[float]:
    losses = []
    for _ in range(steps):
        value = loss(model(x))
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]) or losses[-1] > 1e9:
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return losses


def diverges(losses: list[float]) -> bool:
    return losses[-1] > losses[0] or not math.isfinite(losses[-1])


SGD = {
    "plain": Recipe(),
    "momentum": Recipe(momentum=0.9),
    "nesterov": Recipe(momentum=0.9, nesterov=True),
    "weight decay": Recipe(weight_decay=2.0),
}


def _optimizer(recipe: Recipe, lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    settings = {"momentum": recipe.momentum, "nesterov": recipe.nesterov, "weight_decay": recipe.weight_decay}
    return lambda weights: torch.optim.SGD(weights, lr=lr, **settings)


@pytest.mark.parametrize("name", SGD)
def test_sgd_on_a_quadratic_diverges_just_above_the_limit_and_not_just_below(name: str):
    task, recipe = Quadratic.drawn(), SGD[name]
    limit = task.limit(recipe)
    assert diverges(task.losses(_optimizer(recipe, 1.05 * limit)))
    assert not diverges(task.losses(_optimizer(recipe, 0.95 * limit)))


@pytest.mark.parametrize("decay", [0.0, 2.0])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_on_a_quadratic_diverges_just_above_the_limit_of_its_preconditioner(name: str, decay: float):
    task = Quadratic.drawn()
    recipe = Recipe(name, eps=1e-3, weight_decay=decay)
    limit = task.limit(recipe)
    with objective(task.model(), task.x, Task(loss=squared, target=task.y)) as found:
        squares = gradient_of(found).square().double().split([5, 1])

    def held(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
        """torch's optimizer, long after its start, with a second moment that does not change any more."""

        def make(weights: Any) -> torch.optim.Optimizer:
            listed = list(weights)
            kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
            optimizer = kind(listed, lr=lr, betas=(0.9, 1.0 - 1e-16), eps=recipe.eps, weight_decay=decay)
            for weight, square in zip(listed, squares, strict=True):
                state = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": square.reshape(weight.shape).clone()}
                optimizer.state[weight] = {"step": torch.tensor(1e20), **state}
            return optimizer

        return make

    assert diverges(task.losses(held(1.05 * limit)))
    assert not diverges(task.losses(held(0.95 * limit)))


@pytest.mark.parametrize("name", ["plain", "momentum"])
def test_sgd_leaves_the_minimum_of_a_small_network_just_above_the_limit_and_not_just_below(name: str):
    """A network is no quadratic, and moves to where it is flatter; at a minimum the limit says whether it can stay."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double(), torch.randn(32, 4).double()
    with torch.no_grad():
        y = model(x)
    with objective(model, x, Task(loss=squared, target=y)) as found:
        limit = measure_curvature(found, SGD[name]).limit
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    ends = {}
    for factor in (0.95, 1.05):
        model.load_state_dict({key: value + 1e-6 * torch.randn_like(value) for key, value in kept.items()})
        losses = trained(
            model, x, lambda output: squared(output, y), _optimizer(SGD[name], factor * limit)(model.parameters()), 400
        )
        ends[factor] = losses[-1] / losses[0]
    assert ends[0.95] < 1.0
    assert ends[1.05] > 100.0


# in a check -------------------------------------------------------------------------------------------------------------


def test_onnx_model_has_the_sharpness_of_the_module_that_it_was_exported_from(tmp_path: Path):
    torch.manual_seed(0)
    model, x = perceptron(nn.Tanh), torch.randn(16, 6)
    y = torch.randn(16, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", **SCRIPT, training=torch.onnx.TrainingMode.PRESERVE)
    task = Task(loss=lambda output, target: squared(output[0] if isinstance(output, tuple) else output, target), target=y)
    with objective(model, x, task) as found:
        expected = measure_curvature(found, Recipe("adam"))
    file = read_onnx(tmp_path / "model.onnx")
    runnable = OnnxRunnable(file, file.inputs_with(_specs((x,), {})))
    with runnable.untouched():
        curvature = measure_curvature(Objective(runnable, task), Recipe("adam"))
    assert curvature.exact
    assert curvature.sharpness == pytest.approx(expected.sharpness, rel=0.03)
    assert curvature.preconditioned == pytest.approx(expected.preconditioned, rel=0.03)


def test_curvature_survives_the_way_between_processes():
    found = Curvature(2.3, 4.0, -1.0, 0.001, (1.0, 1.1), 0.1, 12, math.inf, None, "a surrogate: distance to random numbers")
    assert unpack(Curvature, json.load(io.StringIO(json.dumps(pack(found))))) == found
    assert dataclasses.replace(found, stands_in="").is_surrogate is False


def test_check_with_a_recipe_hands_the_model_back_untouched():
    torch.manual_seed(0)
    model = convolutional().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(16, 2, 8, 8)
    state = torch.get_rng_state()
    gradlint.check(model, x, recipe="adam lr=1e-3", rehearse=0, select=["GL7"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert all(child.training for child in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def _rules(report: gradlint.Report, code: str) -> list[gradlint.Finding]:
    return [finding for finding in report.findings if finding.rule == code]


def test_learning_rate_far_above_the_limit_that_fails_the_rehearsal_is_an_error():
    torch.manual_seed(0)
    model, x, y = perceptron(nn.Tanh), torch.randn(64, 6), torch.randn(64, 3)
    (finding,) = _rules(gradlint.check(model, x, loss=squared, target=y, recipe="sgd lr=20", select=["GL7"]), "GL703")
    assert finding.severity == "error"
    assert finding.evidence["factor"] > 1.0
    assert not _rules(gradlint.check(model, x, loss=squared, target=y, recipe="sgd lr=0.05", select=["GL7"]), "GL703")


def test_model_without_weights_has_no_curvature():
    report = gradlint.check(
        nn.Sequential(nn.Tanh(), nn.Flatten()), torch.randn(4, 3), recipe="sgd lr=0.1", rehearse=0, select=["GL7"]
    )
    assert not any("curvature" in note for note in report.result.notes)
