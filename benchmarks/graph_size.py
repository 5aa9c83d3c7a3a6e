"""Time of a static check of an ONNX file against the number of its nodes: it has to be linear.

Prints a row for each of six shapes: the processor seconds of `gradlint.check(path, probe=False)` by the number of nodes, those of
the theory alone on the largest graph, and the slopes of log(seconds) over log(nodes): 1 is linear, 2 is quadratic.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import linear_regression

import numpy as np
import onnx
from common import Rows, parser, processor_seconds
from onnx import TensorProto, helper, numpy_helper

import gradlint
from gradlint.load import load
from gradlint.structure import Structure
from gradlint.theory.prediction import predict

WIDTH = 8


class Model:
    """Nodes and weights of a model from x to the last node that was added."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def weight(self, *shape: int) -> str:
        """A new weight of gain 1."""
        name = f"w{len(self.weights)}"
        values = self._rng.standard_normal(shape) / math.sqrt(shape[0])
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """A new node; its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], f"n{len(self.nodes)}", **attributes))
        return name

    def linear(self, x: str) -> str:
        """Weight and bias."""
        return self.op("Add", self.op("MatMul", x, self.weight(WIDTH, WIDTH)), self.weight(WIDTH))


def chain(model: Model, count: int) -> str:
    """A plain stack: weight, bias, tanh."""
    x = "x"
    while len(model.nodes) < count:
        x = model.op("Tanh", model.linear(x))
    return x


def residual(model: Model, count: int) -> str:
    """Pre-norm residual blocks."""
    x = "x"
    while len(model.nodes) < count:
        h = model.op("LayerNormalization", x, model.weight(WIDTH), model.weight(WIDTH))
        h = model.linear(model.op("Relu", model.linear(h)))
        x = model.op("Add", x, h)
    return x


def mixed(model: Model, count: int) -> str:
    """Residual sums between plain layers."""
    x = "x"
    while len(model.nodes) < count:
        x = model.op("Tanh", model.linear(x))
        x = model.op("Add", x, model.op("Relu", model.linear(x)))
    return x


def transformer(model: Model, count: int) -> str:
    """Attention with the norm spelled out in primitive operators, and the arithmetic of shapes that exporters leave behind."""
    x = "x"
    for name, value in {"two": 2.0, "eps": 1e-5, "scale": 0.35}.items():
        model.weights.append(numpy_helper.from_array(np.float32(value), name))
    while len(model.nodes) < count:
        d = model.op("Sub", x, model.op("ReduceMean", x, axes=[-1]))
        deviation = model.op("Sqrt", model.op("Add", model.op("ReduceMean", model.op("Pow", d, "two"), axes=[-1]), "eps"))
        h = model.op("Add", model.op("Mul", model.op("Div", d, deviation), model.weight(WIDTH)), model.weight(WIDTH))
        q, k, v = (model.op("Reshape", part, model.op("Shape", part)) for part in (model.linear(h) for _ in range(3)))
        logits = model.op("Mul", model.op("MatMul", q, model.op("Transpose", k, perm=[1, 0])), "scale")
        x = model.op("Add", x, model.linear(model.op("MatMul", model.op("Softmax", logits), v)))
    return x


def recurrent(model: Model, count: int) -> str:
    """One layer unrolled in time: every step uses the same weights."""
    w, u, b = model.weight(WIDTH, WIDTH), model.weight(WIDTH, WIDTH), model.weight(WIDTH)
    h = "x"
    while len(model.nodes) < count:
        h = model.op("Tanh", model.op("Add", model.op("Add", model.op("MatMul", "x", w), model.op("MatMul", h, u)), b))
    return h


def wide(model: Model, count: int) -> str:
    """Many branches of one layer, concatenated."""
    branches = []
    while len(model.nodes) < count - 1:
        branches.append(model.op("Relu", model.linear("x")))
    return model.op("Concat", *branches, axis=1)


SHAPES: dict[str, Callable[[Model, int], str]] = {
    function.__name__: function for function in (chain, residual, mixed, transformer, recurrent, wide)
}


def write(path: Path, shape: Callable[[Model, int], str], count: int, seed: int = 0) -> int:
    """Write a model of about `count` nodes; the exact number."""
    model = Model(seed)
    last = shape(model, count)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, WIDTH])
    y = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    graph = helper.make_graph(model.nodes, "g", [x], [y], model.weights)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return len(model.nodes)


def measured(path: Path, shape: Callable[[Model, int], str], count: int) -> tuple[int, float, float]:
    """Nodes, and the shortest times of two checks and two predictions.

    The two models share no weights, so that no cache knows the second.
    """
    checks, predictions = [], []
    for seed in range(2):
        nodes = write(path, shape, count, seed)
        checks.append(processor_seconds(lambda: gradlint.check(str(path), probe=False)))
        structure = Structure(load(str(path), probe=False).graph_of())
        predictions.append(processor_seconds(partial(predict, structure)))
    return nodes, min(checks), min(predictions)


def slope(nodes: Sequence[int], times: Sequence[float]) -> float:
    """That of log(seconds) over log(nodes)."""
    return linear_regression([math.log(n) for n in nodes], [math.log(t) for t in times]).slope


def main() -> None:
    """Print the table."""
    options = parser(__doc__, "graphs of 500 and 1,500 nodes")
    options.add_argument("--sizes", type=int, nargs="+", help="numbers of nodes, by default 1,000, 10,000 and 100,000")
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    chosen = options.parse_args()
    sizes = chosen.sizes or ([500, 1_500] if chosen.quick else [1_000, 10_000, 100_000])
    columns = (*(f"{size:,} nodes, s" for size in sizes), "us a node", "slope", "theory, s", "us a node", "slope")
    rows = Rows("graph:<12", *columns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        measured(path, chain, 100)  # imports
        for name in chosen.shapes:
            nodes, times, theory = zip(*(measured(path, SHAPES[name], size) for size in sizes), strict=True)
            cells = [f"{t:.2f}" for t in times]
            for column in (times, theory):
                cells += [f"{column[-1]:.2f}"] if column is theory else []
                cells += [f"{1e6 * column[-1] / nodes[-1]:.0f}", f"{slope(nodes, column):.2f}"]
            rows.add(name, *cells)


if __name__ == "__main__":
    main()
