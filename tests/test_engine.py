"""The engine: verdicts where little or nothing was measured, and models that do odd things."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import gradlint
from gradlint.errors import ForwardError, TargetError

INF = math.inf


class Calling(nn.Module):
    """Two layers, and a forward that is given."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.first, self.second, self.run = nn.Linear(16, 16), nn.Linear(16, 16), forward

    def forward(self, x):
        return self.run(self, x)


def lint(forward, x=None, **options):
    return gradlint.check(Calling(forward), torch.randn(8, 16) if x is None else x, **options)


# nothing measured -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "verdict"),
    [
        (lambda net, x: torch.ones(3), "untrainable"),
        (lambda net, x: None, "unknown"),
        (lambda net, x: net.first.weight, "unknown"),
    ],
    ids=["constant", "nothing", "parameter"],
)
def test_no_growth_is_given_where_no_gradient_was_measured(forward, verdict):
    report = lint(forward)
    assert (report.verdict, report.growth) == (verdict, None)


def test_an_empty_batch_is_not_taken_for_a_vanishing_gradient():
    report = gradlint.check(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(0, 4))
    assert (report.verdict, report.growth) == ("unknown", None)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.second(net.first(x) * 1e300),
        lambda net, x: net.second(net.first(x) + -1.7e308),
        lambda net, x: net.second(net.first(x) * INF),
        lambda net, x: net.second(net.first(x) + math.nan),
    ],
    ids=["1e300", "largest", "infinity", "NaN"],
)
@pytest.mark.parametrize("probe", [True, False])
def test_constants_beyond_the_range_of_squares_are_no_internal_error(forward, probe):
    module = Calling(forward).double()
    nn.init.ones_(module.second.weight)  # nothing cancels
    report = gradlint.check(module, torch.randn(8, 16, dtype=torch.float64), probe=probe)
    assert report.verdict in ({"non-finite"} if probe else {"unknown", "healthy"})


@pytest.mark.parametrize("factor", [1e2, 1e60])
def test_a_signal_that_leaves_the_range_of_floats_is_predicted_to_explode(factor):
    """Theory stays in logarithms, however large the signal; float64 alone would end in NaN, which is no growth at all.

    Growth is proportional to all weights, so that autograd tells it from small ones; the mean over draws has an error of 0.6. The
    product of the expected gains would be 6 decades more.
    """
    torch.manual_seed(0)
    x, measured = torch.randn(8, 16, dtype=torch.float64), []
    for _ in range(8):
        layers = [layer for _ in range(200) for layer in (nn.Linear(16, 16, bias=False).double(), nn.ReLU())]
        model = nn.Sequential(*layers)
        (gradient,) = torch.autograd.grad(model(leaf := x.clone().requires_grad_()), leaf, ends := torch.randn_like(x))
        measured.append(math.log10(float(gradient.norm() / ends.norm())) + 200 * math.log10(factor))
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.mul_(factor)
    report = gradlint.check(model, x, probe=False)
    assert report.verdict == "explodes"
    assert report.growth.total == pytest.approx(statistics.fmean(measured), abs=3.0)


def test_a_factor_of_exactly_zero_is_not_predicted_to_be_healthy():
    assert lint(lambda net, x: net.second(net.first(x) * 0.0), probe=False).verdict == "unknown"


def _with_unknown(place):
    """Linear, Relu, Linear as ONNX with an operator that nobody knows at one of the places between."""
    names = ["MatMul", "Relu", "MatMul"]
    names.insert(place, "Strange")
    nodes = []
    for index, name in enumerate(names):
        weights = ["w"] if name == "MatMul" else []
        domain = {"domain": "own"} if name == "Strange" else {}
        nodes.append(helper.make_node(name, [f"t{index}", *weights], [f"t{index + 1}"], **domain))
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) + 0.1, "w")
    x = helper.make_tensor_value_info("t0", TensorProto.FLOAT, [8, 4])
    y = helper.make_tensor_value_info(f"t{len(names)}", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=opsets)


@pytest.mark.parametrize(("place", "verdict"), [(0, "unknown"), (1, "unknown"), (2, "unknown"), (3, "healthy")])
def test_a_probe_that_stops_before_a_weight_layer_knows_no_verdict(place, verdict):
    report = gradlint.check(_with_unknown(place))
    assert report.verdict == verdict
    assert {"GL901", "GL902"} <= {found.rule for found in report.findings}


def test_a_layer_that_reads_weights_alone_is_not_taken_for_dead():
    """LoRA in ONNX: the product of two weights has no input, so that none of it is zero."""
    left, right = (numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in ("left", "right"))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["left", "right"], ["y"])], "g", [], [y], [left, right])
    report = gradlint.check(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert report.verdict != "vanishes"
    assert not report.findings


# what models do ---------------------------------------------------------------------------------------------------------


def _overwritten(net, x):
    y = net.first(x).relu_()
    return y.mul_(2.0)


class _Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2.0

    @staticmethod
    def backward(ctx, grad):
        raise ValueError("no way back")


@pytest.mark.parametrize("forward", [_overwritten, lambda net, x: _Raising.apply(net.first(x))], ids=["in place", "custom"])
def test_a_backward_pass_that_raises_is_the_users_error(forward):
    with pytest.raises(ForwardError, match=r"backward pass raised (RuntimeError|ValueError): (one of|no way back)"):
        lint(forward)


class _Silent(_Raising):
    @staticmethod
    def backward(ctx, grad):
        return None


def test_a_custom_backward_pass_that_returns_none_is_a_cut():
    report = lint(lambda net, x: net.second(_Silent.apply(net.first(x))))
    (cut,) = [found for found in report.findings if found.rule == "GL806"]
    assert cut.evidence["starved"] == ["first.weight", "first.bias"]


def test_a_sparse_output_is_measured_like_a_dense_one():
    torch.manual_seed(0)
    net, x = Calling(lambda net, x: net.second(net.first(x))), torch.randn(8, 16)
    dense = gradlint.check(net, x)
    net.run = lambda net, x: net.second(net.first(x)).to_sparse()
    assert gradlint.check(net, x).spine[0].backward == pytest.approx(dense.spine[0].backward, abs=0.05)


def test_weights_that_learn_through_another_call_are_not_starved():
    """A straight-through estimator and a stop-gradient branch detach one use of a weight, not the weight."""
    report = lint(lambda net, x: net.second(net.first(x)) + net.first(x).detach())
    assert not [found for found in report.findings if found.rule == "GL806"]


def test_a_model_on_the_meta_device_is_refused():
    with pytest.raises(TargetError, match="meta device"):
        gradlint.check(nn.Linear(4, 4, device="meta"), torch.randn(8, 4))


def test_complex_weights_count_with_their_imaginary_part():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(64, 64, bias=False, dtype=torch.complex64) for _ in range(8)])
    x = torch.randn(8, 64, dtype=torch.complex64)
    measured, predicted = gradlint.check(net, x), gradlint.check(net, x, probe=False)
    assert predicted.growth.decades == pytest.approx(measured.growth.decades, abs=0.2)
