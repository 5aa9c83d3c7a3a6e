"""Time of the prediction alone: networks of the size of ResNet-50 and BERT-base, and graphs of a thousand nodes and more.

Prints a row per network: milliseconds for reading the weights once, for the first prediction behind that, and for the best of
several; then one per shape of graph, with microseconds a node and the slope of log(seconds) over log(nodes). With `--profile`,
where the time goes.
"""

from __future__ import annotations

import cProfile
import math
import pstats
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from common import Rows, parser, processor_seconds
from graph_size import SHAPES, Model, slope, write
from onnx import TensorProto, helper, numpy_helper

from gradlint.graph import Graph
from gradlint.load import load
from gradlint.structure import Structure
from gradlint.theory.prediction import predict

LIMIT, STEEPEST = 50.0, 1.1  # milliseconds for ResNet-50; slope of a cost that is linear
REPEATS = 5


class Network(Model):
    """A model with real sizes: its weights are as He would draw them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._draws = np.random.default_rng(seed)

    def drawn(self, *shape: int, fan_in: int) -> str:
        """A new weight."""
        values = self._draws.standard_normal(shape, dtype=np.float32)
        return self.constant(values * np.float32(math.sqrt(2.0 / fan_in)))

    def constant(self, values: np.ndarray) -> str:
        """A new weight with these values."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def units(self, width: int) -> tuple[str, str]:
        """Scale and shift of a normalization."""
        return self.constant(np.ones(width, np.float32)), self.constant(np.zeros(width, np.float32))

    def conv(self, x: str, sizes: tuple[int, int], kernel: int, stride: int = 1) -> str:
        """Convolution and batch norm."""
        inside, out = sizes
        weight = self.drawn(out, inside, kernel, kernel, fan_in=inside * kernel * kernel)
        options = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        statistics = (self.constant(np.zeros(out, np.float32)), self.constant(np.ones(out, np.float32)))
        return self.op("BatchNormalization", self.op("Conv", x, weight, **options), *self.units(out), *statistics)

    def dense(self, x: str, inside: int, out: int) -> str:
        """Weight and bias."""
        product = self.op("MatMul", x, self.drawn(inside, out, fan_in=inside))
        return self.op("Add", product, self.constant(np.zeros(out, np.float32)))


def resnet50(model: Network) -> str:
    """Bottleneck blocks, 3, 4, 6 and 3 of them."""
    x = model.op("Relu", model.conv("x", (3, 64), 7, 2))
    x, width = model.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 << stage
        for index in range(blocks):
            stride = 2 if stage and not index else 1
            h = model.op("Relu", model.conv(x, (width, inner), 1))
            h = model.op("Relu", model.conv(h, (inner, inner), 3, stride))
            h = model.conv(h, (inner, 4 * inner), 1)
            x = model.conv(x, (width, 4 * inner), 1, stride) if not index else x
            x, width = model.op("Relu", model.op("Add", h, x)), 4 * inner
    return model.dense(model.op("Flatten", model.op("GlobalAveragePool", x)), width, 1000)


def bert_base(model: Network) -> str:
    """Twelve post-norm encoder blocks, attention spelled out as exporters do."""
    width, heads = 768, 12
    split, join = (model.constant(np.array(shape)) for shape in ((0, 0, heads, width // heads), (0, 0, width)))
    scale = model.constant(np.float32((width // heads) ** -0.5))
    x = model.op("Gather", model.drawn(30522, width, fan_in=width), "x", axis=0)
    for _ in range(12):
        q, k, v = (
            model.op("Transpose", model.op("Reshape", model.dense(x, width, width), split), perm=perm)
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        mixed = model.op("MatMul", model.op("Softmax", model.op("Mul", model.op("MatMul", q, k), scale), axis=-1), v)
        h = model.dense(model.op("Reshape", model.op("Transpose", mixed, perm=[0, 2, 1, 3]), join), width, width)
        x = model.op("LayerNormalization", model.op("Add", x, h), *model.units(width))
        h = model.dense(model.op("Gelu", model.dense(x, width, 4 * width)), 4 * width, width)
        x = model.op("LayerNormalization", model.op("Add", x, h), *model.units(width))
    return x


NETWORKS: dict[str, tuple[Callable[[Network], str], int, list[int]]] = {
    "ResNet-50": (resnet50, TensorProto.FLOAT, [8, 3, 224, 224]),
    "BERT-base": (bert_base, TensorProto.INT64, [8, 128]),
}


def save(path: Path, make: Callable[[Network], str], dtype: int, shape: list[int]) -> None:
    """Write a network to a file."""
    model = Network()
    last = make(model)
    x, y = helper.make_tensor_value_info("x", dtype, shape), helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    graph = helper.make_graph(model.nodes, "g", [x], [y], model.weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def read(path: Path) -> Graph:
    """The graph of a file, its weights mapped."""
    return load(str(path), probe=False).graph_of()


def milliseconds(run: Callable[[], object]) -> float:
    """Processor time of one call."""
    return 1000.0 * processor_seconds(run)


def verdict(name: str, value: float, limit: float) -> None:
    """Print whether a figure is within its limit."""
    print(f"{'ok ' if value <= limit else 'NOT'} {name} {value:.2f} (to reach: <= {limit:g})", flush=True)


def networks(folder: Path, profile: int) -> None:
    """Print the table of real sizes."""
    rows = Rows("network:<12", "nodes", "weights", "reading them, ms", "first prediction, ms", "best, ms", "us a node")
    first_of: dict[str, float] = {}
    for name, (make, dtype, shape) in NETWORKS.items():
        path = folder / f"{name}.onnx"
        save(path, make, dtype, shape)
        graph = read(path)
        structure, weights = Structure(graph), list(graph.weights.values())
        reading = milliseconds(lambda weights=weights: [weight.statistics for weight in weights])
        first, *more = (milliseconds(lambda structure=structure: predict(structure)) for _ in range(REPEATS))
        size = f"{sum(weight.size for weight in weights) / 1e6:.1f} M"
        times = [f"{value:.1f}" for value in (reading, first, min(more))]
        rows.add(name, len(graph), size, *times, f"{1000.0 * min(more) / len(graph):.0f}")
        first_of[name] = first
        if profile:
            hottest(name, structure, profile)
    verdict("first prediction of ResNet-50, ms", first_of["ResNet-50"], LIMIT)


def graphs(folder: Path, sizes: list[int], profile: int) -> None:
    """Print the table of graphs by the number of their nodes."""
    rows = Rows("graph:<12", *(f"{size:,} nodes, ms" for size in sizes), "us a node", "slope", title="Graphs of many nodes")
    steepest = 0.0
    for name, shape in SHAPES.items():
        nodes, times = [], []
        for size in sizes:
            write(folder / "graph.onnx", shape, size)
            structure = Structure(read(folder / "graph.onnx"))
            nodes.append(len(structure.graph))
            times.append(min(milliseconds(lambda structure=structure: predict(structure)) for _ in range(2)))
        steepest = max(steepest, slope(nodes, times))
        rows.add(name, *(f"{t:.0f}" for t in times), f"{1000.0 * times[-1] / nodes[-1]:.0f}", f"{slope(nodes, times):.2f}")
        if profile and name == "transformer":
            hottest(name, structure, profile)
    verdict("steepest slope", steepest, STEEPEST)


def hottest(name: str, structure: Structure, count: int) -> None:
    """Print the functions that take most of the time of a prediction."""
    with cProfile.Profile() as profile:
        predict(structure)
    print(f"{name}:")
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(count)


def main() -> None:
    """Print the tables."""
    options = parser(__doc__, "graphs of 500 and 1,500 nodes")
    options.add_argument("--sizes", type=int, nargs="+", help="numbers of nodes, by default 1,000, 10,000 and 100,000")
    options.add_argument("--profile", type=int, default=0, metavar="COUNT", help="print so many of the hottest functions")
    chosen = options.parse_args()
    sizes = chosen.sizes or ([500, 1_500] if chosen.quick else [1_000, 10_000, 100_000])
    with tempfile.TemporaryDirectory() as folder:
        networks(Path(folder), chosen.profile)
        graphs(Path(folder), sizes, chosen.profile)


if __name__ == "__main__":
    main()
