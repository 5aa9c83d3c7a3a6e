"""Small files that stand for much: a report or a sentence, within seconds and little memory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

N = helper.make_node
INT = np.int64
HUGE = 10**6


def nested(depth):
    """Return a graph of conditions within conditions."""
    graph = None
    for level in range(depth):
        inner = N("Identity", ["h"], [f"o{level}"])
        if graph is not None:
            inner = N("If", ["c"], [f"o{level}"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([inner], f"g{level}", [], [helper.make_tensor_value_info(f"o{level}", TensorProto.FLOAT, None)])
    return graph


def in_a_row(count, op, operands=1, **attributes):
    """Return nodes that feed one another, from h to y; each reads the one before it `operands` times."""
    names = ["h", *(f"c{index}" for index in range(count - 1)), "y"]
    return [N(op, [before] * operands, [after], **attributes) for before, after in pairwise(names)]


WIDE = helper.make_graph([N("Sum", ["h"] * 20_000, ["z"])], "wide", [], [])
ADDED = [N("ReduceSum", ["k"], ["r"]), N("Add", ["h", "r"], ["y"])]
STATIC = {
    "a long operator": ([N("R" * 3_000_000, ["h"], ["y"])], {}, "a name has 3000000 characters"),
    "a long name": ([N("Relu", ["h"], ["y"], name="n" * 3_000_000)], {}, "a name has 3000000 characters"),
    "a long domain": ([N("Relu", ["h"], ["y"], domain="d" * 10_000)], {}, "a name has 10000 characters"),
    "a long value": ([N("Relu", ["h"], ["v" * 10_000]), N("Relu", ["v" * 10_000], ["y"])], {}, "a name has 10000 characters"),
    "many operands": ([N("Sum", ["h"] * 100_000, ["y"])], {}, "100000 inputs or outputs"),
    "many results": ([N("Split", ["h"], [f"y{index}" for index in range(20_000)])], {}, "20000 inputs or outputs"),
    "within a condition": (
        [
            N(
                "If",
                ["c"],
                ["y"],
                then_branch=helper.make_graph([N("Sum", ["h"] * 20_000, ["z"])], "g", [], []),
                else_branch=nested(1),
            )
        ],
        {"c": np.array(True)},
        "20000 inputs or outputs",
    ),
    "doubling concatenations": (in_a_row(40, "Concat", 2, axis=0), {}, None),
    "doubling concatenations of channels": (in_a_row(40, "Concat", 2, axis=1), {}, None),
    "doubling sums": (in_a_row(500, "Add", 2), {}, None),
    "doubling conditions": ([N("If", ["c"], ["y"], then_branch=nested(10), else_branch=nested(10))], {"c": np.array(True)}, None),
    "a large expansion": ([N("Expand", ["h", "s"], ["y"])], {"s": np.array([HUGE, HUGE, 8, 8], INT)}, None),
    "large tiles": ([N("Tile", ["h", "s"], ["y"])], {"s": np.array([HUGE, HUGE], INT)}, None),
    "a large frame": ([N("Pad", ["h", "s"], ["y"])], {"s": np.array([0, 0, HUGE, HUGE], INT)}, None),
    "a large constant": (
        [N("ConstantOfShape", ["s"], ["k"]), *ADDED],
        {"s": np.array([HUGE, HUGE], INT)},
        None,
    ),
    "a long range": (
        [
            N("Range", ["a", "b", "d"], ["i"]),
            N("Cast", ["i"], ["f"], to=1),
            N("ReduceSum", ["f"], ["r"]),
            N("Add", ["h", "r"], ["y"]),
        ],
        {"a": np.array(0, INT), "b": np.array(10**12, INT), "d": np.array(1, INT)},
        None,
    ),
    "many classes": (
        [N("ArgMax", ["h"], ["i"], axis=1, keepdims=0), N("OneHot", ["i", "d", "v"], ["y"])],
        {"d": np.array(10**11, INT), "v": np.array([0, 1], np.float32)},
        None,
    ),
    "a node that reads itself": ([N("Add", ["h", "y"], ["y"])], {}, "which nothing before it makes"),
    "nodes in a circle": ([N("Add", ["h", "z"], ["y"]), N("Relu", ["y"], ["z"])], {}, "which nothing before it makes"),
}


@pytest.mark.parametrize(("nodes", "constants", "because"), STATIC.values(), ids=STATIC.keys())
def test_what_is_read(run, tmp_path, nodes, constants, because):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None if name == "y" else [8, 8]) for name in "xy")
    weights = {"w": np.eye(8, dtype=np.float32), **constants}
    graph = helper.make_graph(
        [N("MatMul", ["x", "w"], ["h"]), *nodes], "g", [x], [y], [numpy_helper.from_array(a, n) for n, a in weights.items()]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("d" * 10_000, 1)], ir_version=8
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    code, out, err = run("m.onnx", "--no-probe", "--memory-limit", "0.4", "--time-limit", "30", "--exit-zero")
    assert "internal error" not in err
    assert len(out) < 10_000
    assert len(err) < 1000
    if because is not None:
        assert code == 2
        assert because in err
    else:
        assert code == 0, err
