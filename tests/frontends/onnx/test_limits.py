"""What a file may ask for, and weights in unusual places: sparse, in loops, not raw, in every dtype."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from gradlint.errors import TargetError
from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.onnx.limits import Limits
from gradlint.frontends.onnx.ranks import largest_rank
from gradlint.frontends.onnx.skeleton import load_skeleton

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def info(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, values=(), *, opset=18, functions=()):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(values).items()]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions)


def linear(tensor):
    """x times a weight that is not raw, through a cast."""
    nodes = [helper.make_node("Cast", ["w"], ["f"], to=F32), helper.make_node("MatMul", ["x", "f"], ["y"], name="n")]
    made = model(nodes, [info("x", F32, [2, tensor.dims[0]])], ["y"], opset=21)
    made.graph.initializer.append(tensor)
    return made


def bomb(depth):
    """Functions that each call the one before twice."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    functions = [helper.make_function("local", "F0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)]
    for index in range(1, depth):
        calls = [helper.make_node(f"F{index - 1}", [a], [b], domain="local") for a, b in (("a", "c"), ("c", "b"))]
        functions.append(helper.make_function("local", f"F{index}", ["a"], ["b"], calls, opsets))
    node = helper.make_node(f"F{depth - 1}", ["x"], ["y"], domain="local")
    return model([node], [info("x", F32, [1])], ["y"], functions=functions)


def test_functions_that_unfold_to_any_number_of_nodes_are_refused():
    with pytest.raises(TargetError, match=r"has \d+ nodes, more than 1000000"):
        read_onnx(bomb(60))
    assert len(read_onnx(bomb(5)).graph) == 17


def test_limits_are_adjustable():
    with pytest.raises(TargetError, match="has 16 nodes, more than 15"):
        read_onnx(bomb(5), Limits(nodes=15))
    weight = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", F32, [1, 90])], ["y"], {"w": np.ones((90, 90), np.float32)}
    )
    with pytest.raises(TargetError, match="bytes beside its weights"):
        read_onnx(weight, Limits(skeleton=50))


@pytest.mark.parametrize("axes", [65, 5000])
def test_a_weight_of_too_many_axes_is_refused(axes):
    tensor = TensorProto(name="w", data_type=F32, dims=[1] * axes, raw_data=bytes(4))
    with pytest.raises(TargetError, match="axes, more than 64"):
        read_onnx(linear(tensor))


def doubling(op_type, count=40):
    """Operators that would multiply the rank at every step."""

    def step(a, b):
        if op_type != "ConstantOfShape":
            return [helper.make_node(op_type, [a, a if op_type == "Gather" else "many"], [b])]
        return [
            helper.make_node("Shape", [a], [f"{b}s"]),
            helper.make_node("Concat", [f"{b}s"] * 3, [f"{b}c"], axis=0),
            helper.make_node("ConstantOfShape", [f"{b}c"], [b]),
        ]

    nodes = [node for index in range(count) for node in step(f"t{index}", f"t{index + 1}")]
    return model(nodes, [info("t0", I64, [2, 2])], [f"t{count}"], {"many": np.arange(60)})


@pytest.mark.parametrize("op_type", ["Gather", "ConstantOfShape", "Unsqueeze"])
def test_shapes_of_absurd_rank_are_not_inferred(op_type):
    tracemalloc.start()
    file = read_onnx(doubling(op_type))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert any("more than 64 axes" in note for note in file.notes)
    assert peak < 50e6


@pytest.mark.parametrize("op_type", ["Gather", "ConstantOfShape", "Unsqueeze"])
def test_the_bound_is_never_below_the_rank_that_onnx_infers(op_type):
    for count in (1, 2, 3):
        proto = doubling(op_type, count)
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.arange(3), "many"))
        inferred = shape_inference.infer_shapes(proto, data_prop=True)
        ranks = [len(v.type.tensor_type.shape.dim) for v in (*inferred.graph.value_info, *inferred.graph.output)]
        assert largest_rank(proto.graph) >= max(ranks) >= 3


def test_a_node_that_is_not_one_of_its_operator_keeps_onnx_from_inferring_shapes():
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("SequenceMap", ["h"], ["y"], name="odd")]
    file = read_onnx(model(nodes, [info("x", F32, [2, 2])], ["y"]), lenient=True)
    assert any("SequenceMap 'odd' lacks the attribute 'body'" in note for note in file.notes)


def test_a_constant_that_many_operators_make_is_not_computed_again_and_again():
    nodes = [helper.make_node("Add", [f"c{index}"] * 2, [f"c{index + 1}"]) for index in range(80)]
    nodes.append(helper.make_node("Add", ["x", "c80"], ["y"]))
    file = read_onnx(model(nodes, [info("x", F32, [5000])], ["y"], {"c0": np.ones(5000, np.float32)}))
    assert all(np.isfinite(weight.statistics.mean) for weight in file.graph.weights.values())


def test_values_that_are_not_raw_stay_in_the_file_when_their_bytes_are_the_values(tmp_path):
    values = np.random.default_rng(0).standard_normal((600, 500))
    for kind, dtype in ((F32, np.float32), (TensorProto.DOUBLE, np.float64)):
        tensor = helper.make_tensor("w", kind, values.shape, values.astype(dtype).ravel())
        path = tmp_path / "m.onnx"
        path.write_bytes(linear(tensor).SerializeToString())
        skeleton = load_skeleton(path)
        (found,) = skeleton.proto.graph.initializer
        assert skeleton.proto.ByteSize() < 1000
        assert isinstance(skeleton.array(found), np.memmap)
        assert np.array_equal(skeleton.array(found), values.astype(dtype))


def test_values_in_two_pieces_are_read_as_protobuf_reads_them():
    tensor = helper.make_tensor("w", F32, [40, 40], np.arange(1600, dtype=np.float32))
    whole = tensor.SerializeToString()
    half = TensorProto(float_data=np.arange(800, dtype=np.float32)).SerializeToString()
    rest = TensorProto(float_data=np.arange(800, 1600, dtype=np.float32)).SerializeToString()
    pieces = TensorProto(name="w", dims=[40, 40], data_type=F32).SerializeToString() + half + rest
    assert TensorProto.FromString(pieces) == TensorProto.FromString(whole)
    skeleton = load_skeleton(linear(TensorProto.FromString(pieces)))
    assert np.array_equal(skeleton.array(skeleton.proto.graph.initializer[0]).ravel(), np.arange(1600))


@pytest.mark.parametrize("linear_indices", [True, False])
def test_a_sparse_initializer_is_a_weight_with_its_zeros(linear_indices):
    values = numpy_helper.from_array(np.array([1.0, 2.0, 3.0], np.float32), "w")
    places = np.array([1, 6, 11]) if linear_indices else np.array([[0, 1], [1, 2], [2, 3]])
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], [info("x", F32, [2, 3])], ["y"])
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, ""), [3, 4])
    proto.graph.sparse_initializer.append(sparse)
    weight = read_onnx(proto).graph["n"].weights["weight"]
    expected = np.zeros((3, 4), np.float32)
    expected[[0, 1, 2], [1, 2, 3]] = [1, 2, 3]
    assert np.array_equal(weight.array(), expected)
    assert weight.statistics.mean_square == pytest.approx(14 / 12)


def test_a_sparse_weight_of_absurd_size_is_refused():
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "w"), numpy_helper.from_array(np.array([5]), ""), [1 << 40]
    )
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], [info("x", F32, [2, 3])], ["y"])
    proto.graph.sparse_initializer.append(sparse)
    with pytest.raises(TargetError, match="too large"):
        read_onnx(proto)


def loop(body_nodes, values):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["more"]), *body_nodes],
        "body",
        [info("i", I64, []), info("go", TensorProto.BOOL, []), info("h", F32, [2, 4])],
        [info("more", TensorProto.BOOL, []), info("next", F32, [2, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body, name="loop")
    return read_onnx(
        model([node], [info("x", F32, [2, 4])], ["y"], {"trips": np.array(3), "outer": np.full((4, 4), 2.0, np.float32)})
    )


def test_weights_in_the_body_of_a_loop_and_those_it_captures_are_weights_of_the_loop():
    own = np.full((4, 4), 0.5, np.float32)
    own[1, 2] = np.nan
    nodes = [
        helper.make_node("MatMul", ["h", "own"], ["m"], name="a"),
        helper.make_node("MatMul", ["m", "outer"], ["next"], name="b"),
    ]
    graph = loop(nodes, {"own": own}).graph
    assert [node.op for node in graph] == ["input", "control"]
    weights = graph["loop"].weights
    assert {role: weight.name for role, weight in weights.items()} == {"a.weight": "own", "b.weight": "outer"}
    assert not weights["a.weight"].statistics.finite
    assert weights["b.weight"].statistics.mean == 2.0


def test_an_initializer_that_is_also_an_input_is_a_weight_and_not_asked_for():
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")],
        [info("x", F32, [2, 4]), info("w", F32, [4, 4])],
        ["y"],
        {"w": np.ones((4, 4), np.float32)},
    )
    file = read_onnx(proto)
    assert [spec.name for spec in file.inputs] == ["x"]
    assert file.graph["n"].weights["weight"].name == "w"


KINDS = [
    name
    for name in TensorProto.DataType.keys()  # noqa: SIM118 - an enum wrapper, no dict
    if name.startswith(("FLOAT", "BFLOAT", "DOUBLE", "INT", "UINT")) and "E8M0" not in name
]


@pytest.mark.parametrize("name", KINDS)
def test_a_weight_of_any_dtype_has_the_statistics_of_what_onnx_decodes(name):
    kind = TensorProto.DataType.Value(name)
    numbers = np.arange(16) % (2 if name in {"UINT2", "INT2"} else 4)
    tensor = helper.make_tensor("w", kind, [4, 4], numbers.tolist())
    decoded = numpy_helper.to_array(tensor).astype(np.float64)
    weight = read_onnx(linear(tensor)).graph["n"].weights["weight"]
    assert weight.statistics.mean == pytest.approx(decoded.mean())
    assert weight.statistics.max_abs == np.abs(decoded).max()
