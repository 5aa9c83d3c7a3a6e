"""Small valid ONNX models that together hold everything a file can hold; mutations start from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
_RNG = np.random.default_rng(0)
F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def _w(*shape: int) -> NDArray[np.float32]:
    return _RNG.standard_normal(shape).astype(np.float32)


def _model(
    nodes: Sequence[NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: Iterable[str],
    values: dict[str, NDArray[np.generic]],
    *,
    opset: int = 18,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    made = [helper.make_tensor_value_info(name, F32, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", given, made, tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def _vision() -> onnx.ModelProto:
    node = helper.make_node
    names = ["s", "o", "m", "v"]
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="/net/net.0/Conv"),
        node("BatchNormalization", ["c", *names], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Shape", ["p"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"], axis=0),
        node("Unsqueeze", ["batch", "axes"], ["size"]),
        node("Concat", ["size", "rest"], ["to"], axis=0),
        node("Reshape", ["p", "to"], ["f"]),
        node("Gemm", ["f", "u", "t"], ["y"], transB=1),
        node("Softmax", ["y"], ["q"]),
    ]
    values = {"w": _w(6, 3, 3, 3), "b": _w(6), **{name: np.abs(_w(6)) for name in names}, "u": _w(4, 6), "t": _w(4)}
    whole = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    return _model(nodes, {"x": (F32, ["n", 3, 8, 8])}, ["q"], values | whole)


def _language() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("ReduceMean", ["e"], ["mean"], axes=[-1]),
        node("Sub", ["e", "mean"], ["d"]),
        node("Pow", ["d", "two"], ["d2"]),
        node("ReduceMean", ["d2"], ["var"], axes=[-1]),
        node("Add", ["var", "eps"], ["ve"]),
        node("Sqrt", ["ve"], ["sd"]),
        node("Div", ["d", "sd"], ["h0"]),
        node("Mul", ["h0", "gamma"], ["h1"]),
        node("Add", ["h1", "beta"], ["h"]),
        node("MatMul", ["h", "wq"], ["q"]),
        node("MatMul", ["h", "wk"], ["k"]),
        node("MatMul", ["h", "wv"], ["v"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["l0"]),
        node("Mul", ["l0", "scale"], ["l1"]),
        node("Where", ["mask", "l1", "low"], ["l"]),
        node("Softmax", ["l"], ["p"]),
        node("MatMul", ["p", "v"], ["a"]),
        node("Div", ["a", "root"], ["g0"]),
        node("Erf", ["g0"], ["g1"]),
        node("Add", ["g1", "one"], ["g2"]),
        node("Mul", ["a", "g2"], ["g3"]),
        node("Mul", ["g3", "half"], ["y"]),
    ]
    values = {"table": _w(30, 8), "gamma": _w(8), "beta": _w(8), "wq": _w(8, 8), "wk": _w(8, 8), "wv": _w(8, 8)}
    numbers = {"two": 2.0, "eps": 1e-5, "scale": 0.35, "low": -1e9, "root": 2**0.5, "one": 1.0, "half": 0.5}
    values |= {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    return _model(nodes, {"ids": (I64, ["n", "t"]), "mask": (TensorProto.BOOL, ["n", "t", "t"])}, ["y"], values, opset=17)


def _recurrent() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("LSTM", ["x", "w", "r", "b", "", "h0", "c0"], ["hs", "h", "c"], hidden_size=4, direction="bidirectional"),
        node("ReduceSum", ["hs", "one"], ["s"]),
        node("GRU", ["x", "gw", "gr"], ["gs", "gh"], hidden_size=5, linear_before_reset=1),
        node("Flatten", ["gh"], ["y"]),
    ]
    values = {"w": _w(2, 16, 3), "r": _w(2, 16, 4), "b": _w(2, 32), "gw": _w(1, 15, 3), "gr": _w(1, 15, 5)}
    state = (F32, [2, 2, 4])
    inputs = {"x": (F32, ["t", 2, 3]), "h0": state, "c0": state}
    return _model(nodes, inputs, ["s", "y"], values | {"one": np.array([1])}, opset=14)


def _control() -> onnx.ModelProto:
    node = helper.make_node
    info = helper.make_tensor_value_info
    then = helper.make_graph([node("MatMul", ["x", "w"], ["t"])], "then", [], [info("t", F32, [2, 4])])
    nested = node("If", ["c"], ["i"], then_branch=then, else_branch=then)
    other = helper.make_graph([nested], "else", [], [info("i", F32, [2, 4])], [numpy_helper.from_array(_w(4, 4), "own")])
    body = helper.make_graph(
        [node("Identity", ["going"], ["more"]), node("MatMul", ["state", "w"], ["m"]), node("Tanh", ["m"], ["next"])],
        "body",
        [info("count", I64, []), info("going", TensorProto.BOOL, []), info("state", F32, [2, 4])],
        [info("more", TensorProto.BOOL, []), info("next", F32, [2, 4]), info("m", F32, [2, 4])],
    )
    step = helper.make_graph(
        [node("Add", ["s", "e"], ["z"]), node("Mul", ["z", "half"], ["o"])],
        "step",
        [info("s", F32, [4]), info("e", F32, [4])],
        [info("z", F32, [4]), info("o", F32, [4])],
        [numpy_helper.from_array(_w(4), "half")],
    )
    nodes = [
        node("If", ["c"], ["a"], then_branch=then, else_branch=other),
        node("Loop", ["trips", "", "a"], ["b", "all"], body=body),
        node("Scan", ["start", "b"], ["end", "y"], body=step, num_scan_inputs=1),
    ]
    inputs = {"x": (F32, [2, 4]), "c": (TensorProto.BOOL, [])}
    return _model(nodes, inputs, ["y", "all"], {"w": _w(4, 4), "trips": np.array(3), "start": _w(4)})


def _functions() -> onnx.ModelProto:
    node = helper.make_node
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    inner = helper.make_function(
        "local", "Act", ["a"], ["b"], [node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["b"])], opsets
    )
    outer = helper.make_function(
        "local",
        "Layer",
        ["a", "w"],
        ["b"],
        [node("MatMul", ["a", "w"], ["m"]), node("Act", ["m"], ["b"], domain="local")],
        opsets,
    )
    nodes = [node("Layer", ["x", "w"], ["h"], domain="local"), node("Layer", ["h", "w"], ["y"], domain="local")]
    return _model(nodes, {"x": (F32, ["n", 8])}, ["y"], {"w": _w(8, 8)}, functions=[inner, outer])


def _quantized() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["wq", "s"], ["w"]),
        node("MatMul", ["xd", "w"], ["m"]),
        node("Cast", ["m"], ["h"], to=TensorProto.FLOAT16),
        node("Cast", ["h"], ["y"], to=F32),
    ]
    values = {"s": np.float32(0.1), "z": np.int8(0), "wq": _RNG.integers(-100, 100, (8, 6)).astype(np.int8)}
    return _model(nodes, {"x": (F32, ["n", 8])}, ["y"], {name: np.asarray(value) for name, value in values.items()}, opset=21)


def _odd_tensors() -> onnx.ModelProto:
    """Constant nodes, a sparse initializer, bf16, 8- and 4-bit floats and integers, values that are not raw."""
    node = helper.make_node
    kinds = {"b": TensorProto.BFLOAT16, "e": TensorProto.FLOAT8E4M3FN, "q": TensorProto.INT4, "u": TensorProto.UINT4}
    nodes = [
        node("Constant", [], ["k"], value=numpy_helper.from_array(_w(4, 4))),
        node("Constant", [], ["f"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        node("MatMul", ["x", "k"], ["h0"]),
        node("MatMul", ["h0", "sp"], ["h1"]),
        *(node("Cast", [name], [f"{name}f"], to=F32) for name in kinds),
        *(node("MatMul", [f"h{index + 1}", f"{name}f"], [f"h{index + 2}"]) for index, name in enumerate(kinds)),
        node("Add", ["h5", "f"], ["h6"]),
        node("Add", ["h6", "fd"], ["y"]),
    ]
    model = _model(nodes, {"x": (F32, [2, 4])}, ["y"], {}, opset=21)
    for name, kind in kinds.items():
        model.graph.initializer.append(helper.make_tensor(name, kind, [4, 4], [index % 7 for index in range(16)]))
    model.graph.initializer.append(helper.make_tensor("fd", F32, [4], [0.1, 0.2, 0.3, 0.4]))
    values = numpy_helper.from_array(_w(3), "sp")
    indices = numpy_helper.from_array(np.array([[0, 1], [2, 2], [3, 0]]), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    model.graph.input.append(helper.make_tensor_value_info("fd", F32, [4]))
    return model


def _sequences() -> onnx.ModelProto:
    """Text, sequences and an optional."""
    node = helper.make_node
    nodes = [
        node("Cast", ["words"], ["numbers"], to=F32),
        node("SplitToSequence", ["x"], ["parts"], axis=1),
        node("SequenceInsert", ["parts", "numbers"], ["more"]),
        node("SequenceErase", ["more", "zero"], ["fewer"]),
        node("SequenceAt", ["fewer", "zero"], ["first"]),
        node("Optional", ["first"], ["maybe"]),
        node("OptionalGetElement", ["maybe"], ["sure"]),
        node("ConcatFromSequence", ["fewer"], ["joined"], axis=1),
        node("Add", ["joined", "sure"], ["y"]),
        node("SequenceLength", ["fewer"], ["length"]),
    ]
    inputs = {"x": (F32, ["n", 4]), "words": (TensorProto.STRING, ["n", 1])}
    return _model(nodes, inputs, ["y", "length", "fewer"], {"zero": np.array(0)})


def _image_operators() -> onnx.ModelProto:
    """Operators of many attributes on images."""
    node = helper.make_node
    nodes = [
        node("Pad", ["x", "pads"], ["p"], mode="reflect"),
        node("Conv", ["p", "w"], ["c"], strides=[2, 2], dilations=[1, 1], group=2, auto_pad="SAME_UPPER"),
        node("MaxPool", ["c"], ["m", "where"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("AveragePool", ["c"], ["a"], kernel_shape=[2, 2], strides=[2, 2], count_include_pad=1, ceil_mode=1),
        node("Concat", ["m", "a"], ["b"], axis=1),
        node("Resize", ["b", "", "scales"], ["r"], mode="linear", coordinate_transformation_mode="align_corners"),
        node("ConvTranspose", ["r", "v"], ["t"], strides=[2, 2], output_padding=[1, 1]),
        node("InstanceNormalization", ["t", "one", "one"], ["i"]),
        node("LRN", ["i"], ["l"], size=3),
        node("DepthToSpace", ["l"], ["d"], blocksize=2),
        node("Slice", ["d", "starts", "ends", "axes"], ["s"]),
        node("TopK", ["s", "k"], ["top", "index"], axis=-1),
        node("GatherElements", ["s", "index"], ["g"], axis=-1),
        node("Einsum", ["top", "g"], ["y"], equation="nchw,ncvw->nhv"),
    ]
    values = {"w": _w(4, 1, 3, 3), "v": _w(8, 4, 3, 3), "one": _w(4), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    sizes = {"starts": np.array([1, -9]), "ends": np.array([1 << 62, -1]), "axes": np.array([2, 3]), "k": np.array([2])}
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    return _model(nodes, {"x": (F32, ["n", 2, 10, 10])}, ["y", "where"], values | sizes | scales)


def _attention() -> onnx.ModelProto:
    """Operators that the standard defines by functions of the types of their inputs."""
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "scale", "bias"], ["h", "mean"], epsilon=1e-6, axis=-1),
        node("RotaryEmbedding", ["h", "cos", "sin"], ["r"], num_heads=2),
        node("Attention", ["r", "r", "h"], ["a"], q_num_heads=2, kv_num_heads=2, is_causal=1, softcap=5.0),
        node("RMSNormalization", ["a", "scale"], ["n"], stash_type=1),
        node("Gelu", ["n"], ["g"], approximate="tanh"),
        node("GroupNormalization", ["g", "four", "four"], ["q"], num_groups=2),
        node("SoftmaxCrossEntropyLoss", ["q", "labels"], ["y"], reduction="mean", ignore_index=0),
    ]
    tables = {"cos": _w(3, 4, 2), "sin": _w(3, 4, 2), "labels": _RNG.integers(0, 4, (3, 8))}
    values = {"scale": _w(8), "bias": _w(8), "four": _w(4)}
    return _model(nodes, {"x": (F32, [3, 4, 8])}, ["y"], values | tables, opset=23)


def _external(folder: Path) -> onnx.ModelProto:
    model = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (F32, ["n", 16])}, ["y"], {"w": _w(16, 16)})
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": "1024"}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def seed_models(folder: Path) -> list[bytes]:
    """The serialized seeds; `folder` gets the external data that one of them needs."""
    built = [_vision(), _language(), _recurrent(), _control(), _functions(), _quantized(), _odd_tensors(), _sequences()]
    built += [_image_operators(), _attention(), _external(folder)]
    samples = ["zero_init_broken", "nan_weight_broken"]
    return [model.SerializeToString() for model in built] + [(SAMPLES / f"{name}.onnx").read_bytes() for name in samples]
