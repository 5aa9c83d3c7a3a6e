"""What holds of predictions for any graph: symmetries, scaling, numbers at the ends of floats, and what is not understood."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gradlint.frontends.inputs import InputSpec
from gradlint.graph import Graph, Node, Ref
from gradlint.load import load
from gradlint.predicted_growth import predict_growth
from gradlint.rule import GraphBuilder
from gradlint.structure import Structure
from gradlint.theory.prediction import Predicted, Prediction, predict

BATCH, WIDTH, WIDE = 8, 32, 10**6  # wide: what a layer of few units adds is none there
RECTIFIERS = ("relu", "leaky_relu", "abs")
SMOOTH = ("tanh", "gelu", "silu", "sigmoid", "softplus", "elu")
UNARY = (*RECTIFIERS, *SMOOTH, "neg", "exp", "softmax", "dropout", "layer_norm", "batch_norm", "rms_norm", "fft")
BINARY = ("add", "sub", "mul", "div", "concat")


def predicted(builder: GraphBuilder) -> Prediction:
    return predict(Structure(builder.graph))


def numbers(item: Predicted) -> tuple[float, ...]:
    """Levels and deviations: NaN for a level that is not followed, 0 for the deviation of one that is not finite."""
    levels = [math.nan if level is None else level for level in (item.backward, item.forward)]
    deviations = (item.backward_sd, item.forward_sd)
    return (*levels, *(sd if math.isfinite(level) else 0.0 for level, sd in zip(levels, deviations, strict=True)))


def same(found: Prediction, expected: Prediction, name: Callable[[str], str] = str) -> None:
    """Assert that two predictions agree, node by node."""
    assert {name(node) for node in expected.nodes} == set(found.nodes)
    for node, item in expected.nodes.items():
        assert numbers(found[name(node)]) == pytest.approx(numbers(item), rel=1e-6, abs=1e-6, nan_ok=True), node
        assert found[name(node)].because == item.because


@st.composite
def graphs(draw: st.DrawFn, gains: Sequence[float] = (0.3, 1.0, 3.0), most: int = 14) -> Graph:
    """A random graph over tensors of one shape: layers, functions, norms, joins, and operators that theory does not know."""
    builder = GraphBuilder(batch=BATCH, width=WIDTH)
    nodes = [builder.input(BATCH, WIDTH)]
    for _ in range(draw(st.integers(2, most))):
        # the last three: deep graphs find more than wide ones
        x, y = (draw(st.sampled_from(nodes[-3:])) for _ in range(2))
        op = draw(st.sampled_from(["linear", *UNARY, *BINARY]))
        if op == "linear":
            made = builder.linear(x, gain=draw(st.sampled_from(gains)))
        elif op == "concat":
            both = builder.op("concat", x, y, shape=(BATCH, 2 * WIDTH), dim=1)
            made = builder.op("linear", both, weights={"weight": builder.weight(WIDTH, 2 * WIDTH)}, shape=(BATCH, WIDTH))
        else:
            made = (
                builder.op(op, x, y, shape=(BATCH, WIDTH))
                if op in BINARY
                else builder.op(op, x, shape=(BATCH, WIDTH), p=0.5, dim=1)
            )
        nodes.append(made)
    return builder.graph


# names, order, copies -----------------------------------------------------------------------------------------------------


def shuffled(graph: Graph, rng: random.Random) -> Graph:
    """The same graph in another topological order."""
    waiting, done, order = list(graph), set[str](), list[Node]()
    while waiting:
        ready = [node for node in waiting if all(ref is None or ref.node in done for ref in node.inputs)]
        chosen = rng.choice(ready)
        waiting.remove(chosen)
        done.add(chosen.id)
        order.append(chosen)
    return Graph(order, graph.outputs, mode=graph.mode)


def renamed(graph: Graph, name: Callable[[str], str]) -> Graph:
    def moved(ref: Ref | None) -> Ref | None:
        return None if ref is None else Ref(name(ref.node), ref.port)

    nodes = [replace(node, id=name(node.id), inputs=tuple(moved(ref) for ref in node.inputs)) for node in graph]
    return Graph(nodes, [Ref(name(ref.node), ref.port) for ref in graph.outputs], mode=graph.mode)


@given(graphs(), st.randoms(use_true_random=False))
def test_order_of_execution_is_of_no_account(graph: Graph, rng: random.Random):
    same(predict(Structure(shuffled(graph, rng))), predict(Structure(graph)))


@given(graphs())
def test_names_are_of_no_account(graph: Graph):
    names = {node.id: f"{(7 * index) % 1009}" for index, node in enumerate(graph)}
    same(predict(Structure(renamed(graph, names.__getitem__))), predict(Structure(graph)), names.__getitem__)


def branched(order: Sequence[int], gains: Sequence[float], width: int = WIDTH) -> GraphBuilder:
    """x plus one branch per gain, made and added in this order."""
    builder = GraphBuilder()
    x = builder.input(BATCH, width)
    ends = {index: builder.op("relu", builder.linear(x, width, gain=gains[index]), name=f"branch{index}") for index in order}
    builder.linear(builder.op("add", x, *(ends[index] for index in order), name="sum"), width)
    return builder


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_branches_may_change_places(gains: list[float], rng: random.Random):
    order = list(range(len(gains)))
    expected = predicted(branched(order, gains))
    rng.shuffle(order)
    found = predicted(branched(order, gains))
    for node in ("x", "sum", *(f"branch{index}" for index in order)):
        assert numbers(found[node]) == pytest.approx(numbers(expected[node]))


@given(st.floats(0.1, 10.0), st.integers(1, 6))
def test_a_copy_of_a_branch_adds_its_own_energy(gain: float, copies: int):
    found = predicted(branched(range(copies), [gain] * copies, width=10**6))
    squares = [10.0 ** (2.0 * (found[node].backward or 0.0)) for node in ("x", "sum")]
    assert squares[0] / squares[1] == pytest.approx(1.0 + copies * gain**2 / 2.0, rel=1e-3)


@given(graphs())
def test_the_graph_is_left_as_it_was(graph: Graph):
    before = [(node, dict(node.attrs), dict(node.weights)) for node in graph]
    first = predict(Structure(graph))
    assert [(node, dict(node.attrs), dict(node.weights)) for node in graph] == before
    same(predict(Structure(graph)), first)


def test_weights_are_left_as_they_were_and_torch_is_not_imported():
    code = """
import sys
import numpy as np
from gradlint.rule import GraphBuilder
from gradlint.structure import Structure
from gradlint.theory.prediction import predict

builder = GraphBuilder()
values = np.random.default_rng(0).standard_normal((64, 64)) / 8.0
kept = values.copy()
values.setflags(write=False)
x = builder.input(8, 64)
for act in ("relu", "gelu", "tanh"):
    x = builder.op(act, builder.norm(builder.linear(x, weight=builder.array(values))))
assert predict(Structure(builder.graph)).nodes["x"].backward is not None
assert (values == kept).all()
print(*sorted({"torch", "onnx", "rich", "click"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


# scaling ------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(RECTIFIERS), min_size=1, max_size=12), st.floats(-3.0, 3.0))
def test_scaling_all_weights_of_rectifiers_moves_growth_by_as_much_a_layer(acts: list[str], decades: float):
    def made(gain: float) -> tuple[Prediction, list[str]]:
        builder = GraphBuilder()
        nodes = [builder.input(BATCH, WIDTH)]
        for act in acts:
            nodes += [layer := builder.linear(nodes[-1], WIDTH, gain=gain), builder.op(act, layer)]
        return predicted(builder), nodes

    (as_gaussian, nodes), (scaled, _) = made(1.4), made(1.4 * 10.0**decades)
    behind = [(index + 1) // 2 for index in range(len(nodes))]
    forward = [(scaled[node].forward or 0.0) - (as_gaussian[node].forward or 0.0) for node in nodes]
    backward = [(scaled[node].backward or 0.0) - (as_gaussian[node].backward or 0.0) for node in nodes]
    assert forward == pytest.approx([count * decades for count in behind], abs=1e-6)
    assert backward == pytest.approx([(len(acts) - count) * decades for count in behind], abs=1e-6)


def convolutional(kinds: Sequence[str]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(4, 8, 3, padding=1, bias=False)]
    made: dict[str, Callable[[], nn.Module]] = {
        "conv": lambda: nn.Conv2d(8, 8, 3, padding=1, bias=False),
        "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        "relu": nn.ReLU,
        "max": lambda: nn.MaxPool2d(2, ceil_mode=True),
        "average": lambda: nn.AvgPool2d(2, ceil_mode=True),
        "upsample": lambda: nn.Upsample(scale_factor=2),
    }
    layers += [made[kind]() for kind in kinds]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(8, bias=False))


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(["conv", "depthwise", "relu", "max", "average", "upsample"]), max_size=5),
    st.sampled_from([0.01, 0.5, 30.0]),
)
def test_scaling_all_weights_of_a_torch_network_moves_growth_by_as_much_a_layer(kinds: list[str], factor: float):
    torch.manual_seed(0)
    model = convolutional(kinds).double()
    model(torch.zeros(2, 4, 8, 8, dtype=torch.float64))  # gives the last layer its width

    def growth() -> tuple[float, float]:
        graph = load(model, (InputSpec(None, "float64", (2, 4, 8, 8), given=True),), probe=False).graph_of()
        found = predict(Structure(graph)).nodes
        first, last = found[graph.inputs[0]], found[graph.outputs[0].node]
        assert first.backward is not None
        assert last.forward is not None
        return first.backward, last.forward

    before = growth()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor)
    moved = len(list(model.parameters())) * math.log10(factor)
    assert growth() == pytest.approx([value + moved for value in before], abs=1e-6)


@given(
    st.sampled_from([("relu", math.sqrt(2.0)), ("leaky_relu", 1.3), ("tanh", 1.0), ("gelu", 1.4), ("silu", 1.6)]),
    st.integers(1, 12),
    st.sampled_from([None, "layer_norm", "batch_norm", "rms_norm"]),
    st.floats(0.0, 2.0),
)
def test_an_identity_skip_never_lets_a_gradient_vanish(critical: tuple[str, float], depth: int, norm: str | None, scale: float):
    act, gain = critical
    builder = GraphBuilder()
    last = builder.blocks(depth, act, gain=gain, norm=norm, scale=scale)
    builder.linear(last)
    found = predicted(builder)
    assert (found["x"].backward or 0.0) >= (found[last].backward or 0.0) - 1e-6


# the ends of floats -------------------------------------------------------------------------------------------------------


def check_numbers(graph: Graph, *, strict: bool = True) -> None:
    """No rule raises where shapes fit (`strict`), no prediction is NaN, and no interval is negative."""
    structure = Structure(graph)
    prediction = predict(structure, strict=strict)
    for node, item in prediction.nodes.items():
        assert not any(level is not None and math.isnan(level) for level in (item.backward, item.forward)), (node, item)
        assert item.backward_sd >= 0.0, (node, item)
        assert item.forward_sd >= 0.0, (node, item)
    growth = predict_growth(structure, prediction).growth
    assert growth is None or growth.interval is None or growth.interval[0] <= growth.decades <= growth.interval[1]


@given(graphs())
def test_predictions_are_numbers_with_intervals(graph: Graph):
    check_numbers(graph)


@settings(max_examples=200)
@given(graphs(gains=(0.0, 1e-150, 1e-20, 1e20, 1e150)))
def test_no_gain_makes_a_nan(graph: Graph):
    check_numbers(graph)


EXTREMES = {
    "1e100": lambda draws: 1e100 * draws,
    "1e-200": lambda draws: 1e-200 * draws,
    "zeros": np.zeros_like,
    "infinite": lambda draws: np.full_like(draws, np.inf),
    "one infinite": lambda draws: np.where(np.arange(draws.size).reshape(draws.shape) == 3, np.inf, draws),
    "no numbers": lambda draws: np.full_like(draws, np.nan),
}


@pytest.mark.parametrize("act", UNARY)
@pytest.mark.parametrize("values", EXTREMES.values(), ids=list(EXTREMES))
def test_no_weight_makes_a_nan(values: Callable[[np.ndarray], np.ndarray], act: str):
    draws = np.random.default_rng(0).standard_normal((WIDTH, WIDTH))
    builder = GraphBuilder()
    x = builder.input(BATCH, WIDTH)
    for _ in range(3):
        layer = builder.op("linear", x, weights={"weight": builder.array(values(draws)), "bias": builder.array(values(draws[0]))})
        behind = builder.op(act, layer, shape=(BATCH, WIDTH), p=0.5, dim=1)
        x = builder.linear(behind, WIDTH)
    check_numbers(builder.graph)


@given(graphs(), st.data())
def test_unknown_shapes_make_no_nan(graph: Graph, data: st.DataObject):
    def forgotten(shape: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
        return data.draw(st.sampled_from([shape, shape, None, (None, WIDTH), (None, None)]))

    nodes = [replace(node, shape=forgotten(node.shape)) for node in graph]
    check_numbers(Graph(nodes, graph.outputs, mode=graph.mode), strict=False)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 1, 8), (1, 4, 8, 8), (0, 4, 8, 8)])
@pytest.mark.parametrize("op", ["conv", "max_pool", "avg_pool", "upsample", "batch_norm", "group_norm", "instance_norm", "mean"])
def test_axes_of_length_one_or_nought_make_no_nan(op: str, shape: tuple[int, ...]):
    builder = GraphBuilder()
    weights = {"weight": builder.weight(shape[1], shape[1], 3, 3)} if op == "conv" else {}
    x = builder.op("relu", builder.input(*shape))
    x = builder.op(
        op, x, weights=weights, padding=1, kernel_size=3, stride=1, num_groups=1, dim=(2, 3), keepdim=True, mode="bilinear"
    )
    builder.op("relu", x)
    check_numbers(builder.graph, strict=0 not in shape)


@pytest.mark.parametrize("gain", [10.0, 0.1])
@pytest.mark.parametrize("act", ["relu", "tanh", "gelu", "silu", "softplus", "neg", "sigmoid", "exp", "layer_norm", "softmax"])
def test_four_hundred_decades_are_a_number(act: str, gain: float):
    builder = GraphBuilder()
    x = builder.input(BATCH, WIDE)
    for _ in range(400):
        x = builder.linear(x, WIDE, gain=gain)
    x = builder.op(act, x, dim=1)
    for _ in range(400):
        x = builder.linear(x, WIDE, gain=gain)
    check_numbers(builder.graph)
    found = predicted(builder)
    assert found["linear399"].forward == pytest.approx(400.0 * math.log10(gain))
    assert (found[f"{act}0"].backward or 0.0) - (found["linear799"].backward or 0.0) == pytest.approx(400.0 * math.log10(gain))
    if act == "relu":
        assert found["x"].backward == pytest.approx(800.0 * math.log10(gain) - 0.5 * math.log10(2.0))


# what is not understood ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["fft", "sort", "no_such_operator"]))
def test_an_unknown_operator_widens_the_interval_and_is_named(before: int, behind: int, op: str):
    def made(middle: str) -> tuple[Prediction, list[str]]:
        builder = GraphBuilder(batch=BATCH, width=WIDTH)
        nodes = [builder.input(BATCH, WIDTH)]
        for index in range(before + 1 + behind):
            nodes.append(builder.op(middle, nodes[-1], name="here") if index == before else builder.linear(nodes[-1]))
        return predicted(builder), nodes

    (known, nodes), (unknown, _) = made("relu"), made(op)
    at = nodes.index("here")
    assert [node for node, item in unknown.nodes.items() if item.because] == ["here"]
    assert op in unknown["here"].because[0]
    for node in nodes[:at]:
        assert unknown[node].backward_sd > known[node].backward_sd + 0.3
        assert unknown[node].forward_sd == known[node].forward_sd
    for node in nodes[at:]:
        assert unknown[node].forward_sd > known[node].forward_sd + 0.3
        assert unknown[node].backward_sd == pytest.approx(known[node].backward_sd)
