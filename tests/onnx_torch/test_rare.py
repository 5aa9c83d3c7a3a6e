"""Operators and forms that the node tests of the standard leave out: old opsets, regions of interest, inputs beyond the known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gradlint.frontends.base import PartialRun
from gradlint.onnx_torch import OnnxModule
from tests.models.onnxruntime_sessions import by_onnxruntime
from tests.models.versions import skip_before

RNG = np.random.default_rng(0)


def model(op, inputs, attributes, *, opset, outputs=("y",), domain=""):
    """A model of one operator, all inputs of which are graph inputs; a None is left out."""
    names = [f"x{k}" if x is not None else "" for k, x in enumerate(inputs)]
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in zip(names, inputs, strict=True)
        if name
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([helper.make_node(op, names, outputs, "n", domain=domain, **attributes)], "g", given, made)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def computed(proto, inputs):
    return [y.numpy() for y in OnnxModule(proto)(*(x for x in inputs if x is not None))]


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_upsample_of_opset_1_takes_scales_for_height_and_width():
    x = floats(1, 2, 2, 3)
    (y,) = computed(model("Upsample", [x], {"height_scale": 2.0, "width_scale": 3.0, "mode": "nearest"}, opset=1), [x])
    np.testing.assert_array_equal(y, x.repeat(2, 2).repeat(3, 3))


@pytest.mark.parametrize("is_test", [0, 1])
def test_batch_norm_before_opset_9_may_have_statistics_for_every_position(is_test):
    x, scale, bias, mean = floats(4, 2, 3), floats(2, 3), floats(2, 3), floats(2, 3)
    var = np.abs(floats(2, 3)) + 0.5
    outputs = ("y",) if is_test else ("y", "m", "v", "sm", "sv")
    attributes = {"spatial": 0, "is_test": is_test}
    y = computed(model("BatchNormalization", [x, scale, bias, mean, var], attributes, opset=6, outputs=outputs),
                 [x, scale, bias, mean, var])[0]  # fmt: skip
    center, spread = (mean, var) if is_test else (x.mean(0), x.var(0))
    np.testing.assert_allclose(y, (x - center) / np.sqrt(spread + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)


def test_statistics_of_batch_norm_that_are_computed_get_gradients():
    inputs = [floats(4, 2), floats(2), floats(2), floats(2), np.abs(floats(2)) + 0.5]
    leaves = [torch.from_numpy(x).requires_grad_() for x in inputs]
    (y,) = OnnxModule(model("BatchNormalization", inputs, {}, opset=15))(*leaves)
    x, scale, bias, mean, var = leaves
    torch.testing.assert_close(y, (x - mean) * torch.rsqrt(var + 1e-5) * scale + bias)
    gradients = torch.autograd.grad(y.square().sum(), leaves)
    assert all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("lengths", [None, [3, 1]])
def test_scan_of_opset_8_runs_each_sample_of_the_batch_for_its_length(lengths):
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["sum"]), helper.make_node("Identity", ["sum"], ["out"])], "body",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("s", "e")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("sum", "out")],
    )  # fmt: skip
    inputs = [None if lengths is None else np.array(lengths, np.int64), np.zeros((2, 2), np.float32), floats(2, 3, 2)]
    proto = model("Scan", inputs, {"body": body, "num_scan_inputs": 1}, opset=8, outputs=("final", "all"))
    final, every = computed(proto, inputs)
    expected = np.cumsum(inputs[2], 1)
    last = [2, 2] if lengths is None else [length - 1 for length in lengths]
    np.testing.assert_allclose(final, expected[[0, 1], last], rtol=1e-6)
    for b in range(2):
        np.testing.assert_allclose(every[b, : last[b] + 1], expected[b, : last[b] + 1], rtol=1e-6)
        assert not every[b, last[b] + 1 :].any()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_max_pooling_of_regions_is_that_of_onnxruntime(scale):
    rois = np.array([[0, 0, 0, 3, 4], [1, 2, 1, 9, 5], [0, 4, 4, 4, 4]], np.float32)
    inputs = [floats(2, 3, 6, 8), rois]
    proto = model("MaxRoiPool", inputs, {"pooled_shape": [2, 3], "spatial_scale": scale}, opset=20)
    np.testing.assert_array_equal(computed(proto, inputs)[0], by_onnxruntime(proto, {"x0": inputs[0], "x1": inputs[1]})[0])


def test_an_input_that_the_evaluator_does_not_know_stops_the_run_with_its_name():
    inputs = [floats(2, 3, 4), floats(4, 12), floats(12), None, None, None, np.asarray(3, np.int32)]
    with pytest.raises(PartialRun, match="x6"):
        computed(model("Attention", inputs, {"num_heads": 2}, opset=20, domain="com.microsoft"), inputs)


@pytest.mark.parametrize(
    "code",
    [
        TensorProto.INT4,
        pytest.param(getattr(TensorProto, "FLOAT4E2M1", None), marks=skip_before("onnx", "1.18", "it lacks floats of 4 bits")),
    ],
)
def test_a_cast_to_what_torch_has_no_dtype_for_stops_the_run_there(code):
    x = floats(3)
    with pytest.raises(PartialRun, match="no dtype") as stop:
        computed(model("Cast", [x], {"to": code}, opset=23), [x])
    assert stop.value.node == "n"


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"])
def test_weights_of_eight_bit_floats_are_read_as_onnx_reads_them(kind):
    values = np.array([0.5, -3.0, 448.0, 0.0078125], np.float32)
    tensor = helper.make_tensor("w", TensorProto.DataType.Value(kind), [4], values)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("Mul", ["x", "c"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, [4])], [helper.make_tensor_value_info("y", 1, [4])], [tensor],
    )  # fmt: skip
    (y,) = OnnxModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))(torch.ones(4))
    np.testing.assert_array_equal(y.detach(), numpy_helper.to_array(tensor).astype(np.float32))
