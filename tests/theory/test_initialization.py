"""Whether weights look as an initializer drew them, against the initializers of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradlint.graph import Weight
from gradlint.graph_builder import GraphBuilder
from gradlint.theory.initialization import is_constant, is_identity, is_torch_default, looks_drawn, looks_initialized


def as_weight(tensor: torch.Tensor, out_axis: int = 0) -> Weight:
    return Weight("w", tensor.shape, "float32", tensor.detach().numpy, out_axis=out_axis)


INITIALIZERS = [
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.trunc_normal_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
    nn.init.xavier_normal_,
    nn.init.xavier_uniform_,
    nn.init.orthogonal_,
    nn.init.zeros_,
]


@pytest.mark.parametrize("init", INITIALIZERS, ids=lambda init: init.__name__)
@pytest.mark.parametrize("shape", [(8, 8), (64, 32), (256, 300)])
def test_weights_of_every_usual_initializer_look_drawn(init, shape):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tensor = torch.empty(shape)
        init(tensor, -0.1, 0.1) if init is nn.init.uniform_ else init(tensor)
    assert looks_drawn(as_weight(tensor))


def test_positive_weights_of_torch_rand_look_drawn():
    assert looks_drawn(as_weight(torch.rand(64, 64, generator=torch.Generator().manual_seed(0))))


@pytest.mark.parametrize("change", ["shift", "tail"])
def test_weights_with_a_mean_or_heavy_tails_do_not_look_drawn(change):
    values = 0.05 * np.random.default_rng(0).standard_normal((128, 128))
    values = values + 0.005 if change == "shift" else values * np.random.default_rng(1).exponential(2.0, values.shape)
    assert not looks_drawn(as_weight(torch.from_numpy(values)))


def test_one_odd_layer_in_ten_is_forgiven_and_two_are_not():
    rng = np.random.default_rng(0)
    drawn = [as_weight(torch.from_numpy(rng.standard_normal((32, 32)))) for _ in range(10)]
    odd = as_weight(torch.from_numpy(0.5 + rng.standard_normal((32, 32))))
    assert looks_initialized([*drawn[:9], odd])
    assert not looks_initialized([*drawn[:8], odd, odd])
    assert looks_initialized([])


@pytest.mark.parametrize("layer", [nn.Linear(64, 64), nn.Linear(300, 10), nn.Conv2d(16, 32, 3), nn.Conv2d(16, 16, 3, groups=4)])
def test_default_draw_of_torch_is_recognized(layer):
    assert is_torch_default(as_weight(layer.weight))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.kaiming_normal_(layer.weight)
    assert not is_torch_default(as_weight(layer.weight))


def test_default_draw_is_recognized_in_half_precision_and_not_at_another_scale():
    weight = nn.Linear(128, 128).weight.detach()
    assert is_torch_default(as_weight(weight.half()))
    assert not is_torch_default(as_weight(1.2 * weight))


@pytest.mark.parametrize(("value", "constant"), [(0.0, True), (0.1, True), (-3e7, True)])
def test_constant_weights_are_seen_through_rounding(value, constant):
    assert is_constant(as_weight(torch.full((300, 400), value))) is constant
    assert not is_constant(as_weight(torch.full((300, 400), value) + torch.eye(300, 400) * max(abs(value), 1.0) * 1e-3))


@pytest.mark.parametrize(("change", "identity"), [(lambda w: w, True), (lambda w: w + 1e-2 * np.eye(8)[::-1], False)])
def test_an_identity_times_a_number_is_the_choice_of_an_initializer(change, identity):
    """Recurrent weights of rectified cells start so (Le, Jaitly, Hinton 2015), alone or stacked for several gates."""
    for values in (1.3 * np.eye(8), -0.5 * np.eye(8)):
        stacked = np.vstack([change(values)] * 3)
        assert is_identity(GraphBuilder().array(stacked)) is identity
        assert looks_drawn(GraphBuilder().array(stacked)) or not identity
