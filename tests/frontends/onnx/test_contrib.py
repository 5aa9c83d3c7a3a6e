"""Operators of com.microsoft in the graph, against the schemas and the results of onnxruntime."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gradlint
from gradlint.frontends.onnx.contrib import MICROSOFT, SLOTS, SPECIAL
from gradlint.frontends.onnx.file import read_onnx
from gradlint.graph import Ref
from gradlint.ops import Kind, by_onnx, operator
from gradlint.rule import Subject
from gradlint.theory.reading.steps import main_weight
from tests.models.onnxruntime_sessions import by_onnxruntime
from tests.models.versions import skip_before

onnxruntime = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
NAMES = {  # what onnxruntime calls the input of each role
    "weight": {"W", "B", "word_embedding"},
    "bias": {"B", "bias", "beta"},
    "scale": {"gamma", "scale"},
    "in_proj": {"weight", "weights"},
    "in_proj_bias": {"bias"},
    "q_proj": {"q_weight"},
    "kv_proj": {"kv_weight"},
    "global_proj": {"global_weight"},
    "global_proj_bias": {"global_bias"},
}

FEW_BITS = skip_before("onnxruntime", "1.24", "it lacks weights of 2 and 8 bits and most tables in blocks")
NEWER = {
    "GatedRMSNorm": skip_before("onnxruntime", "1.32", "it may lack the operator"),
    "GatherBlockQuantized": FEW_BITS,
}


@cache
def schemas():
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return {schema.name: schema for schema in get_all_operator_schema() if schema.domain == MICROSOFT}


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def model(op, inputs, constants, *, shape=(2, 3, 4), kind=TensorProto.FLOAT, **attributes):
    """One node "n" on the input "x"."""
    node = helper.make_node(op, inputs, ["y"], "n", domain=MICROSOFT, **attributes)
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(value, key) for key, value in constants.items()
    ]
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(helper.make_graph([node], "g", [x], [y], tensors), opset_imports=opsets, ir_version=8)


def node_of(*args, **options):
    return read_onnx(model(*args, **options)).graph["n"]


@pytest.mark.parametrize("op", [pytest.param(op, marks=NEWER.get(op, ())) for op in sorted(SLOTS.keys() | SPECIAL.keys())])
def test_every_operator_exists_and_its_weights_stand_where_its_schema_has_them(op):
    inputs = [formal.name for formal in schemas()[op].inputs]
    for slot, role, _ in SLOTS.get(op, ()):
        assert inputs[slot] in NAMES[role]
    assert by_onnx(op).kind is not Kind.UNKNOWN


def test_an_operator_whose_result_is_always_quantized_passes_no_gradient():
    integers = {"tensor(int8)", "tensor(uint8)"}
    quantized = [name for name, schema in schemas().items() if name[:7] == "QLinear" and schema.outputs[0].types <= integers]
    assert len(quantized) >= 10
    assert [name for name in quantized if not by_onnx(name).cuts] == []


def test_the_operators_that_are_not_understood_are_few():
    """What onnxruntime has beyond the vocabulary: search loops, experts, builders of other projects, state-space layers."""
    unknown = {name for name in schemas() if by_onnx(name).kind is Kind.UNKNOWN}
    assert len(unknown) / len(schemas()) < 0.4
    assert {"MoE", "BeamSearch"} <= unknown


X, W = (5, 4), floats(4, 6)


@pytest.mark.parametrize(
    ("op", "inputs", "constants", "attributes", "found", "roles"),
    [
        ("FusedMatMul", "x w", {"w": floats(4, 6)}, {}, "linear", {"weight": (6, 4)}),
        ("FusedMatMul", "x w", {"w": floats(6, 4)}, {"transB": 1}, "linear", {"weight": (6, 4)}),
        ("FusedMatMul", "w x", {"w": floats(6, 4)}, {}, "linear", {"weight": (6, 4)}),
        ("FusedMatMul", "w x", {"w": floats(4, 6)}, {"transA": 1}, "linear", {"weight": (6, 4)}),
        ("FusedMatMul", "x w", {"w": floats(3, 4, 6)}, {}, "matmul", {}),
        ("FusedMatMul", "x w", {"w": floats(1, 4, 6)}, {"transBatchB": 1}, "matmul", {}),
        ("FusedMatMul", "x x", {}, {"transB": 1}, "matmul", {}),
        ("TransposeMatMul", "x w", {"w": floats(4, 6)}, {}, "linear", {"weight": (6, 4)}),
        ("FusedMatMulActivation", "x w", {"w": floats(4, 6)}, {"activation": "Relu"}, "linear", {"fused_weight": (6, 4)}),
        ("FusedGemm", "x w b", {"w": floats(6, 4), "b": floats(6)}, {"transB": 1}, "linear", {"weight": (6, 4), "bias": (6, 1)}),
        ("FusedGemm", "x w", {"w": floats(4, 6)}, {"activation": "Tanh"}, "linear", {"fused_weight": (6, 4)}),
        ("GemmFastGelu", "x w", {"w": floats(4, 6)}, {}, "linear", {"fused_weight": (6, 4)}),
        ("FusedConv", "x w b", {"w": floats(6, 3, 3), "b": floats(6)}, {}, "conv", {"weight": (6, 9), "bias": (6, 1)}),
        ("FusedConv", "x w", {"w": floats(6, 3, 3)}, {"activation": "Relu"}, "conv", {"fused_weight": (6, 9)}),
        ("NhwcConv", "x w", {"w": floats(6, 3, 3)}, {}, "conv", {"weight": (6, 9)}),
        ("Attention", "x w b", {"w": floats(4, 12), "b": floats(12)}, {"num_heads": 2}, "multi_head_attention",
         {"in_proj": (12, 4), "in_proj_bias": (12, 1)}),
        ("MultiHeadAttention", "x x x", {}, {"num_heads": 2}, "multi_head_attention", {}),
        ("SkipLayerNormalization", "x x g b", {"g": floats(4), "b": floats(4)}, {}, "layer_norm",
         {"scale": (4, 1), "bias": (4, 1)}),
        ("SkipSimplifiedLayerNormalization", "x x g", {"g": floats(4)}, {}, "rms_norm", {"scale": (4, 1)}),
        ("GroupNorm", "x g b", {"g": floats(4), "b": floats(4)}, {"groups": 2, "activation": 0}, "group_norm",
         {"scale": (4, 1), "bias": (4, 1)}),
        ("BiasGelu", "x b", {"b": floats(4)}, {}, "gelu", {"bias": (4, 1)}),
        ("BiasSplitGelu", "x b", {"b": floats(4)}, {}, "glu", {"bias": (4, 1)}),
        ("BiasAdd", "x b x", {"b": floats(4)}, {}, "add", {"bias": (4, 1)}),
        ("BiasDropout", "x b x", {"b": floats(4)}, {}, "add", {"bias": (4, 1)}),
        ("BiasDropout", "x b", {"b": floats(4)}, {}, "dropout", {"bias": (4, 1)}),
        ("QuickGelu", "x", {}, {}, "gelu", {}),
        ("QuickGelu", "x", {}, {"alpha": 1.0}, "silu", {}),
        ("MatMulNBits", "x q s", {"q": np.zeros((6, 1, 8), np.uint8), "s": floats(5)}, {"N": 6, "K": 4, "block_size": 16},
         "linear", {}),
    ],
)  # fmt: skip
def test_weights_are_found_by_role_with_fan_out_and_fan_in(op, inputs, constants, attributes, found, roles):  # noqa: PLR0917
    node = node_of(op, inputs.split(), constants, **attributes)
    assert node.op == found
    assert {role: weight.matrix().shape for role, weight in node.weights.items()} == roles
    assert [ref for ref in node.inputs if ref] == [Ref("input:x")] * inputs.split().count("x")


def test_an_operator_of_another_domain_with_the_same_name_keeps_its_own_meaning():
    proto = model("Attention", ["x", "w", "w"], {"w": floats(2, 3, 4)}, kv_num_heads=1, q_num_heads=1)
    proto.graph.node[0].domain = ""
    proto.opset_import[0].version = 23
    assert read_onnx(proto).graph["n"].op == "attention"


def test_the_factor_of_a_product_belongs_to_its_weight():
    (weight,) = node_of("FusedMatMul", ["x", "w"], {"w": W}, alpha=0.5).weights.values()
    np.testing.assert_array_equal(weight.array(), 0.5 * W)


@pytest.mark.parametrize("op", sorted(SPECIAL))
def test_attributes_of_a_wrong_type_and_inputs_that_are_missing_do_no_harm(op):
    names = ("N", "K", "alpha", "activation", "axis", "bits", "block_size", "gather_axis", "quantize_axis", "transA", "transB")
    for value in ("text", [1, 2], 0.5):
        assert node_of(op, ["x", "", "w"], {"w": W}, **dict.fromkeys(names, value)).op != "unknown"
    assert node_of(op, ["w"], {"w": W}).op != "unknown"


def test_theory_claims_nothing_of_a_layer_with_an_activation_inside():
    """The gain that a rectifier needs is too large without one."""
    weights = {f"w{k}": floats(64, 64) * np.float32(np.sqrt(2 / 64)) for k in range(30)}
    names = ["x", *(f"h{k}" for k in range(29)), "y"]
    nodes = [
        helper.make_node("FusedGemm", [names[k], f"w{k}"], [names[k + 1]], domain=MICROSOFT, activation="Relu") for k in range(30)
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 64]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(value, key) for key, value in weights.items()])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    proto = helper.make_model(graph, opset_imports=opsets)
    subject = Subject(read_onnx(proto).graph)
    assert subject.structure.depth == 30
    assert not any(main_weight(node) for node in subject.graph)
    report = gradlint.check(proto, probe=False)
    assert [str(finding) for finding in report.findings if finding.severity is not gradlint.Severity.NOTE] == []
    assert report.verdict == "unknown"


@pytest.mark.parametrize(
    ("bits", "block", "columns", "zeros"),
    [
        *(
            (4, block, columns, zeros)
            for block, columns in ((16, 32), (16, 48), (32, 40))
            for zeros in ("none", "packed", "floats")
        ),
        *(pytest.param(bits, 32, 64, zeros, marks=FEW_BITS) for bits in (2, 8) for zeros in ("none", "packed")),
    ],
)
def test_a_weight_in_blocks_of_a_few_bits_is_the_matrix_that_onnxruntime_multiplies_by(bits, block, columns, zeros):
    rows, blocks = 6, -(-columns // block)
    held = {
        "q": RNG.integers(0, 256, (rows, blocks, block * bits // 8)).astype(np.uint8),
        "s": RNG.uniform(0.5, 1.5, rows * blocks).astype(np.float32),
    }
    if zeros == "packed":
        held["z"] = RNG.integers(0, 256, rows * -(-blocks * bits // 8)).astype(np.uint8)
    elif zeros == "floats":
        held["z"] = RNG.integers(0, 2**bits, (rows, blocks)).astype(np.float32)
    proto = model("MatMulNBits", ["x", *held], held, shape=(columns, columns), N=rows, K=columns, bits=bits, block_size=block)
    node = read_onnx(proto).graph["n"]
    assert node.op == "linear"
    weight = node.weights["weight"]
    assert (weight.fan_out, weight.fan_in, weight.trainable) == (rows, columns, False)
    product = by_onnxruntime(proto, {"x": np.eye(columns, dtype=np.float32)})[0]
    np.testing.assert_allclose(weight.array(), product.T, rtol=1e-4, atol=1e-4)


@FEW_BITS
@pytest.mark.parametrize("dtype", ["uint8", "packed", "uint4", "int4"])
def test_a_table_in_blocks_is_an_embedding_with_the_rows_that_onnxruntime_looks_up(dtype):
    rows, columns, block = 7, 32, 16
    bits = 8 if dtype == "uint8" else 4
    if dtype in {"uint8", "packed"}:
        codes = RNG.integers(0, 256, (rows, columns * bits // 8)).astype(np.uint8)
    else:
        kind = TensorProto.INT4 if dtype == "int4" else TensorProto.UINT4
        codes = helper.make_tensor("q", kind, (rows, columns), RNG.integers(0, 7, rows * columns))
    held = {"q": codes, "s": RNG.uniform(0.5, 1.5, (rows, columns // block)).astype(np.float32)}
    proto = model(
        "GatherBlockQuantized", ["q", "x", "s"], held, shape=(rows,), kind=TensorProto.INT64,
        gather_axis=0, quantize_axis=1, block_size=block, bits=bits,
    )  # fmt: skip
    file = read_onnx(proto)
    node = file.graph["n"]
    assert (node.op, node.inputs[:2]) == ("embedding", (None, Ref("input:x")))
    weight = node.weights["weight"]
    np.testing.assert_allclose(weight.array(), by_onnxruntime(proto, {"x": np.arange(rows)})[0], rtol=1e-6)
    assert file.inputs[0].text == f"int64[{rows}]<{rows}"


@pytest.mark.parametrize(
    ("op", "held", "attributes"),
    [
        ("MatMulNBits", {"q": np.zeros((6, 2, 8), np.uint8), "s": floats(11)}, {"N": 6, "K": 32, "block_size": 16}),
        ("MatMulNBits", {"q": np.zeros((6, 2, 7), np.uint8), "s": floats(12)}, {"N": 6, "K": 32, "block_size": 16}),
        ("MatMulNBits", {"q": np.zeros((6, 2, 8), np.uint8), "s": floats(12)}, {"N": -6, "K": 32, "block_size": 16}),
        ("MatMulNBits", {"q": np.zeros((6, 2, 8), np.uint8), "s": floats(12)}, {"N": 6, "K": 32}),
        ("MatMulNBits", {"q": np.zeros((6, 2, 8), np.uint8), "s": floats(12)}, {"N": 6, "K": 32, "block_size": 16, "bits": 3}),
        ("MatMulNBits", {"q": np.zeros((1, 1, 8), np.uint8), "s": floats(1)}, {"N": 1 << 40, "K": 1 << 40, "block_size": 16}),
        ("GatherBlockQuantized", {"q": np.zeros((6, 2, 7), np.uint8), "s": floats(12)}, {}),
    ],
)
def test_a_quantized_weight_whose_sizes_do_not_fit_is_left_out(op, held, attributes):
    node = node_of(op, ["x", "q", "s"] if op == "MatMulNBits" else ["q", "x", "s"], held, **attributes)
    assert dict(node.weights) == {}
    assert operator(node.op).kind is not Kind.UNKNOWN


def test_a_fused_embedding_has_its_tables_and_its_words_are_bounded_by_the_first():
    held = {
        "s": np.zeros((2, 3), np.int32),
        "w": floats(50, 4),
        "p": floats(6, 4),
        "t": floats(2, 4),
        "g": floats(4),
        "h": floats(4),
    }
    proto = model("EmbedLayerNormalization", ["x", *held], held, shape=(2, 3), kind=TensorProto.INT32)
    file = read_onnx(proto)
    node = file.graph["n"]
    assert (node.op, node.inputs[:2]) == ("embedding", (None, Ref("input:x")))
    assert {role: weight.shape for role, weight in node.weights.items()} == {
        "weight": (50, 4),
        "position": (6, 4),
        "segment": (2, 4),
        "scale": (4,),
        "bias": (4,),
    }
    assert file.inputs[0].text == "int32[2,3]<50"
