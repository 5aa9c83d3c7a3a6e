"""Layers of finite width against autograd on many draws of the weights: what adds up coherently, and what scatters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlint.frontends.inputs import InputSpec
from gradlint.load import load
from gradlint.ops import activation
from gradlint.structure import Structure
from gradlint.theory.gaussian.pointwise_of_gaussian import apply, expect, gaussian
from gradlint.theory.prediction import Prediction, predict
from gradlint.theory.transfer import fluctuation
from gradlint.theory.transfer.coherence import Coherence, Summand, added, at_sum, gram, through_layer, through_slope
from gradlint.theory.transfer.fluctuation import Overlap
from tests.models.theory_cases import Make, he

torch.set_num_threads(1)


class Sum(nn.Module):
    """`x + branch(x)`."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def dense(inside: int, out: int, gain: float) -> nn.Module:
    return he(nn.Linear(inside, out, bias=False), gain)


def predicted(make: Make, shape: Sequence[int]) -> tuple[Prediction, str, str]:
    """The prediction for a model, with its first and its last operator."""
    torch.manual_seed(0)
    loaded = load(make(), (InputSpec(None, "float32", tuple(shape), given=True),), mode="train")
    measured = loaded.measure(seeds=1, seed=0, progress=lambda _: None)
    structure = Structure(loaded.graph_of(), live=measured.live)
    return predict(structure), structure.signal[0], structure.signal[-1]


def drawn(make: Make, shape: Sequence[int], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Decades of gradient at the input and of signal at the output, for many draws of weights, inputs and cotangents."""
    backward, forward = [], []
    for seed in range(draws):
        torch.manual_seed(seed)
        model = make().double()
        x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        y = model(x)
        v = torch.randn_like(y)
        (g,) = torch.autograd.grad(y, x, v)
        backward.append(0.5 * math.log10(float(g.square().sum() / v.numel())))
        forward.append(0.5 * math.log10(float(y.detach().square().mean())))
    return np.array(backward), np.array(forward)


def check(make: Make, shape: Sequence[int], draws: int, tolerance: float = 0.03) -> tuple[np.ndarray, Prediction, str]:
    """The means of the decades, to a tolerance beyond three of their standard errors."""
    prediction, first, last = predicted(make, shape)
    backward, forward = drawn(make, shape, draws)
    for values, said in ((backward, prediction[first].backward), (forward, prediction[last].forward)):
        assert said == pytest.approx(values.mean(), abs=tolerance + 3.0 * values.std(ddof=1) / math.sqrt(draws))
    return backward, prediction, first


# what adds up coherently ----------------------------------------------------------------------------------------------

BRANCHES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "logsigmoid": nn.LogSigmoid,
}


@pytest.mark.parametrize("act", BRANCHES.values(), ids=list(BRANCHES))
def test_a_rectifier_behind_the_weights_of_a_residual_adds_up_coherently(act):
    def make() -> nn.Module:
        blocks = [Sum(dense(96, 96, 1.0), act()) for _ in range(30)]
        return nn.Sequential(dense(32, 96, 1.0), *blocks, dense(96, 10, 1.0))

    check(make, (8, 32), 30)


def test_coherence_adds_decades_that_independent_weights_would_not():
    def make() -> nn.Module:
        return nn.Sequential(*[Sum(dense(96, 96, 1.0), nn.ReLU()) for _ in range(40)])

    backward, _, _ = check(make, (8, 96), 20)
    assert backward.mean() > 40 * 0.5 * math.log10(1.5) + 0.5  # each block passes 1 + 1/2 of the square


def test_branches_of_two_layers_add_up_coherently_too():
    def make() -> nn.Module:
        branch = [Sum(dense(96, 96, 1.4), nn.ReLU(), dense(96, 96, 1.0), nn.ReLU()) for _ in range(20)]
        return nn.Sequential(*branch, dense(96, 10, 1.0))

    check(make, (8, 96), 30)


@pytest.mark.parametrize("kernel", [1, 3])
def test_images_add_up_coherently_over_positions(kernel):
    def make() -> nn.Module:
        layers = [he(nn.Conv2d(24, 24, kernel, padding=kernel // 2, bias=False), 1.0) for _ in range(20)]
        return nn.Sequential(
            *[Sum(layer, nn.ReLU()) for layer in layers], nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(24, 10, 1.0)
        )

    check(make, (8, 24, 8, 8), 16, tolerance=0.12)


def test_share_of_a_gradient_along_its_tensor_is_as_measured():
    width, depth = 128, 20

    def make() -> nn.Module:
        return nn.Sequential(*[Sum(dense(width, width, 1.0), nn.ReLU()) for _ in range(depth)])

    prediction, _, _ = predicted(make, (8, width))
    found = {node: item.coherence for node, item in prediction.cotangents.items() if node.endswith("add")}
    shares = []
    for seed in range(30):
        torch.manual_seed(seed)
        x, inner = torch.randn(8, width, dtype=torch.float64), []
        for block in make().double():
            x = block(x).requires_grad_()
            inner.append(x)
        grads = torch.autograd.grad(x, inner, torch.randn_like(x))
        inner = [h.detach() for h in inner]
        along = [(g * h).sum(1).square().mean() / h.square().sum(1).mean() for g, h in zip(grads, inner, strict=True)]
        shares.append([float(a / g.square().sum(1).mean()) for a, g in zip(along, grads, strict=True)])
    for index in (1, 8, 14):
        coherence = found[f"{index}:add"]
        assert coherence is not None
        assert coherence.moments[1, 1] / width == pytest.approx(np.mean(shares, axis=0)[index], rel=0.25)


def test_a_cotangent_that_knows_nothing_of_its_tensor_learns_nothing_from_a_homogeneous_layer():
    distribution = gaussian("z", 0.0, 0.0, (0.0, 0.0))
    relu = np.maximum(distribution.values, 0.0)
    second, own = through_slope(
        None, (distribution.values > 0.0).astype(float), (relu, distribution.values), (1, (8, 64), (0.0, 0.0))
    )
    assert second == pytest.approx(0.5)
    assert own is not None
    factor, output = through_layer(own, (1, (8, 64), (0.0, 0.0)), 0.3, 1.0, ())
    assert factor == pytest.approx(1.0)
    assert output is not None
    assert output.moments == pytest.approx(gram(0.3), abs=1e-6)


def test_what_a_sum_splits_joins_to_what_it_was():
    own = Coherence(np.array([[5.0, 3.0], [3.0, 4.0]]), 1, (0.0, 0.0))
    summands = [Summand(0.8, 0.5, 1.0), Summand(0.6, 0.0, 1.0)]
    mean = 0.8 * 0.5
    left, right = at_sum(own, "sum", (1, (8, 64), (0.0, 0.0)), mean, summands)
    assert left is not None
    assert right is not None
    # one tensor that went two ways: amplitudes add, energies quadruple
    factor, joined = added([(0.5, left), (0.5, left)], 0.5, (1, (8, 64)))
    assert joined is not None
    assert joined.moments == pytest.approx(left.moments * 2.0 / factor)
    assert 1.0 < factor <= 2.0
    # g.(a + b) is g.a + g.b
    rms = np.array([0.8, 0.6])
    assert left.source is not None
    along = rms @ left.source.moments[1:, 1:] @ rms
    assert along == pytest.approx(4.0, rel=1e-6)


# what scatters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("act", "gain"), [(nn.ReLU, 2.0), (lambda: nn.LeakyReLU(0.2), 1.5), (nn.Identity, 1.0)])
def test_narrow_layers_lie_below_their_expectation_and_scatter(act, gain):
    def make() -> nn.Module:
        return nn.Sequential(*[part for _ in range(30) for part in (dense(48, 48, gain), act())])

    prediction, first, last = predicted(make, (8, 48))
    backward, forward = drawn(make, (8, 48), 100)
    for values, said, deviation in (
        (backward, prediction[first].backward, prediction[first].backward_sd),
        (forward, prediction[last].forward, prediction[last].forward_sd),
    ):
        assert said == pytest.approx(values.mean(), abs=0.05 + 3.0 * values.std(ddof=1) / 10.0)
        assert deviation == pytest.approx(values.std(ddof=1), rel=0.4)


def test_bounded_functions_forget_how_far_the_signal_was_off():
    def make() -> nn.Module:
        return nn.Sequential(*[part for _ in range(30) for part in (dense(48, 48, 3.0), nn.Tanh())])

    prediction, _, last = predicted(make, (8, 48))
    _, forward = drawn(make, (8, 48), 40)
    assert forward.std(ddof=1) < 0.03
    assert prediction[last].forward_sd < 0.05


@pytest.mark.parametrize("taps", [1, 4])
def test_directions_that_random_layers_leave_are_as_measured(taps):
    rng, width, depth = np.random.default_rng(0), 24, 12
    squares, traces = [], []
    for _ in range(200):
        matrix = np.eye(width)
        for _ in range(depth):
            weights = rng.standard_normal((taps, width, width)) / math.sqrt(width * taps)
            matrix = sum(w.T @ matrix @ w for w in weights)
        squares.append(np.sum(matrix * matrix))
        traces.append(np.trace(matrix) ** 2)
    overlap = Overlap(1.0 / width, 1.0 / width)
    for _ in range(depth):
        _, overlap = fluctuation.of_layer(overlap, width, width, taps)
    assert overlap.own == pytest.approx(np.mean(squares) / np.mean(traces), rel=0.15)


def test_one_direction_through_a_rectifier_scatters_as_hanin_says():
    distribution = gaussian("z", 0.0, 0.0, (1.0, 0.0))
    one = Overlap(1.0, 1.0)
    slope, bent = fluctuation.of_slope(one, (distribution.values > 0.0).astype(float), distribution, (1, (1, 100)))
    weights, output = fluctuation.of_layer(bent, 100, 100, 1.0)
    assert slope + weights == pytest.approx(5.0 / 100, rel=1e-6)
    assert output.own == pytest.approx(1.0)


def test_far_out_an_elu_passes_half_of_the_square_however_far():
    function = activation("elu", {})
    assert function is not None
    result = apply(function, gaussian("z", 60.0, 0.0, (0.0, 0.0)))
    assert result.distribution.level == pytest.approx(60.0 - 0.5 * math.log10(2.0), abs=1e-3)
    assert math.log10(expect(result.slope**2)) + result.log_factor == pytest.approx(math.log10(0.5), abs=1e-3)
