"""What norms divide by: scatter over few values, values that repeat, what a norm has set before, and channels side by side."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlint.frontends.inputs import InputSpec
from gradlint.graph_builder import GraphBuilder
from gradlint.load import load
from gradlint.structure import Structure
from gradlint.theory.gaussian.dispersion import ChanceCorrelation, VarianceSpread, in_sum, variance_spread
from gradlint.theory.gaussian.pointwise_of_gaussian import gaussian, spherical
from gradlint.theory.prediction import Prediction, predict
from gradlint.theory.transfer.signal import averaged_apart, varying

DRAWS = 12


def measured(make: Callable[[], nn.Module], shape: tuple[int, ...], draws: int = DRAWS) -> float:
    """Decades of the gradient at the input over that at the output: a mean over draws of weights, inputs and cotangents."""
    found = []
    for seed in range(draws):
        torch.manual_seed(seed)
        model, x = make().train(), torch.randn(shape, requires_grad=True)
        out = model(x)
        cotangent = torch.randn_like(out)
        (grad,) = torch.autograd.grad(out, x, cotangent)
        found.append(0.5 * math.log10(float(grad.square().sum()) / cotangent.numel()))
    return float(np.mean(found))


def predicted(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Prediction:
    torch.manual_seed(0)
    graph = load(make().train(), (InputSpec(None, "float32", shape, given=True),), probe=False).graph_of()
    return predict(Structure(graph), strict=True)


def at_input(prediction: Prediction) -> float:
    found = prediction["x" if "x" in prediction.nodes else "input"].backward
    assert found is not None
    return found


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


class Beside(nn.Module):
    """Branches side by side along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def lecun(inside: int, outside: int) -> nn.Module:
    layer = nn.Linear(inside, outside)
    nn.init.normal_(layer.weight, 0.0, inside**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


# scatter of a variance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centered", [True, False])
def test_a_variance_over_values_that_repeat_along_axes_scatters_as_drawn_ones_do(centered):
    shares, sizes = (0.2, 0.0, 0.5, 0.7), (8, 5, 6, 6)
    parts = [0.2**0.5 * torch.randn(20000, 1, 1, 1), 0.3**0.5 * torch.randn(20000, 8, 1, 1)]
    parts += [0.2**0.5 * torch.randn(20000, 8, 6, 1), 0.3**0.5 * torch.randn(20000, 8, 6, 6)]
    drawn = sum(parts[1:], parts[0]).flatten(1)
    values = drawn.var(1, unbiased=False) if centered else drawn.square().mean(1)
    found = variance_spread(sizes, shares, (0, 2, 3), centered=centered)
    assert found.degrees == pytest.approx(float(2 * values.mean() ** 2 / values.var()), rel=0.06)
    assert found.inverse_mean() == pytest.approx(float((1 / values).mean() * values.mean()), rel=0.01)


@pytest.mark.parametrize("count", [4, 8, 64])
def test_a_variance_of_independent_values_is_chi_square(count):
    found = variance_spread((count, 3), (0.0, 0.0), (0,), centered=True)
    assert found.degrees == pytest.approx(count - 1)
    assert found.inverse_mean() == pytest.approx((count - 1) / (count - 3), rel=2e-3)


@pytest.mark.parametrize("floor", [1e-6, 1e-2, 1.0, 100.0, 1e6, math.inf])
def test_a_floor_under_a_variance_takes_its_scatter_away(floor):
    values = np.random.default_rng(0).chisquare(7, 400_000) / 7
    wanted = float(np.mean((1 + floor) / (values + floor))) if floor < math.inf else 1.0
    assert VarianceSpread((7.0,), (1.0,)).inverse_mean(floor) == pytest.approx(wanted, rel=5e-3)


def test_a_kernel_of_three_inputs_makes_variances_of_three_directions():
    x, w = torch.randn(3, 4000), torch.randn(20000, 3)
    variances = (w @ x).var(1)
    found = variance_spread((4000, 3), (0.0, 0.0), (0,), centered=True).uneven(ChanceCorrelation(1 / 3, 1 / 9))
    assert found.degrees == pytest.approx(float(2 * variances.mean() ** 2 / variances.var()), rel=0.05)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_directions_of_a_kernel_even_out_where_channels_are_divided_by_their_own_variance(share):
    u = np.random.default_rng(0).chisquare(3, 400_000) / 3
    inverse = float(np.mean(1 / (share * u + 1 - share)))
    left = ChanceCorrelation(share**2 / 3, share**2 / 9).evened(inverse)
    assert left.share == pytest.approx(float(np.mean(share * u / (share * u + 1 - share))), rel=1e-6)
    assert left.directions == pytest.approx(3.0)


def test_what_summands_have_in_common_by_chance_adds_up_along_the_same_directions():
    both = in_sum([(1.0, ChanceCorrelation(0.3, 0.1)), (1.0, ChanceCorrelation(0.3, 0.1))])
    assert (both.square, both.each) == pytest.approx((0.3, 0.1))
    assert in_sum([(1.0, ChanceCorrelation(0.3, 0.1)), (1.0, ChanceCorrelation())]).square == pytest.approx(0.3 / 4)


# values on a sphere -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [4, 8, 32])
@pytest.mark.parametrize("function", [torch.relu, torch.nn.functional.gelu, torch.tanh, torch.square])
def test_two_samples_behind_a_batch_norm_share_what_two_coordinates_on_a_sphere_do(batch, function):
    x = torch.randn(200_000, batch, dtype=torch.float64)
    x = x - x.mean(1, keepdim=True)
    y = function(x / x.square().mean(1, keepdim=True).sqrt())
    pairs = (y.sum(1) ** 2 - y.square().sum(1)).mean() / (batch * (batch - 1)) / y.square().mean()
    distribution = spherical("x", 0.0, (-1.0 / (batch - 1), 0.0), batch - 1.0)
    assert distribution.in_common(function(torch.tensor(distribution.values)).numpy())[0] == pytest.approx(float(pairs), abs=3e-3)


def test_a_law_that_is_on_no_sphere_shares_what_a_normal_one_does():
    distribution = gaussian("x", 0.0, 0.0, (-1.0 / 7.0, 0.0))
    assert distribution.in_common(np.square(distribution.values))[0] == pytest.approx((1 + 2 / 49) / 3, rel=2e-3)


# chains -----------------------------------------------------------------------------------------------------------------


def post_norm(norm: Callable[[int], nn.Module], act: Callable[[], nn.Module], width: int, depth: int) -> nn.Module:
    """norm(x + act(W x)), repeated."""
    blocks = [nn.Sequential(Residual(nn.Sequential(lecun(width, width), act())), norm(width)) for _ in range(depth)]
    return nn.Sequential(lecun(width, width), *blocks)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm, lambda width: nn.GroupNorm(4, width)],
    ids=["batch", "layer", "rms", "group"],
)
@pytest.mark.parametrize("act", [nn.Softplus, nn.Tanh])
def test_a_norm_behind_a_sum_knows_what_the_norm_before_it_has_set(norm, act):
    shape = (8, 64)

    def make() -> nn.Module:
        return post_norm(norm, act, 64, 20)

    assert at_input(predicted(make, shape)) == pytest.approx(measured(make, shape), abs=0.09)


@pytest.mark.parametrize("act", [nn.GELU, nn.ReLU, nn.Tanh])
def test_deep_batch_norm_chains_at_batch_8_grow_as_predicted(act):
    shape = (8, 128)

    def make() -> nn.Module:
        layers = [nn.Sequential(lecun(128, 128), nn.BatchNorm1d(128), act()) for _ in range(25)]
        return nn.Sequential(*layers, lecun(128, 10))

    assert at_input(predicted(make, shape)) == pytest.approx(measured(make, shape), abs=0.09)


def test_a_batch_norm_behind_pointwise_layers_of_three_channels_divides_by_few_directions():
    shape = (8, 3, 8, 8)

    def make() -> nn.Module:
        first, second = nn.Conv2d(3, 256, 1, bias=False), nn.Conv2d(256, 256, 1, bias=False)
        return nn.Sequential(first, nn.BatchNorm2d(256), nn.Tanh(), second, nn.BatchNorm2d(256))

    found = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        model = make().train()
        hidden = model[:4](torch.randn(shape)).detach().requires_grad_()
        out = model[4](hidden)
        (grad,) = torch.autograd.grad(out, hidden, torch.randn_like(out))
        found.append(0.5 * math.log10(float(grad.square().sum()) / out.numel()))
    wide = predicted(lambda: nn.Sequential(nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256)), (8, 64, 8, 8))
    few = predicted(make, shape)
    assert few["3:conv"].backward == pytest.approx(np.mean(found), abs=0.03)
    assert few.signals["3:conv"].chance.directions < 4.0 < wide.signals["0:conv"].chance.directions


def test_group_norm_over_one_place_of_four_channels_has_three_degrees_of_freedom():
    found = variance_spread((8, 4, 12, 12), (1.0, 0.0, 1.0, 1.0), (1, 2, 3), centered=True)
    assert found.degrees == pytest.approx(3.0, rel=1e-6)


# channels side by side --------------------------------------------------------------------------------------------------


def test_a_batch_norm_divides_each_channel_by_its_own_variance_where_parts_share_unlike_amounts():
    shape = (8, 16, 8, 8)

    def make() -> nn.Module:
        steady = nn.Sequential(nn.BatchNorm2d(16), nn.MaxPool2d(3, 1, 1), nn.ReLU())  # nearly all of it is its mean
        loud = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        return nn.Sequential(Beside(steady, loud), nn.BatchNorm2d(32))

    assert at_input(predicted(make, shape)) == pytest.approx(measured(make, shape), abs=0.05)


def test_parts_that_are_rectified_stay_so_side_by_side_and_let_winners_through():
    shape = (8, 16, 12, 12)

    def branch() -> nn.Module:
        return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())

    def make() -> nn.Module:
        layers = [Beside(branch(), branch()), nn.MaxPool2d(3, 2, 1), nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16)]
        return nn.Sequential(*layers)

    assert at_input(predicted(make, shape)) == pytest.approx(measured(make, shape), abs=0.05)


# pools ------------------------------------------------------------------------------------------------------------------


def test_two_windows_of_one_pattern_share_less_than_one_place_does():
    pattern, own = torch.randn(4000, 1, 6), torch.randn(4000, 8, 6)
    pooled = (0.4**0.5 * pattern + 0.6**0.5 * own).mean(2)
    shared = float((pooled.sum(1) ** 2 - pooled.square().sum(1)).mean() / 56)
    assert averaged_apart((8, 6), (0.4, 0.0), (1,), 0) == pytest.approx(shared, rel=0.1)


@pytest.mark.parametrize("window", [2, 3])
def test_neighbors_behind_pools_that_overlap_keep_more_of_a_mean(window):
    shape = (8, 16, 24, 24)

    def make() -> nn.Module:
        layers = [nn.AvgPool2d(3, 1, 1), nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.AvgPool2d(window))

    torch.manual_seed(0)
    variance = float(make().train()(torch.randn(shape)).detach().transpose(0, 1).flatten(1).var(1).mean())
    signal = predicted(make, shape).signals["5:avg_pool"]
    found = 10.0**signal.log_q * varying(signal.sizes, signal.shared, (0, 2, 3))
    assert found == pytest.approx(variance, rel=0.15)


def test_a_norm_behind_a_view_takes_from_the_sum_before_it_what_it_would_without_the_view():
    def gains(*, viewed):
        builder = GraphBuilder()
        x = builder.input(8, 16, 64)
        h = builder.op("reshape", x, shape=(128, 64)) if viewed else x
        h = builder.op("add", h, builder.linear(h, name="fc"), name="sum")
        h = builder.op("reshape", h, shape=(8, 16, 64)) if viewed else h
        builder.linear(builder.norm(h))
        found = predict(Structure(builder.graph), strict=True).nodes
        return found["sum"].backward, found["fc"].backward

    assert gains(viewed=True) == pytest.approx(gains(viewed=False), abs=1e-9)
