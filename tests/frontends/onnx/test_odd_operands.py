"""Operators with operand lists and attributes that no exporter writes end in a report or a sentence."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gradlint import engine
from gradlint.errors import GradlintError
from gradlint.options import Options

NAMES = sorted({(s.domain, s.name) for s in onnx.defs.get_all_schemas() if s.domain in {"", "ai.onnx.ml"} and not s.deprecated})
VALUES = {
    onnx.AttributeProto.FLOAT: (0.0, 1.0, -1.0, 1e30),
    onnx.AttributeProto.INT: (0, 1, -1, 2, 7, 2**40),
    onnx.AttributeProto.STRING: ("", "a", "NOTSET", "linear", "ij,jk->ik"),
    onnx.AttributeProto.FLOATS: ([1.0, 0.0],),
    onnx.AttributeProto.INTS: ([3], [1], [0, 1], [2, 2], [-1], [2**40]),
    onnx.AttributeProto.STRINGS: (["a", "b"],),
}
CONSTANTS = {"w": np.eye(4, dtype=np.float32), "i": np.array([1, 0]), "s": np.array(3), "b": np.array(True)}


def odd(rng: random.Random) -> bytes:
    """A matrix product, an operator at random with random operands and attributes, and an identity."""
    domain, kind = rng.choice(NAMES)
    given = {}
    for name, declared in onnx.defs.get_schema(kind, domain=domain).attributes.items():
        values = VALUES.get(declared.type.value)
        if values and (declared.required or rng.random() < 0.3):
            given[name] = rng.choice(values)
    inputs = [rng.choice(["h", "w", "x", "", "i", "s", "b"]) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4, 6]))]
    outputs = [f"y{index}" for index in range(rng.choice([1, 1, 1, 2, 3]))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(kind, inputs, outputs, name="odd", domain=domain, **given),
        helper.make_node("Identity", ["y0"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()]
    opsets = [helper.make_opsetid("", rng.choice([9, 11, 13, 17, 20])), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=opsets).SerializeToString()


def check(seed: int, count: int, *, probe: bool) -> None:
    rng = random.Random(seed)
    for index in range(count):
        model = odd(rng)
        with suppress(GradlintError):  # and nothing else
            engine.check(model, Options(probe=probe, seeds=1, lenient=index % 2 == 0))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", range(4))
def test_operators_with_odd_operands_are_read(seed):
    check(seed, 100, probe=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_operators_with_odd_operands_are_run():
    check(5, 60, probe=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("probe", [False, True])
def test_many_operators_with_odd_operands(probe):
    check(6, 2000, probe=probe)
