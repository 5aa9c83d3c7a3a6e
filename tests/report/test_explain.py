"""`gradlint explain`: printed arithmetic gives what the prediction says, and the prediction what torch measures."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gradlint.engine import examine
from gradlint.errors import TargetError
from gradlint.explain import explain, find
from gradlint.options import Options
from gradlint.report.explanation import render
from gradlint.rule import GraphBuilder
from gradlint.structure import Structure
from gradlint.theory.arithmetic.derivation import derive
from gradlint.theory.arithmetic.equations import Equation, Number, below, number, shown
from gradlint.theory.gaussian.integrals import moments
from gradlint.theory.prediction import predict

ROUNDING = 3e-3  # relative: printed numbers have four digits


def value(text: str) -> float:
    """What a printed sum of products comes to."""
    assert re.fullmatch(r"[\d.e+\-x/() ]+", text), text
    return float(eval(text.replace(" x ", " * ")))  # digits and operators, as checked above


def checked(builder: GraphBuilder, node: str, *, exact: bool = True):
    """The derivation of a node, after its numbers were worked out again and compared with the prediction."""
    structure = Structure(builder.graph)
    prediction = predict(structure)
    found = derive(structure, prediction, node)
    alone = [back for back in found.backward if back.share is None]
    ratios = [prediction.cotangents[back.operand].energy - prediction.cotangents[node].energy for back in alone]
    equations = [(found.forward, prediction.signals[node].log_q)]
    equations += [(back.factor, ratio) for back, ratio in zip(alone, ratios, strict=True)]
    for equation, expected in equations:
        assert value(equation.numbers) == pytest.approx(10.0**expected, rel=ROUNDING, abs=1e-12), equation
        assert shown(equation.result) == shown(expected)
        assert not (exact and abs(equation.rest) > 1e-3), equation
    return found


# each kind of operator --------------------------------------------------------------------------------------------------


def _linear(builder: GraphBuilder, x: str) -> str:
    bias = builder.weight(64, gain=0.5)
    return builder.op("linear", x, weights={"weight": builder.weight(64, 64, gain=2.5), "bias": bias})


def _shifted(builder: GraphBuilder, x: str) -> str:
    return builder.linear(builder.op("relu", x), weight=builder.weight(64, 64, mean=0.2))


def _convolved(builder: GraphBuilder, x: str) -> str:
    x = builder.op("reshape", x, shape=(8, 64, 1))
    weight = builder.weight(32, 64, 1, gain=1.5)
    return builder.op("conv", x, weights={"weight": weight}, shape=(8, 32, 1), padding=(0,), stride=(1,))


def _running(builder: GraphBuilder, x: str) -> str:
    weights = {
        "scale": builder.array(np.full(64, 2.0)),
        "bias": builder.array(np.full(64, 0.5)),
        "running_mean": builder.array(np.full(64, 0.1)),
        "running_var": builder.array(np.full(64, 4.0)),
    }
    return builder.op("batch_norm", x, weights=weights, training=False)


def _glue(op: str, **attrs):
    return lambda builder, x: builder.op(op, x, None, **attrs)


def _pair(op: str):
    def build(builder: GraphBuilder, x: str) -> str:
        return builder.op(op, builder.linear(x, gain=2.0), builder.linear(x, gain=3.0))

    return build


def _attention(builder: GraphBuilder, x: str) -> str:
    x = builder.op("reshape", x, shape=(4, 2, 16, 4))
    q, k, v = (builder.op("linear", x, weights={"weight": builder.weight(4, 4, gain=gain)}) for gain in (1.0, 1.5, 2.0))
    return builder.op("attention", q, k, v)


def _matrix_product(builder: GraphBuilder, x: str) -> str:
    x = builder.op("reshape", x, shape=(4, 8, 16))
    left = builder.op("linear", x, weights={"weight": builder.weight(16, 16, gain=2.0)})
    right = builder.op("linear", x, weights={"weight": builder.weight(16, 16, gain=3.0)})
    right = builder.op("reshape", right, shape=(4, 16, 8), dims=(0, 2, 1), name="turned")
    return builder.op("matmul", left, right, shape=(4, 8, 8))


def _concat(builder: GraphBuilder, x: str) -> str:
    return builder.op("concat", builder.linear(x, gain=2.0), builder.linear(x, gain=3.0), shape=(8, 128), dim=1)


EXACT = {
    "linear": _linear,
    "a mean of the weights": _shifted,
    "conv": _convolved,
    "tanh": lambda builder, x: builder.op("tanh", x),
    "relu": lambda builder, x: builder.op("relu", x),
    "exp": lambda builder, x: builder.op("exp", x),
    "batch_norm on stored statistics": _running,
    "add": _pair("add"),
    "add a number": _glue("add", constant=1.5),
    "mul": _pair("mul"),
    "mul by a number": _glue("mul", constant=3.0),
    "div by a number": _glue("div", constant=3.0),
    "mul by a weight": lambda builder, x: builder.op("mul", x, None, weights={"weight": builder.array(np.full(64, 2.0))}),
    "dropout": lambda builder, x: builder.op("dropout", x, p=0.3, training=True),
    "softmax": lambda builder, x: builder.op("softmax", x, dim=1),
    "attention": _attention,
    "matmul": _matrix_product,
    "concat": _concat,
    "reshape": lambda builder, x: builder.op("reshape", x, shape=(64, 8)),
    "mean": lambda builder, x: builder.op("mean", x, dim=1, shape=(8,)),
    "sum": lambda builder, x: builder.op("sum", x, dim=1, shape=(8,)),
    "avg_pool": lambda builder, x: builder.op(
        "avg_pool", builder.op("reshape", x, shape=(8, 4, 16)), kernel_size=(4,), shape=(8, 4, 4)
    ),
}


@pytest.mark.parametrize("kind", EXACT)
def test_the_printed_formula_alone_gives_the_prediction(kind):
    builder = GraphBuilder()
    checked(builder, EXACT[kind](builder, builder.input(8, 64)))


NEARLY = {  # operators about which the formula leaves something out, and how much that may be
    "layer_norm": (lambda builder, x: builder.norm(x), 0.1),
    "rms_norm": (lambda builder, x: builder.norm(x, "rms_norm"), 0.1),
    "batch_norm": (lambda builder, x: builder.norm(x, "batch_norm"), 1.0),
    "silu from its parts": (lambda builder, x: builder.op("mul", x, builder.op("sigmoid", x)), 2.0),
    "narrow rows": (
        lambda builder, x: builder.linear(x, weight=builder.array(np.random.default_rng(0).normal(size=(64, 64)))),
        0.1,
    ),
    "max_pool": (
        lambda builder, x: builder.op("max_pool", builder.op("reshape", x, shape=(8, 4, 16)), kernel_size=(4,), shape=(8, 4, 4)),
        1.0,
    ),
    "an operator without a rule": (lambda builder, x: builder.op("unknown", x), 0.1),
}


@pytest.mark.parametrize("kind", NEARLY)
def test_what_a_formula_leaves_out_is_printed_as_a_factor(kind):
    build, most = NEARLY[kind]
    builder = GraphBuilder()
    found = checked(builder, build(builder, builder.input(8, 64)), exact=False)
    rests = [found.forward.rest, *(back.factor.rest for back in found.backward)]
    assert max(map(abs, rests)) <= most


def test_a_padded_convolution_names_what_its_formula_leaves_out():
    builder = GraphBuilder()
    weight = builder.weight(32, 16, 3, 3, gain=1.5)
    x = builder.op("conv", builder.input(8, 16, 6, 6), weights={"weight": weight}, shape=(8, 32, 6, 6), padding=(1, 1))
    found = checked(builder, x, exact=False)
    assert 10.0**found.forward.rest == pytest.approx((16.0 / 18.0) ** 2, rel=1e-6)  # of 18 taps in a row 16 lie inside
    assert "padding" in found.forward.because


def test_a_transposed_convolution_counts_the_inputs_of_one_output():
    builder = GraphBuilder()
    weight = builder.weight(16, 32, 2, 2)
    x = builder.op("conv_transpose", builder.input(8, 16, 6, 6), weights={"weight": weight}, shape=(8, 32, 12, 12), stride=(2, 2))
    assert checked(builder, x).forward.numbers.startswith("16 x ")


@pytest.mark.parametrize("op", ["relu", "tanh", "gelu", "sigmoid"])
def test_functions_have_the_moments_of_the_closed_forms(op):
    builder = GraphBuilder()
    node = builder.op(op, builder.linear(builder.input(1024, 64), gain=1.7))  # so many inputs that one batch is as all
    builder.linear(node)
    found, expected = checked(builder, node), moments(op, 1.7**2, {})
    assert 10.0**found.forward.result == pytest.approx(expected.second, rel=1e-3)
    assert 10.0 ** found.backward[0].factor.result == pytest.approx(expected.slope, rel=1e-3)


def test_each_reader_of_a_tensor_is_told_its_share_of_the_gradient():
    builder = GraphBuilder(width=1024)
    x = builder.input(8, 1024)  # wide: one draw is as the mean of all
    branch = builder.linear(x, gain=2.0)
    total = builder.op("add", x, branch)
    structure = Structure(builder.graph)
    prediction = predict(structure)
    skip = next(back for back in derive(structure, prediction, total).backward if back.operand == x)
    layer = derive(structure, prediction, branch).backward[0]
    assert (skip.share, layer.share) == pytest.approx((0.2, 0.8), rel=1e-6)


def test_levels_far_beyond_floats_are_printed_and_still_right():
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(30):
        x = builder.linear(x, gain=1.02e20)  # a little more than what finite width takes off
    structure = Structure(builder.graph)
    found = derive(structure, predict(structure), x)
    assert "e+1160 + 0)" in found.forward.numbers
    assert shown(found.forward.result).endswith("e+1200")


# equations --------------------------------------------------------------------------------------------------------------


def test_a_narrow_layer_says_what_a_typical_draw_takes_off_the_mean_of_all():
    """Of a mean of n squares of normal numbers the log lies below that of the expectation by log(1 + 2/n) / 2 about."""
    builder = GraphBuilder(width=32)
    found = checked(builder, builder.linear(builder.input(1, 32), gain=2.0))
    rng = np.random.default_rng(0)
    means = np.log10(np.mean(rng.normal(size=(100_000, 32)) ** 2, axis=1))
    assert found.forward.typical == pytest.approx(means.mean(), rel=0.1)
    ((factor, because),) = found.forward.beside
    assert (factor, "typical draw" in because) == (found.forward.typical, True)
    assert found.forward.numbers == f"(32 x 0.125 x 1 + 0) x {shown(factor)}"


@given(st.floats(-8.0, 8.0), st.floats(-8.0, 8.0), st.floats(-8.0, 8.0))
def test_any_equation_prints_what_it_is(a, b, c):
    equation = Equation("a b / c + a", ((Number(a), Number(b), Number(c, divides=True)), (Number(a),)))
    assert value(equation.numbers) == pytest.approx(10.0**equation.result, rel=2.0 * ROUNDING)
    whole = equation.equal_to(equation.result + 1.0)
    assert value(whole.numbers) == pytest.approx(10.0**whole.result, rel=2.0 * ROUNDING)


@pytest.mark.parametrize(
    ("log", "text"),
    [(0.0, "1"), (-math.inf, "0"), (math.inf, "inf"), (3.0, "1000"), (5.5, "316228"), (-3.0, "0.001"), (400.30103, "2.000e+400")],
)
def test_numbers_have_four_digits_whatever_their_size(log, text):
    assert shown(log) == text


def test_a_divisor_that_stands_alone_is_one_over_it():
    assert Equation("1 / c", ((below(4.0),),)).numbers == "1 / 4"
    assert Equation("c", ((number(4.0),),)).numbers == "4"


# names ------------------------------------------------------------------------------------------------------------------


def _named() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for index in range(12):
        x = builder.linear(x, module=f"blocks.{index}.fc", name=f"blocks.{index}.fc:linear")
        x = builder.op("tanh", x, module=f"blocks.{index}", name=f"blocks.{index}:tanh")
    builder.linear(x, module="head", name="head:linear")
    return builder


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("blocks.1.fc:linear", ["blocks.1.fc:linear"]),
        ("blocks.1.fc", ["blocks.1.fc:linear"]),
        ("blocks.1", ["blocks.1:tanh"]),
        ("hea", ["head:linear"]),
        ("11:tanh", ["blocks.11:tanh"]),
        ("x", ["x"]),
    ],
)
def test_a_node_is_named_by_id_module_or_a_unique_beginning_or_end(name, nodes):
    assert [node.id for node in find(_named().graph, name)] == nodes


def test_an_unknown_name_comes_with_the_nearest_ones():
    with pytest.raises(TargetError, match=r"no operator or module is called 'heads'\n  the nearest: head"):
        find(_named().graph, "heads")
    with pytest.raises(TargetError, match="no operator or module is called ''"):
        find(_named().graph, "")


def test_a_name_that_is_not_unique_lists_what_it_may_mean():
    with pytest.raises(TargetError, match=r"'fc' stands for 12 operators\n  name one of blocks.0.fc:linear, "):
        find(_named().graph, "fc")


def test_what_lies_behind_the_start_of_gradients_is_said_to_get_none():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())
    assert "No gradient comes back to it" in render(explain((model, (torch.randn(4, 8),)), "1", Options(probe=False)))


# the command ------------------------------------------------------------------------------------------------------------


def _stack_file(path, gain: float = 2.5, depth: int = 12) -> str:
    rng = np.random.default_rng(0)
    weights = [(rng.normal(size=(32, 32)) * gain / math.sqrt(32)).astype(np.float32) for _ in range(depth)]
    nodes, x = [], "x"
    for index in range(depth):
        nodes.append(helper.make_node("MatMul", [x, f"w{index}"], [f"h{index}"], name=f"layers.{index}/MatMul"))
        nodes.append(helper.make_node("Tanh", [f"h{index}"], [f"y{index}"], name=f"layers.{index}/Tanh"))
        x = f"y{index}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 32]) for name in ("x", x)]
    tensors = [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(weights)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, path)
    return str(path)


def test_explain_shows_formula_numbers_source_and_what_was_measured(run, tmp_path):
    code, out, err = run("explain", _stack_file(tmp_path / "a.onnx"), "layers.5/MatMul")
    assert (code, err) == (0, "")
    assert "q' = n E[W^2] q + E[b^2]" in out
    assert re.search(r"= \(32 x 0\.\d+ x 0\.\d+ \+ 0\) x 0\.999\d\n", out)
    assert "measured: from 10^" in out
    assert "He, Zhang, Ren, Sun 2015" in out
    assert "phase       chaotic, gain 2.49, critical 1.00" in out
    assert max(map(len, out.splitlines())) <= 80


def test_without_a_probe_nothing_is_measured(run, tmp_path):
    code, out, _ = run("explain", _stack_file(tmp_path / "a.onnx"), "layers.5/Tanh", "--no-probe")
    assert code == 0
    assert "E tanh'(z)^2" in out
    assert "measured" not in out


def test_an_unknown_node_or_target_is_exit_2_with_one_message(run, tmp_path):
    path = _stack_file(tmp_path / "a.onnx")
    code, out, err = run("explain", path, "layers.5/Tonh", "--no-probe")
    assert (code, out) == (2, "")
    assert err.startswith("gradlint: no operator or module is called 'layers.5/Tonh'\n  the nearest: layers.5/Tanh")
    assert run("explain", "missing.onnx", "x")[0] == 2
    assert run("explain", path)[0] == 2


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
        self.conv = nn.Conv1d(16, 8, 3, padding=1)
        self.rnn = nn.GRU(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        x = nn.functional.max_pool1d(self.conv(x.transpose(1, 2)), 2)
        x, _ = self.rnn(x.permute(2, 0, 1))
        return self.head(torch.cat([x[-1], x.mean(0)], dim=0))


def test_every_operator_of_a_model_can_be_explained_in_80_columns():
    torch.manual_seed(0)
    target = (Small(), (torch.randint(50, (4, 8)),))
    _, subject = examine(target, Options(probe=False))
    assert len(subject.graph) > 20
    for node in subject.graph:
        text = render(explain(target, node.id, Options(probe=False)))
        assert text.startswith(node.id)
        assert max(map(len, text.splitlines()[1:])) <= 80


def test_the_predicted_factor_is_the_measured_one_within_its_interval():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 8))
    for node in ("2", "3"):
        (found,) = explain((model, (torch.randn(64, 256),)), node, Options())
        (back,) = found.derivation.backward
        measured = 2.0 * (found.gains[back.operand].backward - found.gains[found.node.id].backward)
        assert back.factor.result == pytest.approx(measured, abs=0.05)
        assert found.derivation.forward.result == pytest.approx(2.0 * found.gains[found.node.id].forward, abs=0.05)
