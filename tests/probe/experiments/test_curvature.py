"""Sharpness against dense Hessians."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradlint.errors import ForwardError
from gradlint.probe.experiments.curvature import Hessian, extremes, gradient_of, loss_of, measure_curvature
from gradlint.probe.experiments.objective import Objective
from gradlint.recipe import Recipe, Task
from tests.models.curvature_cases import LOSSES, NETWORKS, SMOOTH, Language, objective, perceptron, posed

KNOWN: dict[tuple[object, str], np.ndarray] = {}


def dense(found: Objective, network: object, loss: str) -> np.ndarray:
    """All eigenvalues of the Hessian of a network of `posed`, ascending, from autograd row by row; taken once."""
    if (network, loss) not in KNOWN:
        KNOWN[network, loss] = eigenvalues(found)
    return KNOWN[network, loss]


def eigenvalues(found: Objective) -> np.ndarray:
    weights = [*found.parameters.values()]
    with sdpa_kernel(SDPBackend.MATH):
        first = torch.autograd.grad(loss_of(found), weights, create_graph=True, allow_unused=True, materialize_grads=True)
        rows = [
            torch.cat([
                part.reshape(-1) for part in torch.autograd.grad(entry, weights, retain_graph=True, materialize_grads=True)
            ])
            for entry in torch.cat([part.reshape(-1) for part in first])
        ]  # fmt: skip
    return np.linalg.eigvalsh(torch.stack(rows).double().numpy())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(name: str, loss: str):
    model, x, task = posed(name, loss, NETWORKS)
    with objective(model, x, task) as found:
        curvature = measure_curvature(found, Recipe())
        values = dense(found, NETWORKS[name], loss)
    assert curvature.exact
    assert curvature.products <= 30
    assert curvature.sharpness == pytest.approx(values[-1], rel=0.03)
    assert values[0] <= curvature.lowest + 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SMOOTH)
def test_sharpness_by_differences_of_gradients_is_that_eigenvalue_too(name: str, loss: str):
    model, x, task = posed(name, loss, SMOOTH)
    with objective(model, x, task) as found:
        start = gradient_of(found)
        hessian = Hessian(found, exact=False)
        sharpness = extremes(hessian, start / start.norm() + torch.randn_like(start) / start.numel() ** 0.5).largest
        values = dense(found, SMOOTH[name], loss)
    assert not hessian.exact
    assert sharpness == pytest.approx(values[-1], rel=0.03)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_preconditioned_sharpness_is_that_of_the_dense_preconditioned_hessian(optimizer: str, decay: float):
    model, x, task = posed("perceptron", "cross-entropy", SMOOTH)
    recipe = Recipe(optimizer, lr=1e-3, eps=1e-4, weight_decay=decay)
    with objective(model, x, task) as found:
        curvature = measure_curvature(found, recipe)
        weights = [*found.parameters.values()]
        size = sum(weight.numel() for weight in weights)
        hessian = Hessian(found)
        matrix = torch.stack([hessian(row) for row in torch.eye(size)]).double() + decay * torch.eye(size)
        root = (gradient_of(found).abs() + recipe.eps).rsqrt().double()
    values = np.linalg.eigvalsh((root[:, None] * matrix * root).numpy())
    assert curvature.preconditioned == pytest.approx(values[-1], rel=0.03)
    assert curvature.limit == pytest.approx(recipe.limit(values[-1]), rel=0.03)


class Rounding(torch.autograd.Function):
    """The identity, with a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron(nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(Rounding.apply(self.body[0](x)) @ self.body[0].weight)


def test_differences_are_taken_where_the_backward_pass_cannot_be_differentiated():
    torch.manual_seed(0)
    model, x = Once(), torch.randn(16, 6)
    with objective(model, x, Task(loss=lambda output, _: output.square().mean())) as found:
        once = measure_curvature(found, Recipe())
        Rounding.apply, kept = (lambda x: x), Rounding.apply
        try:
            twice = measure_curvature(found, Recipe())
        finally:
            Rounding.apply = kept
    assert (once.exact, twice.exact) == (False, True)
    assert once.sharpness == pytest.approx(twice.sharpness, rel=0.03)


def test_fused_attention_is_differentiated_twice():
    torch.manual_seed(0)
    with objective(Language(), torch.randint(11, (4, 5))) as found:
        assert measure_curvature(found, Recipe()).exact


def test_half_precision_is_measured_where_it_can_be_differentiated_twice():
    torch.manual_seed(0)
    model, x = perceptron(nn.Tanh), torch.randn(16, 6)
    with objective(model, x) as found:
        full = measure_curvature(found, Recipe())
    with objective(model.bfloat16(), x.bfloat16()) as found:
        half = measure_curvature(found, Recipe())
        hessian = Hessian(found, exact=False)
        with pytest.raises(ForwardError, match="too coarse"):
            hessian(torch.ones(half.weights))
    assert half.sharpness == pytest.approx(full.sharpness, rel=0.1)


def test_loss_that_is_linear_in_the_weights_has_no_curvature_and_no_limit():
    with objective(nn.Linear(4, 1), torch.randn(8, 4), Task(loss=lambda output, _: output.mean())) as found:
        curvature = measure_curvature(found, Recipe())
    assert (curvature.sharpness, curvature.lowest, curvature.limit) == (0.0, 0.0, math.inf)


def test_largest_eigenvalue_counts_where_a_negative_one_is_larger_in_size():
    values = torch.linspace(-50.0, 3.0, 40)
    found = extremes(lambda vector: values * vector, torch.randn(40, generator=torch.Generator().manual_seed(0)))
    assert found.largest == pytest.approx(3.0, rel=0.03)
    assert found.smallest == pytest.approx(-50.0, rel=0.03)


def test_loss_that_is_not_finite_is_refused():
    model = nn.Linear(4, 1)
    task = Task(loss=lambda output, _: (output * math.inf).sum())
    with objective(model, torch.randn(8, 4), task) as found, pytest.raises(ForwardError, match="not finite"):
        measure_curvature(found, Recipe())


def test_evaluation_is_the_same_function_under_dropout_and_spectral_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Dropout(0.5), nn.Linear(8, 3))
    with objective(model, torch.randn(16, 6)) as found:
        first = loss_of(found).detach()
        gradient_of(found, 3)
        assert loss_of(found) == first
        assert measure_curvature(found, Recipe("adam")) == measure_curvature(found, Recipe("adam"))


def test_products_that_overflow_are_an_error_of_their_own():
    with pytest.raises(ForwardError, match="overflow"):
        extremes(lambda vector: vector * math.inf, torch.ones(4))
