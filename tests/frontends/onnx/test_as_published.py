"""Files as they are published: each kind that once was refused, or that raised a false alarm, as a small model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gradlint
from gradlint.errors import TargetError
from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.onnx.skeleton import load_skeleton
from gradlint.onnx_torch import OnnxModule
from tests.models.onnxruntime_sessions import by_onnxruntime

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name, kind=F32, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name, *shape, gain=2.0, fan_in=None, seed=0):
    """A weight of variance gain / fan_in."""
    values = np.random.default_rng(seed + sum(map(ord, name))).standard_normal(shape)
    return numpy_helper.from_array((values * (gain / (fan_in or shape[0])) ** 0.5).astype(np.float32), name)


def model(nodes, inputs, outputs, held=(), *, opset=13, ir_version=8):
    outputs = [info(name) if isinstance(name, str) else name for name in outputs]
    graph = helper.make_graph(list(nodes), "g", list(inputs), outputs, list(held))
    domains = [helper.make_opsetid(name, 1) for name in ("com.microsoft", "custom")]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *domains], ir_version=ir_version)


def mlp(depth=6, width=50, *, bias=0.0, batch="batch", before=()):
    """A ReLU network of `depth` layers behind the nodes `before`, the last of which makes its input."""
    held = [weight(f"w{k}", width, width) for k in range(depth)]
    held += [numpy_helper.from_array(np.full(width, bias, np.float32), f"b{k}") for k in range(depth)]
    nodes, last = list(before), before[-1].output[0] if before else "x"
    for k in range(depth):
        nodes.append(helper.make_node("Gemm", [last, f"w{k}", f"b{k}"], [f"h{k}"]))
        last = f"h{k}"
        if k < depth - 1:
            nodes.append(helper.make_node("Relu", [last], [f"r{k}"]))
            last = f"r{k}"
    return model(nodes, [info("x", shape=[batch, width])], [last], held)


def codes(report):
    return {finding.rule for finding in report.findings}


# reading ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["raw_data", "float_data"])
def test_a_weight_whose_location_is_stated_to_be_the_file_itself_stays_in_the_file(tmp_path, field):
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    tensor = numpy_helper.from_array(values, "w")
    if field == "float_data":
        tensor = helper.make_tensor("w", F32, values.shape, values.ravel())
    tensor.data_location = TensorProto.DEFAULT  # as onnx.load writes it for weights that it read from another file
    tensor.external_data.add(key="location", value="gone.bin")
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", shape=["b", 64])], ["y"], [tensor])
    path = tmp_path / "merged.onnx"
    onnx.save(proto, path)
    skeleton = load_skeleton(path)
    assert skeleton.proto.ByteSize() < 1000
    assert np.array_equal(skeleton.array(skeleton.proto.graph.initializer[0]), values)


def test_nodes_out_of_order_are_sorted_also_in_branches():
    inner = [helper.make_node("Relu", ["a"], ["out"]), helper.make_node("Neg", ["x"], ["a"])]
    branch = helper.make_graph(inner, "b", [], [info("out")])
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    nodes = [
        choice,
        helper.make_node("Greater", ["mean", "zero"], ["yes"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
    ]
    proto = model(nodes, [info("x", shape=[2, 3])], ["y"], [numpy_helper.from_array(np.float32(0), "zero")])
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    assert np.array_equal(OnnxModule(proto)(x)[0], np.maximum(-x, 0))
    network = mlp()
    ordered = [node.op_type for node in network.graph.node]
    nodes = list(network.graph.node)[::-1]
    del network.graph.node[:]
    network.graph.node.extend(nodes)
    assert [node.op_type for node in read_onnx(network).proto.graph.node] == ordered
    assert gradlint.check(network).verdict == "healthy"


def test_nodes_that_wait_for_one_another_are_a_sentence():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    with pytest.raises(TargetError, match="reads 'b', which nothing before it makes"):
        read_onnx(model(nodes, [info("x", shape=[2, 3])], ["b"]))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Add", ["x"], ["y"], "n"), "Add 'n' has 1 inputs"),
        (helper.make_node("Gemm", ["x", ""], ["y"], "n"), "Gemm 'n' leaves out its input 'B'"),
        (helper.make_node("If", [], ["y"], "n"), "If 'n' has 0 inputs"),
    ],
)
def test_a_node_that_its_schema_rejects_is_an_error(node, message):
    proto = model([node], [info("x", shape=[2, 3])], ["y"])
    with pytest.raises(TargetError, match=f"not valid ONNX: {message}"):
        gradlint.check(proto)
    assert any(message in note for note in read_onnx(proto, lenient=True).notes)


# one sample at a time -----------------------------------------------------------------------------------------------------


def test_a_layer_that_some_samples_silence_is_a_note():
    """The last hidden layer passes where the first feature is above 0.5: 3 of 10 samples, and not the first one."""
    first = np.zeros((50, 50), np.float32)
    first[0] = 1.0
    proto = mlp(3, batch=1)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(first, "w1"))
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(50, dtype=np.float32), "w0"))
    proto.graph.initializer[4].CopyFrom(numpy_helper.from_array(np.full(50, -0.5, np.float32), "b1"))
    report = gradlint.check(proto, ignore=["GL403"])
    assert report.verdict == "healthy"
    assert report.findings == ()
    assert any("of 16 samples silence" in note for note in report.result.notes)


@pytest.mark.parametrize("batch", [1, "batch"])
def test_a_layer_that_every_sample_finds_silent_is_an_error(batch):
    report = gradlint.check(mlp(bias=-30.0, batch=batch))
    assert report.verdict == "untrainable"
    assert "GL806" in codes(report)


def test_a_trained_layer_that_random_inputs_silence_is_not_judged():
    proto, rng = mlp(bias=-30.0), np.random.default_rng(0)
    for tensor in proto.graph.initializer[:6]:  # a direction of its own, as training makes one
        values = numpy_helper.to_array(tensor) + 0.8 * rng.standard_normal((50, 1)) * rng.standard_normal((1, 50))
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    report = gradlint.check(proto)
    assert report.verdict == "unknown"
    assert {finding.severity for finding in report.findings} == {"note"}
    assert any("give some with --input" in note for note in report.result.notes)
    given = gradlint.check(proto, {"x": rng.standard_normal((8, 50)).astype(np.float32)})
    assert given.verdict == "untrainable"


# sizes that the file does not say -----------------------------------------------------------------------------------------


def convolutions(*, before=(), ir_version=8, gain=2.0, rank=True):
    nodes, held, last, width = list(before), [], before[-1].output[0] if before else "x", 3
    for k in range(12):
        stride = [2, 2] if k % 4 == 3 else [1, 1]
        held += [weight(f"w{k}", 32, width, 3, 3, gain=gain, fan_in=9 * width)]
        nodes.append(helper.make_node("Conv", [last, f"w{k}"], [f"h{k}"], pads=[1, 1, 1, 1], strides=stride))
        nodes.append(helper.make_node("Relu", [f"h{k}"], [f"r{k}"]))
        last, width = f"r{k}", 32
    nodes += [helper.make_node("GlobalAveragePool", [last], ["g"]), helper.make_node("Flatten", ["g"], ["f"])]
    nodes.append(helper.make_node("Gemm", ["f", "wo"], ["y"]))
    shape = ["b", 3, 32, 32] if rank else None
    return model(nodes, [info("x", shape=shape)], ["y"], [*held, weight("wo", 32, 10, gain=1.0)], ir_version=ir_version)


ODD = helper.make_node("Odd", ["x"], ["odd"], domain="custom")


@pytest.mark.parametrize("options", [{"before": [ODD]}, {"ir_version": 3}], ids=["custom operator", "old format"])
def test_layers_behind_what_onnx_does_not_infer_have_their_sizes(options):
    shapes = [node.shape for node in read_onnx(convolutions(**options)).graph if node.op == "conv"]
    assert shapes[0] == (None, 32, 32, 32)
    assert shapes[-1] == (None, 32, 4, 4)
    report, plain = (gradlint.check(convolutions(**kind), probe=False) for kind in (options, {}))
    assert report.verdict == "healthy"
    assert report.growth.decades == pytest.approx(plain.growth.decades, abs=0.05)


def test_fused_layers_are_sized_like_the_layers_they_fuse():
    fused = helper.make_node("FusedConv", ["x", "w"], ["h"], domain="com.microsoft", activation="Relu", pads=[1, 1, 1, 1])
    nodes = [fused, helper.make_node("Conv", ["h", "w2"], ["y"])]
    held = [weight("w", 8, 3, 3, 3), weight("w2", 4, 8, 3, 3)]
    graph = read_onnx(model(nodes, [info("x", shape=[1, 3, 9, 9])], ["y"], held)).graph
    assert [node.shape for node in graph][1:] == [(1, 8, 9, 9), (1, 4, 7, 7)]


def test_without_sizes_theory_does_not_conclude():
    report = gradlint.check(convolutions(rank=False, gain=0.5), probe=False)
    assert report.verdict == "unknown"
    low, high = report.growth.interval
    assert low < -3.8 < high


# quantized files ----------------------------------------------------------------------------------------------------------

SCALE, ZERO = numpy_helper.from_array(np.float32(0.05), "s"), numpy_helper.from_array(np.uint8(128), "z")


def rounded(name, *, cast):
    """Nodes that round a tensor to 8 bits, as exporters of quantized torch models write them, and the name of the result."""
    code = f"{name}.c" if cast else f"{name}.q"
    nodes = [helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}.q"])]
    nodes += [helper.make_node("Cast", [f"{name}.q"], [code], to=TensorProto.UINT8)] if cast else []
    return [*nodes, helper.make_node("DequantizeLinear", [code, "s", "z"], [f"{name}.r"])], f"{name}.r"


def fake_quantized(*, cast, weights=True, depth=4, width=32):
    nodes, last = [], "x"
    for k in range(depth):
        start, last = rounded(last, cast=cast)
        own, factor = rounded(f"w{k}", cast=cast) if weights else ([], f"w{k}")
        nodes += [*start, *own, helper.make_node("MatMul", [last, factor], [f"h{k}"])]
        nodes += [helper.make_node("Relu", [f"h{k}"], [f"r{k}"])] if k < depth - 1 else []
        last = f"r{k}" if k < depth - 1 else f"h{k}"
    held = [SCALE, ZERO, *(weight(f"w{k}", width, width) for k in range(depth))]
    return model(nodes, [info("x", shape=["b", width])], [last], held)


@pytest.mark.parametrize("weights", [False, True], ids=["activations", "weights too"])
@pytest.mark.parametrize("cast", [False, True], ids=["plain", "cast"])
def test_the_gradient_passes_a_cast_between_quantizers(cast, weights):
    proto = fake_quantized(cast=cast, weights=weights)
    report = gradlint.check(proto)
    assert report.verdict == "healthy"
    assert set(report.result.weights.levels) >= {"w0", "w1", "w2", "w3"}
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    np.testing.assert_allclose(OnnxModule(proto)(x)[0].detach(), by_onnxruntime(proto, {"x": x})[0], atol=1e-5)


@pytest.mark.parametrize("probe", [False, True], ids=["static", "probe"])
def test_a_file_whose_weights_are_integers_has_nothing_to_train(probe):
    proto = fake_quantized(cast=False, weights=False)
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("w"):
            tensor.CopyFrom(numpy_helper.from_array(rng.integers(123, 134, (32, 32)).astype(np.uint8), tensor.name))
    nodes = list(proto.graph.node)
    for node in list(nodes):
        if node.op_type == "MatMul":
            nodes.insert(0, helper.make_node("DequantizeLinear", [node.input[1], "s", "z"], [f"{node.input[1]}.r"]))
            node.input[1] += ".r"
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    report = gradlint.check(proto, probe=probe)
    assert (report.verdict, report.score) == ("nothing-to-train", None)
    report.raise_if_failed(min_score=90)
    assert '"score": null' in report.to("json")


@pytest.mark.parametrize("probe", [False, True], ids=["static", "probe"])
def test_a_file_without_weights_is_not_called_healthy(probe):
    report = gradlint.check(model([helper.make_node("Relu", ["x"], ["y"])], [info("x", shape=["b", 4])], ["y"]), probe=probe)
    assert (report.verdict, report.score) == ("nothing-to-train", None)


# weights that are inputs --------------------------------------------------------------------------------------------------


def training_graph():
    """A classifier with its loss, part of its gradients and their accumulation, as it is made for training on a device."""
    sizes = {"fc1.weight": [50, 78], "fc1.bias": [50], "fc2.weight": [10, 50], "fc2.bias": [10]}
    own = {"domain": "com.microsoft"}
    nodes = [
        helper.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "fc2.weight", "fc2.bias"], ["o"], transB=1),
        helper.make_node("SoftmaxCrossEntropyLossInternal", ["o", "target"], ["loss", "logs"], reduction="mean", **own),
        helper.make_node("SoftmaxCrossEntropyLossInternalGrad", ["one", "logs", "target"], ["og"], **own),
        helper.make_node("Gemm", ["og", "r"], ["fc2.weight_grad"], transA=1),
        helper.make_node("InPlaceAccumulatorV2", ["sum", "fc2.weight_grad", "reset"], ["summed"], **own),
    ]
    inputs = [info("x", shape=["b", 78]), info("target", I64, ["b"]), *(info(name, shape=shape) for name, shape in sizes.items())]
    inputs += [info("sum", shape=[10, 50]), info("reset", BOOL, [1])]
    return model(nodes, inputs, ["loss", "summed"], [numpy_helper.from_array(np.float32(1), "one")])


@pytest.mark.parametrize("probe", [False, True], ids=["static", "probe"])
def test_weights_that_are_graph_inputs_are_drawn_as_weights(probe):
    report = gradlint.check(training_graph(), probe=probe)
    assert report.verdict == "healthy"
    assert any("4 graph inputs are weights without values" in note for note in report.result.notes)
    assert {name for name in report.result.weights.levels if name.endswith("weight")} == {"fc1.weight", "fc2.weight"}
    if probe:
        assert [item.name for item in report.result.inputs] == ["x", "target"]


def test_a_weight_that_is_given_stays_an_input():
    proto = model([helper.make_node("Gemm", ["x", "w"], ["y"])], [info("x", shape=["b", 4]), info("w", shape=[4, 3])], ["y"])
    assert "w" in gradlint.check(proto, {"w": np.ones((4, 3), np.float32)}).result.inputs[1].name
    assert OnnxModule(proto).input_names == ("x", "w")


# what a graph may be ------------------------------------------------------------------------------------------------------


def test_an_axis_without_elements_is_no_trouble(recwarn):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Slice", ["h", "one", "one", "one"], ["e"])]
    nodes.append(helper.make_node("MatMul", ["e", "none"], ["y"]))
    held = [
        weight("w", 4, 4),
        numpy_helper.from_array(np.ones((0, 3), np.float32), "none"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    report = gradlint.check(model(nodes, [info("x", shape=["b", 4])], ["y"], held))
    assert report.verdict == "untrainable"  # the output is zero whatever w is
    assert not list(recwarn)


@pytest.mark.parametrize("trips", [0, 3])
def test_a_loop_without_a_trip_gives_scans_of_the_right_shape(trips):
    nodes = [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Add", ["s", "s"], ["so"])]
    nodes.append(helper.make_node("Identity", ["so"], ["scan"]))
    given = [info("i", I64, []), info("c", BOOL, []), info("s", F32, [3])]
    body = helper.make_graph(nodes, "b", given, [info("co", BOOL, []), info("so", F32, [3]), info("scan", F32, [3])])
    loop = helper.make_node("Loop", ["n", "", "x"], ["y", "z"], body=body)
    proto = model([loop], [info("n", I64, []), info("x", shape=[3])], ["y", "z"])
    feeds = {"n": np.array(trips), "x": np.ones(3, np.float32)}
    for ours, theirs in zip(OnnxModule(proto)(**feeds), by_onnxruntime(proto, feeds), strict=True):
        assert ours.shape == theirs.shape
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_the_mask_of_a_dropout_that_drops_nothing(opset):
    node = helper.make_node("Dropout", ["x"], ["y", "mask"])
    proto = model([node], [info("x", shape=[2, 3])], ["y", info("mask", F32 if opset < 10 else BOOL, [2, 3])], opset=opset)
    feeds = {"x": np.ones((2, 3), np.float32)}
    ours, theirs = OnnxModule(proto)(**feeds)[1].numpy(), by_onnxruntime(proto, feeds)[1]
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)
