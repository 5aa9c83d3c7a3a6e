"""The graph of an ONNX model: roles, subgraphs, constants and inferred inputs, against the ONNX schemas."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gradlint.errors import InputError
from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.onnx.folded import EXPORT_NOTE, FROZEN_NOTE, MAYBE_FOLDED, UNKNOWN_NOTE
from gradlint.frontends.onnx.names import assign_ids
from gradlint.graph import Ref

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def build(nodes, inputs, outputs, initializers=(), opset=18):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(initializers).items()]
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    outputs = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "g", values, outputs, tensors)
    return read_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def single(op_type, inputs, initializers, *, shape=(2, 3, 4), opset=18, **attributes):
    """The node that one operator becomes; its first activation is "x"."""
    node = helper.make_node(op_type, inputs, ["y"], name="n", **attributes)
    return build([node], [("x", F32, shape)], ["y"], initializers, opset).graph["n"]


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("op_type", "inputs", "shapes", "attributes", "op", "roles"),
    [
        ("Gemm", "x w b", {"w": (5, 4), "b": (5,)}, {"transB": 1}, "linear", {"weight": (5, 4), "bias": (5, 1)}),
        ("Gemm", "x w", {"w": (4, 5)}, {}, "linear", {"weight": (5, 4)}),
        ("Gemm", "w x", {"w": (5, 4)}, {}, "linear", {"weight": (5, 4)}),
        ("Gemm", "w x", {"w": (4, 5)}, {"transA": 1}, "linear", {"weight": (5, 4)}),
        ("Gemm", "x x", {}, {"transB": 1}, "matmul", {}),
        ("MatMul", "x w", {"w": (4, 5)}, {}, "linear", {"weight": (5, 4)}),
        ("MatMul", "w x", {"w": (5, 4)}, {}, "linear", {"weight": (5, 4)}),
        ("MatMul", "x w", {"w": (4,)}, {}, "linear", {"weight": (1, 4)}),
        ("MatMul", "x w", {"w": (1, 4, 5)}, {}, "linear", {"weight": (5, 4)}),
        ("MatMul", "x w", {"w": (4, 4, 5)}, {}, "matmul", {"weight": (5, 16)}),
        ("MatMul", "x x", {}, {}, "matmul", {}),
        ("Einsum", "x w", {"w": (4, 2, 3)}, {"equation": "bd,dhk->bhk"}, "linear", {"weight": (6, 4)}),
        ("Einsum", "x w", {"w": (3, 4)}, {"equation": "bd,kd->bk"}, "linear", {"weight": (3, 4)}),
        ("Einsum", "x w", {"w": (4,)}, {"equation": "bd,d->bd"}, "matmul", {}),
        ("Conv", "x w b", {"w": (6, 2, 3), "b": (6,)}, {"group": 2}, "conv", {"weight": (6, 6), "bias": (6, 1)}),
        ("ConvTranspose", "x w", {"w": (4, 6, 3)}, {}, "conv_transpose", {"weight": (6, 12)}),
        ("PRelu", "x w", {"w": (4, 1)}, {}, "prelu", {"slope": (4, 1)}),
        ("LayerNormalization", "x w b", {"w": (4,), "b": (4,)}, {}, "layer_norm", {"scale": (4, 1), "bias": (4, 1)}),
        ("InstanceNormalization", "x w b", {"w": (4,), "b": (4,)}, {}, "instance_norm", {"scale": (4, 1), "bias": (4, 1)}),
        ("Add", "x w", {"w": (4,)}, {}, "add", {"bias": (4, 1)}),
        ("Sub", "w x", {"w": (4,)}, {}, "sub", {"bias": (4, 1)}),
        ("Mul", "w x", {"w": (4,)}, {}, "mul", {"scale": (4, 1)}),
        ("Div", "x w", {"w": (4,)}, {}, "div", {"scale": (4, 1)}),
        ("Pow", "x w", {"w": (4,)}, {}, "pow", {}),
    ],
)
def test_weights_are_found_by_role_with_fan_out_and_fan_in(op_type, inputs, shapes, attributes, op, roles):  # noqa: PLR0917
    initializers = {name: ones(*shape) for name, shape in shapes.items()}
    node = single(op_type, inputs.split(), initializers, shape=None, **attributes)
    assert node.op == op
    assert {role: weight.matrix().shape for role, weight in node.weights.items()} == roles
    assert node.inputs == tuple(Ref("input:x") if name == "x" else None for name in inputs.split())


def test_a_table_indexed_by_an_input_is_an_embedding_and_any_other_gather_a_slice():
    ids = ("ids", I64, [2, 5])
    table = build([helper.make_node("Gather", ["w", "ids"], ["y"], name="n")], [ids], ["y"], {"w": ones(9, 4)}).graph["n"]
    assert (table.op, table.inputs, table.weights["weight"].shape) == ("embedding", (None, Ref("input:ids")), (9, 4))
    integers = build([helper.make_node("Gather", ["w", "ids"], ["y"], name="n")], [ids], ["y"], {"w": np.ones((9, 4), np.int64)})
    assert (integers.graph["n"].op, dict(integers.graph["n"].weights)) == ("slice", {})
    assert single("Gather", ["x", "i"], {"i": np.array(1)}).op == "slice"


@pytest.mark.parametrize(("bounds", "op"), [((0, 6), "relu6"), ((-1, 1), "hardtanh"), ((-2, 5), "clamp")])
def test_clip_is_the_activation_that_its_bounds_make_it(bounds, op):
    low, high = (np.float32(bound) for bound in bounds)
    assert single("Clip", ["x", "low", "high"], {"low": low, "high": high}).op == op
    assert single("Clip", ["x"], {}, opset=6, min=float(low), max=float(high)).op == op


def test_attributes_are_plain_and_have_the_defaults_of_the_schema():
    assert single("LeakyRelu", ["x"], {}).attrs["alpha"] == pytest.approx(0.01)
    assert single("Softmax", ["x"], {}).attrs["axis"] == -1
    assert single("Softmax", ["x"], {}, opset=11).attrs["axis"] == 1
    attrs = single("Conv", ["x", "w"], {"w": ones(6, 3, 2)}, strides=[2], kernel_shape=[2]).attrs
    assert (attrs["group"], attrs["strides"], attrs["kernel_shape"]) == (1, (2,), (2,))
    assert single("ReduceMean", ["x", "axes"], {"axes": np.array([1, 2])}).attrs["axes"] == (1, 2)


@pytest.mark.parametrize(("attributes", "outputs", "opset", "mode"), [
    ({"training_mode": 1}, 3, 15, "train"), ({}, 1, 15, "eval"), ({}, 5, 9, "train"), ({}, 1, 9, "eval"),
])  # fmt: skip
def test_a_batch_norm_in_training_mode_makes_a_training_graph(attributes, outputs, opset, mode):
    names = ["s", "b", "m", "v"]
    node = helper.make_node("BatchNormalization", ["x", *names], [f"y{i}" for i in range(outputs)], **attributes)
    file = build([node], [("x", F32, [2, 4])], ["y0"], {name: ones(4) for name in names}, opset)
    assert (file.mode, file.graph.mode) == (mode, mode)
    assert (FROZEN_NOTE in file.notes) == (mode == "eval")


def test_dropout_has_p_and_is_training_only_when_told_so():
    values = {"p": np.float32(0.3), "t": np.array(True)}
    assert single("Dropout", ["x", "p", "t"], values).attrs | {"p": 0.3, "training": True} == pytest.approx(
        single("Dropout", ["x", "p", "t"], values).attrs
    )
    node = single("Dropout", ["x"], {}, opset=9, ratio=0.25)
    assert (node.attrs["p"], node.attrs["training"]) == (0.25, False)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_unknown_provenance_is_noted_when_it_has_the_bias_that_folding_makes(bias):
    values = {"w": ones(4, 3, 3), "b": ones(4)} if bias else {"w": ones(4, 3, 3)}
    file = build([helper.make_node("Conv", ["x", *values], ["y"], name="n")], [("x", F32, [1, 3, 9])], ["y"], values)
    assert file.notes == ((UNKNOWN_NOTE, EXPORT_NOTE) if bias else ())
    assert (MAYBE_FOLDED in file.graph["n"].notes) is bias


def test_a_weight_seen_through_moves_keeps_its_name_and_has_the_moved_values():
    weight = np.random.default_rng(0).standard_normal((3, 700, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Identity", ["w"], ["a"]),
        helper.make_node("Slice", ["a", "one", "two", "zero"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="n"),
    ]
    vectors = {"one": [1], "two": [2], "zero": [0], "shape": [700, 4]}
    initializers = {"w": weight, **{name: np.array(value) for name, value in vectors.items()}}
    graph = build(nodes, [("x", F32, [2, 4])], ["y"], initializers).graph
    found = graph["n"].weights["weight"]
    assert [node.id for node in graph] == ["input:x", "n"]
    assert (found.name, found.out_axis) == ("w", 1)
    assert np.array_equal(found.array(), weight[1].T)


def test_a_dequantized_weight_is_a_weight():
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"], name="n")]
    quantized = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    weight = build(nodes, [("x", F32, [2, 4])], ["y"], {"q": quantized, "s": np.float32(0.5)}).graph["n"].weights["weight"]
    assert np.array_equal(weight.array(), quantized * np.float32(0.5))


def test_random_constants_stay_in_the_graph():
    nodes = [helper.make_node("RandomNormal", [], ["r"], shape=[4], name="r"), helper.make_node("Add", ["x", "r"], ["y"])]
    graph = build(nodes, [("x", F32, [2, 4])], ["y"]).graph
    assert (graph["r"].op, graph["r"].inputs) == ("constant", ())
    assert graph["Add:y"].inputs == (Ref("input:x"), Ref("r"))


def test_an_input_with_a_default_is_a_constant():
    file = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", F32, [2, 4]), ("w", F32, [4, 4])], ["y"], {"w": ones(4, 4)}
    )
    assert [spec.name for spec in file.inputs] == ["x"]
    assert file.graph["MatMul:y"].op == "linear"


def branch(name, factor):
    """A branch that scales the outer tensor "x" by a weight of its own, called "w" in both branches."""
    output = helper.make_tensor_value_info("out", F32, None)
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Mul", ["r", "w"], ["out"], name="scale")]
    return helper.make_graph(nodes, name, [], [output], [numpy_helper.from_array(ones(4) * factor, "w")])


def test_both_branches_of_an_if_come_before_it_and_read_the_outer_graph():
    condition = helper.make_node("If", ["c"], ["y"], name="choose", else_branch=branch("e", 3), then_branch=branch("t", 2))
    file = build([condition], [("c", TensorProto.BOOL, []), ("x", F32, [2, 4])], ["y"])
    then, other = "choose/then_branch/", "choose/else_branch/"
    ids = ["input:c", "input:x", f"{then}Relu:r", f"{then}scale", f"{other}Relu:r", f"{other}scale", "choose"]
    assert [node.id for node in file.graph] == ids
    assert file.graph["choose"].op == "control"
    assert file.graph["choose"].inputs == (Ref("input:c"), Ref(f"{then}scale"), Ref(f"{other}scale"))
    assert file.graph[f"{other}Relu:r"].inputs == (Ref("input:x"),)
    assert sorted(float(weight.array()[0]) for weight in file.graph.weights.values()) == [2.0, 3.0]


def test_a_loop_is_one_node_that_reads_what_its_body_captures():
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["state", "outer"], ["next"])],
        "body",
        [onnx.ValueInfoProto(name=name) for name in ("i", "go", "state")],
        [onnx.ValueInfoProto(name=name) for name in ("on", "next")],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["outer"], name="relu"),
        helper.make_node("Loop", ["n", "", "x"], ["y"], body=body, name="loop"),
    ]
    graph = build(nodes, [("x", F32, [2, 4])], ["y"], {"n": np.array(3)}).graph
    assert graph["loop"].op == "control"
    assert graph["loop"].inputs == (None, None, Ref("input:x"), Ref("relu"))


def test_an_unknown_operator_is_named_and_kept():
    node = helper.make_node("Relu", ["x"], ["y"], domain="my.company", name="n")
    graph = build([node], [("x", F32, [2])], ["y"]).graph
    assert (graph["n"].op, graph["n"].attrs["name"]) == ("unknown", "my.company::Relu")


def test_shapes_and_dtypes_are_those_of_shape_inference_with_none_for_symbols():
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16, name="cast")]
    graph = build(nodes, [("x", F32, ["batch", 4])], ["h"]).graph
    assert (graph["cast"].shape, graph["cast"].dtype) == ((None, 4), "bfloat16")
    assert (graph["input:x"].shape, graph["input:x"].dtype) == ((None, 4), "float32")


@given(st.lists(st.tuples(st.sampled_from(["", "a", "a#2", "b", "Relu:a"]), st.sampled_from(["a", "b", "a#2", ""])), max_size=12))
def test_ids_are_different_and_a_lone_name_is_kept(pairs):
    nodes = [helper.make_node("Relu", ["x"], [output], name=name) for name, output in pairs]
    ids = assign_ids(helper.make_graph(nodes, "g", [], []), "scope/")
    assert len(set(ids)) == len(ids) == len(pairs)
    names = [name for name, _ in pairs]
    for node_id, (name, _) in zip(ids, pairs, strict=True):
        assert node_id.startswith("scope/")
        if name and names.count(name) == 1 and name != "Relu:a":
            assert node_id == "scope/" + name


LINEAR = ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": ones(12, 3)})
CONV = ([helper.make_node("Conv", ["x", "w"], ["y"], group=2)], {"w": ones(4, 5, 3, 3)})
WAVE = ([helper.make_node("Unsqueeze", ["x", "axes"], ["u"]), helper.make_node("Conv", ["u", "w"], ["y"])],
        {"axes": np.array([1]), "w": ones(4, 1, 256)})  # fmt: skip
RELU = ([helper.make_node("Relu", ["x"], ["y"])], {})
TABLE = ([helper.make_node("Cast", ["x"], ["i"], to=I64), helper.make_node("Gather", ["w", "i"], ["y"])], {"w": ones(77, 4)})
ONE_HOT = ([helper.make_node("OneHot", ["x", "depth", "values"], ["y"])], {"depth": np.array(9), "values": np.array([0.0, 1.0])})
NEG = ([helper.make_node("Neg", ["x"], ["y"])], {})


@pytest.mark.parametrize(
    ("model", "dtype", "shape", "text"),
    [
        (RELU, F32, ["batch", 3, "height", "width"], "float32[8,3,64,64]"),
        (RELU, F32, [1, 3, 32, None], "float32[1,3,32,64]"),
        (CONV, F32, [None, None, None, None], "float32[6,10,64,64]"),  # as many as a batch may hold
        (LINEAR, F32, ["n", None], "float32[8,12]"),
        (LINEAR, F32, ["n", "seq_len", "d"], "float32[8,16,12]"),
        (WAVE, F32, [None, None], "float32[8,512]"),
        (RELU, F32, [], "float32[]"),
        (RELU, TensorProto.FLOAT16, [2, 2], "float16[2,2]"),
        (TABLE, TensorProto.INT32, ["batch", "sequence"], "int32[8,16]<77"),
        (TABLE, TensorProto.INT8, [4], "int8[4]<77"),
        (ONE_HOT, I64, [4], "int64[4]<9"),
        (NEG, I64, [None, 4], "int64[8,4]<2"),
    ],
)
def test_open_dimensions_and_bounds_are_inferred(model, dtype, shape, text):
    nodes, initializers = model
    (spec,) = build(nodes, [("x", dtype, shape)], ["y"], initializers).inputs
    assert spec.text == text
    assert not spec.given


def test_recurrent_states_are_zero_and_a_named_dimension_has_one_size():
    weights = {"w": ones(1, 16, 6), "r": ones(1, 16, 4)}
    lstm = helper.make_node("LSTM", ["x", "w", "r", "", "", "first", "second"], ["y"], hidden_size=4)
    inputs = [("x", F32, ["time", "n", 6]), ("first", F32, [1, "n", 4]), ("second", F32, [1, None, 4])]
    x, first, second = build([lstm], inputs, ["y"], weights).inputs
    assert [spec.shape for spec in (x, first, second)] == [(16, 8, 6), (1, 8, 4), (1, 8, 4)]
    assert x.value is None
    assert not first.value.any()
    assert not second.value.any()


def test_a_sampling_rate_is_sixteen_kilohertz():
    (spec,) = build([helper.make_node("Neg", ["sr"], ["y"])], [("sr", I64, [])], ["y"]).inputs
    assert (spec.shape, int(spec.value)) == ((), 16000)


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        (F32, None, r"input 'x' has an unknown number of dimensions\n.*--input x=float32\[1,3,64,64\]"),
        (I64, None, r"--input x=int64\[1,16\]<1000"),
        (TensorProto.FLOAT8E4M3FN, [1], "input 'x' holds float8e4m3fn"),
        (F32, [1 << 20, 1 << 20], "too large"),
    ],
)
def test_an_input_that_cannot_be_inferred_is_named_with_what_to_type(dtype, shape, message):
    file = build([helper.make_node("Identity", ["x"], ["y"])], [("x", dtype, shape)], ["y"])
    with pytest.raises(InputError, match=message):
        _ = file.inputs
