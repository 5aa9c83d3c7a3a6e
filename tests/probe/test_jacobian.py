"""The probe against full Jacobians, analytic growth, and models that are broken on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradlint.errors import ForwardError
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.measure import measure

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def probe(module, *args, mode="train", **options):
    return measure(TorchRunnable(module, (), args=args, mode=mode), **options)


def exact_squares(module, x, mode="eval"):
    """||J_n||_F^2 / numel(out) for every node, by torch.autograd.functional.jacobian from each node's output on."""
    model = TorchRunnable(module, (), args=(x,), mode=mode)
    values = {}
    with model.untouched():
        drawn = [spec.draw(np.random.default_rng(0)) for spec in model.inputs]
        model.forward(drawn, tap=lambda node, outputs, inputs: values.setdefault(node, outputs))

        def from_node(node):
            def run(h):
                (out,) = model.forward(drawn, edit=lambda here, outputs: (h,) if here == node else None)
                return out

            return run

        jacobians = {
            node: torch.autograd.functional.jacobian(from_node(node), outputs[0].detach()) for node, outputs in values.items()
        }
    (trunk,) = measure(model, seeds=1).trunk
    size = values[trunk][0].numel()
    return {node: (jacobian.reshape(size, -1).double(), size) for node, jacobian in jacobians.items()}


@st.composite
def networks(draw):
    width = draw(st.integers(2, 5))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        act = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]()
        norm = [nn.LayerNorm(width)] if draw(st.booleans()) else []
        piece = nn.Sequential(nn.Linear(width, width), *norm, act)
        layers.append(Residual(piece) if draw(st.booleans()) else piece)
    layers.append(nn.Linear(width, draw(st.integers(1, 3))))
    return nn.Sequential(*layers), width


@settings(max_examples=12, deadline=None)
@given(networks(), st.integers(0, 1000))
def test_backward_gain_is_the_frobenius_norm_of_the_jacobian_at_every_node(network, seed):
    """Within five standard errors of Hutchinson's estimator: Var u'Au = 2 (m tr A^2 - (tr A)^2) / (m^2 (m + 2)) on the sphere."""
    module, width = network
    torch.manual_seed(seed)
    x = torch.randn(2, width)
    exact = exact_squares(module, x)
    draws = 24
    seen = {node: [] for node in exact}
    for index in range(draws):
        found = probe(module, x, mode="eval", seeds=1, seed=seed + index)
        for node, values in seen.items():
            values.append(10.0 ** (2.0 * found.backward(node)) if found.backward(node) is not None else 0.0)
    for node, (jacobian, size) in exact.items():
        gram = jacobian @ jacobian.T
        trace, square = float(gram.trace()), float((gram @ gram).trace())
        variance = max(2.0 * (size * square - trace**2) / (size**2 * (size + 2)), 0.0)
        error = abs(np.mean(seen[node]) - trace / size)
        assert error <= 5.0 * math.sqrt(variance / draws) + 1e-4 * trace / size + 1e-12, node


def test_forward_level_is_the_root_mean_square_of_the_output():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(16, 4)
    found = probe(module, x, seeds=1)
    expected = 0.5 * math.log10(float(module[0](x).detach().square().mean()))
    assert found.gains["0:linear"].forward == pytest.approx(expected, abs=1e-5)


def test_relative_gain_stays_flat_when_only_the_weight_scale_is_wrong():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64, bias=False) for _ in range(20)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=3.0)
    growth = probe(nn.Sequential(*layers), torch.randn(8, 64)).growth
    assert growth.total == pytest.approx(20 * math.log10(3.0), abs=0.01)
    assert growth.relative == pytest.approx(0.0, abs=0.01)


def test_sustained_growth_leaves_out_one_jump_and_names_it():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64, bias=False) for _ in range(6)]
    for index, layer in enumerate(layers):
        nn.init.orthogonal_(layer.weight, gain=1000.0 if index == 3 else 1.0)
    growth = probe(nn.Sequential(*layers), torch.randn(8, 64)).growth
    assert growth.decades == pytest.approx(0.0, abs=0.01)
    assert [(jump.place.module, round(jump.decades, 2)) for jump in growth.jumps] == [("3", 3.0)]


def test_time_growth_of_a_linear_recurrence_is_the_power_of_its_radius():
    """Pascanu 2013: with recurrent weight rho I the gradient changes by rho a step."""
    rnn = nn.RNN(3, 8, nonlinearity="relu", batch_first=True, bias=False)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(1.1 * torch.eye(8))
        rnn.weight_ih_l0.abs_()

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    (time,) = probe(Last(), torch.rand(4, 100, 3)).time
    assert len(time.backward) == 100
    assert time.growth.per_step == pytest.approx(math.log10(1.1), abs=1e-5)
    assert time.growth.total == pytest.approx(math.log10(13780.6 / 1.1), abs=1e-3)


def test_softmax_at_the_end_gives_way_to_its_logits():
    found = probe(nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), torch.randn(8, 4))
    assert found.trunk == ("0:linear",)


def test_an_argmax_at_the_end_gives_way_to_its_scores():
    class Label(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x).argmax(-1)

    found = probe(Label(), torch.randn(8, 4))
    assert found.trunk == ("fc:linear",)
    assert found.backward("x") is not None
    assert not found.dead


def test_zero_head_does_not_hide_the_layers_before_it():
    head = nn.Linear(8, 3)
    nn.init.zeros_(head.weight)
    found = probe(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), head), torch.randn(8, 8))
    assert found.trunk == ("1:tanh",)
    assert not found.dead
    assert not found.cuts


def test_zero_initialized_residual_branch_is_no_cut():
    last = nn.Linear(8, 8)
    nn.init.zeros_(last.weight)
    block = Residual(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), last))
    found = probe(nn.Sequential(block, nn.Linear(8, 2)), torch.randn(8, 8))
    assert not found.cuts
    assert not found.dead


def test_all_zero_network_is_dead():
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    assert probe(module, torch.randn(8, 8)).dead


class Cutting(nn.Module):
    def __init__(self, cut) -> None:
        super().__init__()
        self.first, self.second, self.cut = nn.Linear(4, 4), nn.Linear(4, 2), cut

    def forward(self, x):
        return self.second(self.cut(self.first(x)))


def _no_grad(x):
    with torch.no_grad():
        return x * 2.0


@pytest.mark.parametrize(
    ("cut", "cause"),
    [
        (lambda x: x.detach(), "detach"),
        (torch.round, "round"),
        (lambda x: x.argmax(-1, keepdim=True).float().expand(-1, 4), "argmax"),
        (_no_grad, "no-grad region"),
        (lambda x: torch.relu(x - 1e6), "dead relu"),
    ],
)
def test_a_cut_is_named_with_the_weights_that_starve(cut, cause):
    (found,) = probe(Cutting(cut), torch.randn(8, 4)).cuts
    assert found.cause == cause
    assert set(found.starved) == {"first.weight", "first.bias"}
    assert found.on_spine


def test_a_frozen_encoder_is_no_cut():
    module = Cutting(_no_grad)
    module.first.requires_grad_(False)
    assert not probe(module, torch.randn(8, 4)).cuts


def test_the_first_operator_that_makes_a_nan_is_located():
    found = probe(Cutting(lambda x: torch.log(x - 100.0)), torch.randn(8, 4))
    assert found.nonfinite_forward is not None
    assert found.nonfinite_forward.node == "log"
    assert found.nonfinite_forward.kind == "NaN"
    assert found.nonfinite_forward.operands[0][1] < 0


def test_a_mask_of_minus_infinity_is_not_reported():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            mask = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
            return self.fc(x).masked_fill(mask, -math.inf).softmax(-1) @ x

    found = probe(Masked(), torch.randn(8, 4, 4))
    assert found.nonfinite_forward is None
    assert found.nonfinite_backward is None


def test_a_gradient_that_becomes_infinite_is_located():
    found = probe(Cutting(lambda x: torch.sqrt((x - x.detach()).abs())), torch.randn(8, 4))
    assert found.nonfinite_forward is None
    assert found.nonfinite_backward is not None
    assert found.nonfinite_backward.node == "sqrt"
    assert found.nonfinite_backward.operands == ((0.0, 0.0),)


def test_an_infinite_gradient_that_a_rectifier_takes_away_is_none():
    found = probe(Cutting(lambda x: torch.sqrt(torch.relu(x - 1e6))), torch.randn(8, 4))
    assert found.nonfinite_backward is None


def test_a_gradient_that_underflows_counts_as_vanishing():
    layers = [nn.Linear(16, 16, bias=False) for _ in range(30)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=1e-3)
    growth = probe(nn.Sequential(*layers), torch.randn(8, 16)).growth
    assert growth.decades < -40


def _snapshot(module):
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
        "grads": {name: p.grad is None for name, p in module.named_parameters()},
        "modes": [m.training for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "needs": {name: p.requires_grad for name, p in module.named_parameters()},
        "rng": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
    }


class Raising(nn.Module):
    def forward(self, x):
        raise ValueError("no such luck")


@pytest.mark.parametrize("raises", [False, True])
def test_the_model_is_handed_back_untouched(raises):
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(4, 2))
    module[1].eval()
    module[0].weight.requires_grad_(False)
    if raises:
        module.append(Raising())
    x = torch.randn(8, 4)
    before = _snapshot(module)
    if raises:
        with pytest.raises(ForwardError, match="no such luck"):
            probe(module, x)
    else:
        probe(module, x)
    after = _snapshot(module)
    assert all(torch.equal(before["tensors"][name], after["tensors"][name]) for name in before["tensors"])
    assert torch.equal(before.pop("rng"), after.pop("rng"))
    del before["tensors"], after["tensors"]
    assert before == after


def test_same_seed_same_measurement():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Tanh(), nn.Linear(4, 2))
    first, second = (probe(module, torch.randn(8, 4, generator=torch.Generator().manual_seed(1))) for _ in range(2))
    assert first.gains == second.gains
    assert first.growth == second.growth


def test_a_network_with_two_towers_is_read_by_cuts():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (nn.Sequential(*(nn.Linear(8, 8) for _ in range(10))) for _ in range(2))

        def forward(self, a, b):
            return (self.left(a) * self.right(b)).sum(-1)

    found = probe(Towers(), torch.randn(8, 8), torch.randn(8, 8))
    assert found.cut_gains
    assert found.growth.decades < -1.5


def test_a_softmax_over_one_position_of_its_own_axis_is_named():
    (found,) = probe(Cutting(lambda x: torch.softmax(x[None], dim=0)[0]), torch.randn(8, 4)).cuts
    assert found.cause == "softmax over one position"


def test_a_long_starved_stack_is_named_in_one_place():
    module = nn.Sequential(*[nn.Linear(4, 4) for _ in range(200)], Cutting(torch.round))
    (found,) = probe(module, torch.randn(8, 4), seeds=1).cuts
    assert found.cause == "round"
    assert len(found.starved) == 402
