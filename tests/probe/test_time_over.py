"""A probe whose time is over takes nothing that it did not look at twice for a fault."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gradlint import engine
from gradlint.options import Limits, Options


def silenced(width=24):
    """Two layers, one sample at a time; the first one passes where the first feature is above 0.5, which seed 0 does not draw."""
    first = np.zeros((width, width), np.float32)
    first[0] = 1.0
    held = [numpy_helper.from_array(first, "w0"), numpy_helper.from_array(np.full(width, -0.5, np.float32), "b0")]
    drawn = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    held.append(numpy_helper.from_array(drawn * np.float32((2.0 / width) ** 0.5), "w1"))
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_that_one_sample_silences_is_not_called_dead_when_the_time_is_over(seed):
    report = engine.check(silenced(), Options(seed=seed, limits=Limits(seconds=1e-3)))
    assert report.verdict not in {"untrainable", "vanishes"}
    assert not any(finding.severity == "error" for finding in report.findings)
    assert any("--time-limit" in note for note in report.notes)


def test_with_time_left_the_other_samples_are_looked_at():
    report = engine.check(silenced(), Options())
    assert any("samples silence" in note for note in report.notes)
    assert not any("--time-limit" in note for note in report.notes)
