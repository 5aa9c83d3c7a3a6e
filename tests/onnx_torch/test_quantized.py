"""Quantized models: values as onnxruntime gives them, gradients straight through the rounding, and where they stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import gradlint
from gradlint.frontends.base import PartialRun
from gradlint.frontends.onnx.file import read_onnx
from gradlint.onnx_torch import OnnxModule, OnnxRunnable
from tests.models.onnxruntime_sessions import by_onnxruntime

RNG = np.random.default_rng(0)
SCALE, ZERO = np.float32(0.05), np.uint8(100)
PAIR = [("QuantizeLinear", ["x", "scale", "zero"], ["q"], {}), ("DequantizeLinear", ["q", "scale", "zero"], ["y"], {})]


def model(nodes, shape, constants, *, output=TensorProto.FLOAT, domain="", dtype=np.float32):
    """A model of (op, inputs, outputs, attributes) tuples from x to y; a node is named by its first output."""
    made = [
        helper.make_node(op, ins, outs, outs[0], domain=domain if op in OPTIMIZED else "", **attrs)
        for op, ins, outs, attrs in nodes
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        made, "g", [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


OPTIMIZED = {
    *(
        "QGemm",
        "Attention",
        "BiasGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "FusedMatMul",
        "Gelu",
        "MultiHeadAttention",
        "QLinearAdd",
    ),
    *("QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QuickGelu"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
}


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


QUANTIZED = {
    "sx": SCALE,
    "zx": ZERO,
    "sy": np.float32(0.1),
    "zy": np.uint8(90),
    "sw": np.float32(0.01),
    "zw": np.int8(3),
    "w": RNG.integers(-90, 90, (4, 3)).astype(np.int8),
    "bias": np.array([5, -70, 0, 90], np.int32),
}
OPERATORS = {  # operator: shape of x, other inputs, attributes
    "Attention": ((2, 3, 4), {"w": floats(4, 12), "b": floats(12)}, {"num_heads": 2}),
    "BiasGelu": ((2, 4), {"b": floats(4)}, {}),
    "FastGelu": ((2, 4), {"b": floats(4)}, {}),
    "FusedMatMul": ((3, 2), {"b": floats(4, 3)}, {"alpha": 0.5, "transA": 1, "transB": 1}),
    "Gelu": ((2, 4), {}, {}),
    "MultiHeadAttention": ((2, 3, 4), {"k": floats(2, 5, 4), "v": floats(2, 5, 4), "b": floats(12)}, {"num_heads": 2}),
    "QuickGelu": ((2, 4), {}, {}),
    "SkipLayerNormalization": ((2, 3, 4), {"s": floats(2, 3, 4), "g": floats(4), "h": floats(4), "b": floats(4)}, {}),
    "SkipSimplifiedLayerNormalization": ((2, 3, 4), {"s": floats(2, 3, 4), "g": floats(4)}, {}),
}


@pytest.mark.parametrize("op", OPERATORS)
def test_operators_of_onnxruntime_compute_what_it_computes(op):
    shape, held, attributes = OPERATORS[op]
    proto = model([(op, ["x", *held], ["y"], attributes)], shape, held, domain="com.microsoft")
    x = floats(*shape)
    np.testing.assert_allclose(OnnxModule(proto)(x)[0].detach(), by_onnxruntime(proto, {"x": x})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [None, [[1, 1, 0], [1, 0, 0]], [2, 1]])
def test_attention_leaves_out_masked_keys_and_looks_back_only_where_told(mask):
    held = {"w": floats(4, 12), "b": floats(12)} | ({} if mask is None else {"mask": np.array(mask, np.int32)})
    proto = model(
        [("Attention", ["x", *held], ["y"], {"num_heads": 2, "unidirectional": 1})], (2, 3, 4), held, domain="com.microsoft"
    )
    x = floats(2, 3, 4)
    np.testing.assert_allclose(OnnxModule(proto)(x)[0].detach(), by_onnxruntime(proto, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_an_embedding_with_its_norm_is_looked_up_as_onnxruntime_does():
    held = {
        "s": np.zeros((2, 3), np.int32),
        "w": floats(5, 4),
        "p": floats(6, 4),
        "t": floats(2, 4),
        "g": floats(4),
        "h": floats(4),
    }
    proto = model([("EmbedLayerNormalization", ["x", *held], ["y", "lengths"], {})], (2, 3), held, domain="com.microsoft",
                  dtype=np.int32)  # fmt: skip
    words = np.array([[0, 4, 2], [1, 1, 3]], np.int32)
    np.testing.assert_allclose(OnnxModule(proto)(words)[0].detach(), by_onnxruntime(proto, {"x": words})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "names", "attributes", "shape"),
    [
        ("QGemm", ["q", "sx", "zx", "w", "sw", "zw", "bias", "sy", "zy"], {"transB": 1}, (2, 3)),
        ("QLinearAdd", ["q", "sx", "zx", "q", "sx", "zx", "sy", "zy"], {}, (2, 3)),
        ("QLinearMul", ["q", "sx", "zx", "q", "sx", "zx", "sy", "zy"], {}, (2, 3)),
        ("QLinearSigmoid", ["q", "sx", "zx", "sy", "zy"], {}, (2, 3)),
        ("QLinearLeakyRelu", ["q", "sx", "zx", "sy", "zy"], {"alpha": 0.1}, (2, 3)),
        ("QLinearGlobalAveragePool", ["q", "sx", "zx", "sy", "zy"], {}, (1, 2, 3, 3)),
        ("QLinearConcat", ["sy", "zy", "q", "sx", "zx", "q", "sx", "zx"], {"axis": 1}, (2, 3)),
    ],
)
def test_operators_between_quantized_tensors_compute_and_differentiate(op, names, attributes, shape):
    nodes = [("QuantizeLinear", ["x", "sx", "zx"], ["q"], {}), (op, names, ["r"], attributes)]
    proto = model([*nodes, ("DequantizeLinear", ["r", "sy", "zy"], ["y"], {})], shape, QUANTIZED, domain="com.microsoft")
    x = floats(*shape)
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    (y,) = OnnxModule(proto)(leaf)
    np.testing.assert_allclose(y.detach(), by_onnxruntime(proto, {"x": x})[0], atol=0.1001)  # one step, where a half is rounded
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    assert gradient.abs().sum() > 0


def test_a_pair_passes_the_gradient_within_its_range_and_none_outside():
    x = torch.tensor([-7.0, -4.9, 0.013, 1.2, 7.7, 8.0], requires_grad=True)
    (y,) = OnnxModule(model(PAIR, (6,), {"scale": SCALE, "zero": ZERO}))(x)
    torch.testing.assert_close(y, torch.tensor([-5.0, -4.9, 0.0, 1.2, 7.7, 7.75]))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_operators_that_move_elements_may_stand_within_a_pair():
    nodes = [PAIR[0], ("Transpose", ["q"], ["t"], {}), ("DequantizeLinear", ["t", "scale", "zero"], ["y"], {})]
    x = torch.randn(2, 3, requires_grad=True)
    (y,) = OnnxModule(model(nodes, (2, 3), {"scale": SCALE, "zero": ZERO}))(x)
    (gradient,) = torch.autograd.grad(y, x, torch.arange(6.0).reshape(3, 2))
    assert torch.equal(gradient, torch.arange(6.0).reshape(3, 2).T)


def test_an_output_that_the_file_declares_quantized_holds_integers():
    proto = model([("QuantizeLinear", ["x", "scale", "zero"], ["y"], {})], (4,), {"scale": SCALE, "zero": ZERO}, output=2)
    (y,) = OnnxModule(proto)(torch.tensor([0.0, 0.05, 100.0, -100.0]))
    assert y.dtype == torch.uint8
    assert y.tolist() == [100, 101, 255, 0]


def dynamic(depth=1):
    """Linear layers as quantize_dynamic of onnxruntime writes them, with tanh between."""
    nodes, held, last = [], {}, "x"
    for k in range(depth):
        held |= {f"w{k}": RNG.integers(-127, 128, (8, 8)).astype(np.int8), f"s{k}": np.float32(0.004)}
        nodes += [
            ("DynamicQuantizeLinear", [last], [f"q{k}", f"qs{k}", f"qz{k}"], {}),
            ("MatMulInteger", [f"q{k}", f"w{k}", f"qz{k}"], [f"i{k}"], {}),
            ("Cast", [f"i{k}"], [f"f{k}"], {"to": 1}),
            ("Mul", [f"qs{k}", f"s{k}"], [f"ss{k}"], {}),
            ("Mul", [f"f{k}", f"ss{k}"], [f"m{k}"], {}),
            ("Tanh", [f"m{k}"], [f"t{k}" if k + 1 < depth else "y"], {}),
        ]
        last = f"t{k}"
    return model(nodes, (4, 8), held), held


def test_a_dynamically_quantized_layer_has_the_gradient_of_the_layer_that_it_stands_for():
    proto, held = dynamic()
    x = torch.randn(4, 8, requires_grad=True)
    (y,) = OnnxModule(proto)(x)
    np.testing.assert_allclose(y.detach(), by_onnxruntime(proto, {"x": x.detach().numpy()})[0], rtol=1e-5, atol=1e-6)
    weight = torch.from_numpy(held["w0"].astype(np.float32) * held["s0"])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (1 - y.detach() ** 2) @ weight.T)


def test_what_rounding_does_to_gradients_is_noted():
    quantized = model(PAIR, (6,), {"scale": SCALE, "zero": ZERO})
    assert any("straight through" in note for note in OnnxRunnable(read_onnx(quantized)).notes)
    assert OnnxRunnable(read_onnx(model([("Tanh", ["x"], ["y"], {})], (2, 3), {}))).notes == ()


def test_the_probe_stops_at_integers_whose_units_no_gradient_can_be_measured_in():
    subject = OnnxRunnable(read_onnx(dynamic(depth=2)[0]))
    with pytest.raises(PartialRun, match="before quantization") as stop:
        subject.forward([floats(4, 8)])
    assert (stop.value.node, stop.value.op) == ("q0", "DynamicQuantizeLinear")


def test_weights_of_integers_are_nothing_to_train():
    report = gradlint.check(dynamic(depth=2)[0])
    assert (report.verdict, report.score, report.findings) == ("nothing-to-train", None, ())
    assert "nothing here is trainable" in str(report)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_sums_of_integer_products_do_not_saturate(kind):
    """255 x 127 twice is more than 16 bits hold."""
    rng = np.random.default_rng(0)
    w = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (64, 16)).astype(kind)
    proto = model([("MatMulInteger", ["x", "w"], ["y"], {})], (8, 64), {"w": w}, dtype=np.uint8, output=TensorProto.INT32)
    x = rng.integers(200, 256, (8, 64)).astype(np.uint8)
    exact = x.astype(np.int32) @ w.astype(np.int32)
    np.testing.assert_array_equal(by_onnxruntime(proto, {"x": x})[0], exact)
    np.testing.assert_array_equal(OnnxModule(proto)(x)[0], exact)
