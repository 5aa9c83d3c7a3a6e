"""Adds the rows of two invented activations and prints, as JSON, what every reader of the vocabulary makes of them.

Run by test_one_place.py in a process of its own: rows are added before anything but the vocabulary is imported, as rows in the
source would be. With the argument "without" nothing is added.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from gradlint.ops import OPERATORS, Kind, Operator, Pointwise, Spelling

HARD_SIGMOID = Operator(
    "hardsigmoid2",
    Kind.ACTIVATION,
    torch=("hardsigmoid2",),
    onnx=("HardSigmoid2",),
    function=Pointwise(lambda z: np.clip(0.25 * z + 0.5, 0.0, 1.0), lambda z: np.where(np.abs(z) < 2.0, 0.25, 0.0), (-2.0, 2.0)),
    kernels={"HardSigmoid2": lambda torch, x: torch.clamp(0.25 * x + 0.5, 0.0, 1.0)},
    bounded=True,
    dead="ends",
    ends=(0.0, 1.0),
    final=True,
)
HARD_SWISH = Operator(
    "hardswish2",
    Kind.ACTIVATION,
    torch=("hardswish2",),
    onnx=("HardSwish2",),
    function=Pointwise(
        lambda z: z * np.clip(0.25 * z + 0.5, 0.0, 1.0),
        lambda z: np.where(z >= 2.0, 1.0, np.where(z <= -2.0, 0.0, 0.5 * z + 0.5)),
        (-2.0, 2.0),
    ),
    kernels={"HardSwish2": lambda torch, x: x * torch.clamp(0.25 * x + 0.5, 0.0, 1.0)},
    rectifier=True,
    monotone=False,
    dead="below",
    spelling=Spelling(("clamp",)),
)
if sys.argv[1] == "with":
    OPERATORS.update({row.name: row for row in (HARD_SIGMOID, HARD_SWISH)})

import torch  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402
from torch.overrides import wrap_torch_function  # noqa: E402

import gradlint  # noqa: E402
from gradlint.frontends.onnx.file import read_onnx  # noqa: E402
from gradlint.frontends.torch.module import TorchRunnable  # noqa: E402
from gradlint.onnx_torch import OnnxRunnable  # noqa: E402
from gradlint.probe.measure import measure  # noqa: E402
from gradlint.ranges.propagation import ranges_of  # noqa: E402
from gradlint.structure import Structure  # noqa: E402
from gradlint.theory.gaussian.integrals import critical_gain, moments  # noqa: E402
from gradlint.theory.prediction import predict  # noqa: E402
from gradlint.theory.recurrence.read import read_cells  # noqa: E402

NAMES = {"hardsigmoid2": "HardSigmoid2", "hardswish2": "HardSwish2"}
WIDTH = 16


@wrap_torch_function(lambda x: (x,))
def hardsigmoid2(x):
    return torch.clamp(0.25 * x + 0.5, 0.0, 1.0)


@wrap_torch_function(lambda x: (x,))
def hardswish2(x):
    return x * torch.clamp(0.25 * x + 0.5, 0.0, 1.0)


FUNCTIONS = {"hardsigmoid2": hardsigmoid2, "hardswish2": hardswish2}


class Layers(nn.Module):
    def __init__(self, name, depth, *, width=WIDTH, bias=None, last=4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, last) if last else nn.Identity()
        self.function = FUNCTIONS[name]
        if bias is not None:
            for layer in self.layers:
                nn.init.constant_(layer.bias, bias)

    def forward(self, x):
        for layer in self.layers:
            x = self.function(layer(x))
        return self.head(x)


class Loop(nn.Module):
    """A recurrence in a Python loop, with a recurrent weight of spectral radius 1.5."""

    def __init__(self, name) -> None:
        super().__init__()
        self.recurrent = nn.Linear(WIDTH, WIDTH, bias=False)
        self.function = FUNCTIONS[name]
        with torch.no_grad():
            self.recurrent.weight.copy_(1.5 * torch.eye(WIDTH))

    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):
            h = self.function(x[:, step] + self.recurrent(h))
        return h


def info(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def file_of(nodes, constants, output, shape):
    arrays = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [info("x", shape)], [info(output, None)], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def one_operator(name):
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) / 4.0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(NAMES[name], ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    return file_of(nodes, {"w": weight}, "y", [8, WIDTH])


def spelled_out():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "quarter"], ["a"]),
        helper.make_node("Add", ["a", "half"], ["b"]),
        helper.make_node("Clip", ["b", "zero", "one"], ["c"]),
        helper.make_node("Mul", ["h", "c"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    return file_of(nodes, {"w": np.eye(WIDTH), "quarter": 0.25, "half": 0.5, "zero": 0.0, "one": 1.0}, "y", [8, WIDTH])


def recurrent(name):
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=WIDTH, activations=[NAMES[name]])
    constants = {"w": 0.1 * np.ones((1, WIDTH, WIDTH)), "r": 0.3 * np.eye(WIDTH)[None]}
    return file_of([node], constants, "y", [5, 2, WIDTH])


def integrals(name):
    """E phi^2 and E phi'^2 for z ~ N(0.3, 1.5^2) by theory, and by a plain sum over torch's own values."""
    z = torch.linspace(-14.0, 14.0, 400_001, dtype=torch.float64, requires_grad=True)
    values = FUNCTIONS[name](z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    weights = torch.exp(-0.5 * ((z.detach() - 0.3) / 1.5) ** 2)
    sums = [float((weights * part.detach().square()).sum() / weights.sum()) for part in (values, slopes)]
    found = moments(name, 1.5**2 + 0.3**2, {}, 0.3)
    return {"theory": found and [found.second, found.slope], "torch": sums}


def evaluated(name):
    """Output and gradient of an ONNX file with the operator, and those of torch."""
    weight = torch.tensor(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) / 4.0, dtype=torch.float32)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours = OnnxRunnable(read_onnx(one_operator(name))).module(x)[0]
    theirs = FUNCTIONS[name](x @ weight) @ weight
    ends = [(value, torch.autograd.grad(value.square().sum(), x)[0]) for value in (ours, theirs)]
    return max(float((one - other).detach().abs().max()) for one, other in zip(*ends, strict=True))


def recurred(name):
    """An ONNX RNN with the activation: the cell that theory reads, and its distance from a loop in torch."""
    file = read_onnx(recurrent(name))
    node = next(node for node in file.graph if node.op == "rnn")
    cells = read_cells(node)
    x = torch.randn(5, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    h = torch.zeros(2, WIDTH)
    for step in range(5):
        h = FUNCTIONS[name](x[step] @ torch.full((WIDTH, WIDTH), 0.1) + 0.3 * h)
    low, high = (getattr(ranges_of(file.graph)[node.id], end) for end in ("low", "high"))
    return {
        "cell": cells and cells.layers[0][0].activation,
        "range": [low, high],
        "distance": float((OnnxRunnable(file).forward([x])[0][-1, 0] - h).abs().max()),
    }


def attempt(function, *args):
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
        return f"{type(error).__name__}: {error}"


def graph_of(module, x):
    runnable = TorchRunnable(module, (), args=(x,))
    runnable.forward([x.numpy()])
    return runnable.graph


def seen_by_all(name):
    torch.manual_seed(0)
    x = torch.randn(32, WIDTH)
    graph = graph_of(Layers(name, 2), x)
    act = next(node for node in graph if node.op not in {"input", "linear"})
    structure = Structure(graph)
    interval = ranges_of(graph)[act.id]
    ending = graph_of(Layers(name, 1, last=0), x)
    dead = measure(TorchRunnable(Layers(name, 1, bias=-50.0), (), args=(x,)), seeds=1).units

    def codes(module, *args, **options):
        return sorted({finding.rule for finding in gradlint.check(module, args, seeds=1, **options).findings})

    torch.manual_seed(0)
    deep = Layers(name, 40, width=64)
    return {
        "op": act.op,
        "no rule": list(predict(structure)[act.id].because),
        "integrals": integrals(name),
        "critical": critical_gain(name),
        "range": [interval.low, interval.high],
        "final": [ending[ref.node].op for ref in Structure(ending).trunk],
        "dead": [units.dead for units in dead],
        "onnx": [node.op for node in read_onnx(one_operator(name)).graph],
        "evaluated": attempt(evaluated, name),
        "recurrent": attempt(recurred, name),
        "deep": codes(deep, torch.randn(8, 64)),
        "loop": codes(Loop(name), torch.randn(4, 40, WIDTH)),
        "killed": codes(Layers(name, 3, bias=-50.0), x),
    }


found = {name: seen_by_all(name) for name in NAMES}
sys.stdout.write(json.dumps({**found, "spelled": [node.op for node in read_onnx(spelled_out()).graph]}))
