"""Branches beside the spine that are silent for good, or by chance; and layers of equal weights, alone and in a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlint
from gradlint import Severity
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.theory.reading.zeros import shut_weights
from tests.models.zero_starts import STARTS


def he(inside: int, outside: int) -> nn.Linear:
    layer = nn.Linear(inside, outside)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class NoGradient(torch.autograd.Function):
    """The identity with a backward pass that forgets the gradient."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


class Side(nn.Module):
    """A trunk, and a branch beside it whose middle is given."""

    def __init__(self, middle: Callable[[Tensor], Tensor], *, width: int = 64, bias: float = 0.0) -> None:
        super().__init__()
        self.trunk = nn.Sequential(he(32, 64), nn.ReLU(), he(64, 64))
        self.first, self.middle, self.second, self.head = he(32, width), middle, he(width, 64), he(64, 10)
        nn.init.constant_(self.first.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.trunk(x) + self.second(self.middle(self.first(x)))))


SILENT: dict[str, Callable[[], nn.Module]] = {
    "dead relu": lambda: Side(torch.relu, bias=-50.0),
    "dead relu6": lambda: Side(F.relu6, bias=100.0),
    "saturated sigmoid": lambda: Side(torch.sigmoid, bias=200.0),
    "saturated hardtanh": lambda: Side(F.hardtanh, bias=100.0),
    "clamp": lambda: Side(lambda h: h.clamp(0.0, 1.0), bias=50.0),
    "times zero": lambda: Side(lambda h: 0.0 * h),
    "masked": lambda: Side(lambda h: h.masked_fill(torch.ones_like(h, dtype=torch.bool), 0.0)),
    "dropout of everything": lambda: Side(lambda h: F.dropout(h, 1.0)),
    "norm over one value": lambda: Side(nn.LayerNorm(1), width=1),
    "softmax over one value": lambda: Side(lambda h: torch.softmax(h, -1), width=1),
    "bernoulli": lambda: Side(lambda h: torch.bernoulli(torch.sigmoid(h))),
    "custom backward": lambda: Side(NoGradient.apply),
}


def linted(make: Callable[[], nn.Module], **options: object) -> gradlint.Report:
    torch.manual_seed(0)
    module = make()
    return gradlint.check(module, torch.randn(8, 32), **options)


def errors(report: gradlint.Report) -> dict[str, str]:
    return {finding.rule: finding.module for finding in report.findings if finding.severity is Severity.ERROR}


@pytest.mark.parametrize("name", SILENT)
def test_a_branch_that_is_silent_for_good_is_an_error_that_names_its_layer(name):
    report = linted(SILENT[name])
    assert report.verdict == "untrainable"
    assert {rule: place for rule, place in errors(report).items() if rule != "GL304"} == {"GL806": "first"}


class Chance(nn.Module):
    """A branch that is left out in seven of ten passes."""

    def forward(self, h: Tensor) -> Tensor:
        return h * (torch.rand(()) < 0.3).float()


OPEN: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: Side(torch.relu),
    "stochastic depth": lambda: Side(Chance()),
    "a few silent units": lambda: Side(torch.relu, width=4, bias=-50.0),
    "gate by the input": lambda: Side(lambda h: h * (h.sum() > 1e9)),
}


@pytest.mark.parametrize("name", OPEN)
def test_a_branch_that_may_open_is_no_error(name):
    report = linted(OPEN[name])
    assert report.verdict == "healthy"
    assert not errors(report)


class Chain(nn.Module):
    """Layers with an activation between."""

    def __init__(self, layers: nn.ModuleList, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.act = layers, act

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


def _pull(module: nn.Module) -> None:
    """Pull a random cotangent back."""
    y = module(torch.randn(8, 6))
    y.backward(torch.randn_like(y))


class Attention(nn.Module):
    """Hand-written attention and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.head = he(32, 32), he(32, 32), he(32, 32), he(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5, -1)
        return self.head(x + shares @ self.value(x))


def test_sequences_of_one_token_do_not_make_attention_untrainable():
    torch.manual_seed(0)
    report = gradlint.check(Attention(), torch.randn(8, 1, 32))
    assert (report.verdict, errors(report)) == ("healthy", {})
    assert [(finding.rule, finding.module) for finding in report.findings] == [("GL806", "query, key")]
    assert not gradlint.check(Attention(), torch.randn(8, 5, 32)).findings


@pytest.mark.parametrize("bias", [True, False])
def test_a_placeholder_of_zeros_is_replaced_and_that_is_said(bias):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    report = gradlint.check(module, torch.zeros(8, 3, 8, 8))
    assert (report.verdict, errors(report)) == ("healthy", {})
    assert any("all zeros" in note for note in report.result.notes)


def test_a_state_of_zeros_beside_an_input_is_left_as_it_is():
    torch.manual_seed(0)
    state = torch.zeros(1, 4, 16), torch.zeros(1, 4, 16)
    report = gradlint.check(nn.LSTM(8, 16), (torch.randn(5, 4, 8), state))
    assert not any("all zeros" in note for note in report.result.notes)


# equal weights ---------------------------------------------------------------------------------------------------------------


def tower(*constant: int, act: Callable[[], nn.Module] = nn.ReLU, bias: bool = False) -> nn.Sequential:
    """Five layers, those at some places with equal weights."""
    layers = [he(32, 64), *(he(64, 64) for _ in range(3)), he(64, 10)]
    for index in constant:
        nn.init.constant_(layers[index].weight, 0.05)
        if bias:
            nn.init.normal_(layers[index].bias)
    return nn.Sequential(*(part for layer in layers[:-1] for part in (layer, act())), layers[-1])


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("constant", [(), (0,), (1,), (2,), (4,), (1, 3)])
def test_equal_weights_before_random_ones_are_no_error(constant, act, probe):
    assert "GL104" not in errors(linted(lambda: tower(*constant, act=act), probe=probe))


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize(("constant", "named"), [((1, 2), "2"), ((3, 4), "6"), ((0, 1, 2, 3, 4), "0-6")])
def test_equal_weights_in_a_row_are_an_error_at_all_but_the_last(constant, named, probe):
    assert errors(linted(lambda: tower(*constant, act=nn.Tanh), probe=probe))["GL104"] == named


def test_random_biases_tell_units_of_equal_weights_apart():
    assert "GL104" not in errors(linted(lambda: tower(1, 2, act=nn.Tanh, bias=True)))


@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.parametrize("name", STARTS)
def test_zeros_by_design_are_no_error_without_a_probe(name, depth):
    torch.manual_seed(0)
    module, args = STARTS[name](depth)
    report = gradlint.check(module, args, probe=False)
    assert not errors(report)
    assert report.verdict in {"healthy", "unknown"}


@pytest.mark.parametrize("act", [torch.relu, torch.tanh, F.gelu, torch.sigmoid])
@pytest.mark.parametrize("zero", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_zeros_that_never_move_are_those_of_the_theory(zero, act, bias):
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(6, 6, bias=bias) for _ in range(3))
    for index in zero:
        for parameter in layers[index].parameters():
            nn.init.zeros_(parameter)
    module = Chain(layers, act)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    runnable = TorchRunnable(module, (), args=(torch.randn(8, 6),), kwargs={}, mode="train", target_name="chain")
    with runnable.untouched():
        runnable.forward([spec.draw(np.random.default_rng(0)) for spec in runnable.inputs])
    for _ in range(8):
        module.zero_grad()
        _pull(module)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-0.05)
    zeros = {name for name, tensor in before.items() if not tensor.any()}
    still = {name for name, parameter in module.named_parameters() if name in zeros and not parameter.any()}
    assert shut_weights(runnable.graph) == still


@pytest.mark.slow
@pytest.mark.parametrize("constant", [(), (1,), (4,), (1, 2), (3, 4), (0, 1, 2, 3, 4)])
def test_training_agrees(constant):
    torch.manual_seed(0)
    module, centers = tower(*constant), torch.randn(10, 32)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(400):
        labels = torch.randint(0, 10, (128,))
        loss = F.cross_entropy(module(centers[labels] + torch.randn(128, 32)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (float(loss.detach()) < 0.3) is ("GL104" not in errors(linted(lambda: tower(*constant))))
